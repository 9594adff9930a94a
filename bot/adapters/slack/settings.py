"""`[adapters.slack]`: where Slack is, how the bot is reached there, and how it behaves."""

from typing import ClassVar, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from bot.config.schema import NO_PROXY, AdapterSection, Proxy

# How the tokens begin that Slack shows on one page or the next.  Others are let through: one of
# rotated tokens begins with xoxe.xoxb-, and Slack may come to make new kinds.
_KINDS = {"xoxb-": "a bot token", "xapp-": "an app token", "xoxp-": "a user token"}
_BEGINNINGS = {"bot_token": "xoxb-", "app_token": "xapp-"}


class SlackSection(AdapterSection):
    """A Slack workspace; docs/slack-manifest.yaml makes the app that the tokens belong to."""

    tokens: ClassVar[tuple[str, ...]] = ("bot_token", "app_token")

    bot_token: SecretStr | None = Field(
        default=None, description="xoxb-…: OAuth & Permissions, after installing the app"
    )
    app_token: SecretStr | None = Field(
        default=None, description="xapp-…: Basic Information, App-Level Tokens, scope connections:write"
    )
    signing_secret: SecretStr | None = Field(
        default=None, description="Basic Information, App Credentials; instead of app_token with mode = http"
    )
    mode: Literal["socket", "http"] = Field(
        default="socket", description="socket (the bot calls Slack), http (Slack calls the bot)"
    )
    host: str = Field(
        default="127.0.0.1", description="where the bot listens with mode = http; TLS is a proxy's in front"
    )
    port: int = Field(default=3000, ge=0, le=65535, description="the port there")
    path: str = Field(
        default="/slack/events", pattern=r"^/\S*$", description="the path of all three request URLs in Slack's settings"
    )
    threads: bool = Field(default=True, description="answer every message in a thread that the bot was mentioned in")
    edit_interval: float = Field(default=1.3, gt=0, description="seconds between two edits in a channel")
    api_url: str = Field(
        default="https://slack.com/api/", pattern=r"^https?://", description="of GovSlack: https://slack-gov.com/api/"
    )
    proxy: Proxy = Field(
        default=NO_PROXY,
        description="http://host:port; empty: as HTTPS_PROXY says; one with a password goes into BOT_SLACK__PROXY",
    )

    @field_validator("bot_token", "app_token")
    @classmethod
    def _is_of_its_kind(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        wanted = _BEGINNINGS[str(info.field_name)]
        begins = "" if token is None else token.get_secret_value()[: len(wanted)]
        if begins in _KINDS and begins != wanted:
            raise ValueError(f"this is {_KINDS[begins]} ({begins}…), and here belongs {_KINDS[wanted]} ({wanted}…)")
        return token

    def missing(self) -> tuple[str, ...]:
        needed = self.tokens if self.mode == "socket" else ("bot_token", "signing_secret")
        return tuple(name for name in needed if getattr(self, name) is None)
