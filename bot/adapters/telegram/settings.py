"""`[adapters.telegram]`."""

import re
from typing import ClassVar

from pydantic import Field, SecretStr, field_validator

from bot.chat.i18n import gettext_noop
from bot.config.schema import AdapterSection
from bot.config.section import NO_PROXY, Proxy


class TelegramSection(AdapterSection):
    """A Telegram bot, created with @BotFather."""

    tokens: ClassVar[tuple[str, ...]] = ("token",)
    has_numeric_ids: ClassVar[bool] = True
    has_roles: ClassVar[bool] = False
    has_negative_groups: ClassVar[bool] = True

    token: SecretStr | None = Field(default=None, description="123456:ABC-…, from @BotFather")
    threads: bool = Field(default=True, description="answer every message in a topic where the bot was mentioned")
    drafts: bool = Field(default=False, description="in private chats, stream the answer as a draft")
    edit_interval: float = Field(default=1.2, gt=0, description="seconds between two edits in a private chat")
    edit_interval_group: float = Field(default=3.2, gt=0, description="seconds between two edits in a group")
    draft_interval: float = Field(default=0.4, gt=0, description="seconds between two updates of a draft")
    call_seconds: float = Field(default=20.0, gt=0, description="HTTP timeout; calls that time out are retried")
    api_url: str = Field(
        default="https://api.telegram.org", pattern=r"^https?://", description="or your own Bot API server"
    )
    proxy: Proxy = Field(
        default=NO_PROXY,
        description="http://host:port; empty: HTTPS_PROXY; put one with a password into BOT_TELEGRAM__PROXY",
    )

    @field_validator("token")
    @classmethod
    def _is_a_token(cls, token: SecretStr | None) -> SecretStr | None:
        # The length of the second half is not documented.
        if token is not None and not re.fullmatch(r"\d+:\S+", token.get_secret_value()):
            raise ValueError(
                gettext_noop("not a Telegram token: copy it from @BotFather as 123456:ABC-…, with digits and colon")
            )
        return token
