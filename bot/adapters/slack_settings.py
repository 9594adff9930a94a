"""`[adapters.slack]`: where Slack is, how the bot is reached there, and how it behaves."""

from typing import ClassVar, Literal

from pydantic import Field, SecretStr

from bot.config import NO_PROXY, AdapterSection, Proxy


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

    def missing(self) -> tuple[str, ...]:
        needed = self.tokens if self.mode == "socket" else ("bot_token", "signing_secret")
        return tuple(name for name in needed if getattr(self, name) is None)
