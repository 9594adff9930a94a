"""`[adapters.slack]`."""

from typing import ClassVar, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from bot.config.schema import AdapterSection
from bot.config.section import NO_PROXY, Proxy

# Other prefixes are accepted: rotated tokens begin with xoxe.xoxb-, and Slack may add new kinds.
_KINDS = {"xoxb-": "a bot token", "xapp-": "an app token", "xoxp-": "a user token"}
_PREFIXES = {"bot_token": "xoxb-", "app_token": "xapp-"}


class SlackSection(AdapterSection):
    """A Slack workspace; create its app from docs/slack-manifest.yaml."""

    tokens: ClassVar[tuple[str, ...]] = ("bot_token", "app_token")
    has_roles: ClassVar[bool] = False

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
        default="127.0.0.1", description="address to listen on with mode = http; put a TLS proxy in front"
    )
    port: int = Field(default=3000, ge=0, le=65535, description="port to listen on with mode = http")
    path: str = Field(
        default="/slack/events", pattern=r"^/\S*$", description="path of the three request URLs in Slack's settings"
    )
    threads: bool = Field(default=True, description="answer every message in a thread where the bot was mentioned")
    edit_interval: float = Field(default=1.3, gt=0, description="seconds between two edits in a channel")
    api_url: str = Field(
        default="https://slack.com/api/", pattern=r"^https?://", description="for GovSlack: https://slack-gov.com/api/"
    )
    proxy: Proxy = Field(
        default=NO_PROXY,
        description="http://host:port; empty: HTTPS_PROXY; put one with a password into BOT_SLACK__PROXY",
    )

    @field_validator("bot_token", "app_token")
    @classmethod
    def _check_kind(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        expected = _PREFIXES[str(info.field_name)]
        prefix = "" if token is None else token.get_secret_value()[: len(expected)]
        if prefix in _KINDS and prefix != expected:
            raise ValueError(f"expected {_KINDS[expected]} ({expected}…), got {_KINDS[prefix]} ({prefix}…)")
        return token

    def missing(self) -> tuple[str, ...]:
        needed = self.tokens if self.mode == "socket" else ("bot_token", "signing_secret")
        return tuple(name for name in needed if getattr(self, name) is None)
