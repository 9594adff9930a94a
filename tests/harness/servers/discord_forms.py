"""The forms of questions on Discord: each is asked by /ask, as a member or where the bot is none."""

from typing import Any

from bot.adapters.discord.ask import ASK, SHOWN_QUESTION
from tests.harness.platform import Seen
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_users import Guest


class AskingByCommand(DiscordPlatform):
    """Asks each question by /ask; `seen` leaves out the messages that show the questions.

    A command fails at once while the bot is away.
    """

    def __init__(self, guest: Guest | None = None, *, is_late: bool = False) -> None:
        super().__init__()
        self._guest: Guest | None = guest
        self.is_late = is_late
        self._asked: dict[str, str] = {}  # the token of each question

    @property
    def unheard(self) -> list[str]:
        """The questions that the bot has not acknowledged: it may answer them, and need not."""
        return [text for text in self._asked if not self.has_acknowledged(text)]

    def has_acknowledged(self, text: str) -> bool:
        """Return whether this question was taken, and can still be answered by its token."""
        interaction = self._interactions.get(self._asked.get(text, ""))
        return interaction is not None and interaction.is_answered and not interaction.is_expired

    async def say(
        self,
        text: str,
        *,
        author: str = "Mei",
        channel: str = "general",
        thread: str | None = None,
        direct: bool = False,
        mention: bool = True,
        reply_to: str | None = None,
        **more: Any,
    ) -> str:
        place = author if direct and self._guest else channel
        await self.command(f"{ASK} {text}", author=author, channel=place, direct=direct, guest=self._guest)
        self._asked[text] = self.tokens[-1]
        return str(self._last_interaction["id"])

    def seen(self, channel: str = "general", thread: str | None = None) -> list[Seen]:
        found = super().seen(channel, thread)
        return [each for each in found if not each.markdown.startswith(SHOWN_QUESTION)]
