"""The seam between the program and a platform: Adapter."""

from dataclasses import dataclass
from typing import Protocol

from bot.chat.intake import Intake


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of `check --online`; `text` says what to do where it is not ok."""

    is_ok: bool
    text: str


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
