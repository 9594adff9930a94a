"""The seam between the program and a platform: Adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    # Commands read the platforms' settings without the chat.
    from bot.chat.i18n import Translate
    from bot.chat.intake import Intake


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of `check --online`; `text` says what to do where it is not ok.

    `link` is an address that invites the bot, or opens a chat with it.  A `template` with its `values` can
    be translated.

    >>> Finding.of(False, "{server}: no rights", server="Home").text
    'Home: no rights'
    """

    is_ok: bool
    text: str
    link: str = ""
    template: str = ""
    values: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, is_ok: bool, template: str, link: str = "", **values: str) -> Self:
        """Fill in a template, which `gettext_noop` marks for the catalogues."""
        return cls(is_ok, template.format(**values), link, template, values)

    def in_words(self, translate: Translate) -> str:
        """Return the text in another language."""
        return translate(self.template).format(**self.values) if self.template else self.text


class Adapter(Protocol):
    """One platform: parse an event, `accept` it, acknowledge it, show the reply."""

    @property
    def is_connected(self) -> bool:
        """True if messages from the platform reach the bot now, as far as is known."""
        ...

    async def run(self, intake: Intake) -> None:
        """Serve until cancelled; once connected, first answer what `intake.recover` returns.

        Raises:
            LoginRefused: The platform rejects the token; the adapter is opened again later.
        """
        ...
