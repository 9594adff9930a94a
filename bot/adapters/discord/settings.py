"""`[adapters.discord]`: Discord's settings."""

from typing import ClassVar

from pydantic import Field, SecretStr

from bot.config.schema import AdapterSection
from bot.config.section import NO_PROXY, Proxy


class DiscordSection(AdapterSection):
    """Discord: mentions, replies, direct messages, threads and slash commands."""

    tokens: ClassVar[tuple[str, ...]] = ("token",)
    has_numeric_ids: ClassVar[bool] = True

    token: SecretStr | None = Field(default=None, description="Developer Portal, your application, Bot, Reset Token")
    threads: bool = Field(
        default=True,
        description="in a thread where it was mentioned, answer every message; needs the Message Content intent",
    )
    edit_seconds: float = Field(
        default=1.2, gt=0, description="seconds between two edits in a channel; Discord's limit is about 5 in 5 s"
    )
    call_seconds: float = Field(default=10.0, gt=0, description="HTTP timeout; calls that time out are retried")
    api_url: str = Field(default="https://discord.com/api/v10", pattern=r"^https?://", description="or a REST proxy")
    gateway_url: str = Field(default="wss://gateway.discord.gg/", pattern=r"^wss?://", description="or another gateway")
    proxy: Proxy = Field(
        default=NO_PROXY,
        description="http://host:port; empty: HTTPS_PROXY; put one with a password into BOT_DISCORD__PROXY",
    )
