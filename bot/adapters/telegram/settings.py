"""`[adapters.telegram]`: the bot's token, where its server is, and how it behaves."""

import re
from typing import ClassVar

from pydantic import Field, SecretStr, field_validator

from bot.config.schema import NO_PROXY, AdapterSection, Proxy


class TelegramSection(AdapterSection):
    """A Telegram bot; @BotFather makes it and tells its token."""

    tokens: ClassVar[tuple[str, ...]] = ("token",)

    token: SecretStr | None = Field(default=None, description="123456:ABC-…, from @BotFather")
    threads: bool = Field(default=True, description="answer every message in a topic that the bot was mentioned in")
    drafts: bool = Field(default=False, description="in private chats, show the growing answer as a draft")
    edit_interval: float = Field(default=1.2, gt=0, description="seconds between two edits in a private chat")
    edit_interval_group: float = Field(default=3.2, gt=0, description="seconds between two edits in a group")
    draft_interval: float = Field(default=0.4, gt=0, description="seconds between two versions of a draft")
    call_seconds: float = Field(default=20.0, gt=0, description="a call that takes longer has failed")
    api_url: str = Field(
        default="https://api.telegram.org", pattern=r"^https?://", description="of a Bot API server of one's own"
    )
    proxy: Proxy = Field(
        default=NO_PROXY,
        description="http://host:port; empty: as HTTPS_PROXY says; one with a password goes into BOT_TELEGRAM__PROXY",
    )

    @field_validator("token")
    @classmethod
    def _is_a_token(cls, token: SecretStr | None) -> SecretStr | None:
        # No more than that is documented: how long the second half is, Telegram does not promise.
        if token is not None and not re.fullmatch(r"\d+:\S+", token.get_secret_value()):
            raise ValueError(
                "this is no token of Telegram's: @BotFather shows it as 123456:ABC-…, digits and colon included"
            )
        return token
