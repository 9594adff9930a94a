"""Ends answers in guest places while Discord still takes their tokens: for 15 minutes."""

from dataclasses import replace

import structlog
from discord.utils import snowflake_time

from bot.adapters.discord.guests import token_of
from bot.adapters.discord.messenger import DiscordMessenger
from bot.chat.intake import Intake
from bot.delivery.replies import Replies
from bot.domain import Exchange
from bot.errors import PlatformError
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds of an interaction after which its answer is ended; the rest is for the last edits.
_SECONDS = 14 * 60.0


class Deadlines:
    """Stops answers in time, each by one task; one that is answered with a newer token meanwhile goes on."""

    def __init__(self, intake: Intake, replies: Replies, messenger: DiscordMessenger, clock: Clock) -> None:
        self._intake = intake
        self._replies = replies
        self._messenger = messenger
        self._clock = clock
        self._ends: dict[str, float] = {}  # by question

    def resume(self, exchange: Exchange) -> None:
        """Let an exchange of an earlier run be answered, as long as its token is taken."""
        self._messenger.know(exchange.message, exchange.parts)
        if (token := token_of(exchange.message)) is not None:
            age = (self._intake.today() - snowflake_time(int(token.interaction))).total_seconds()
            self.start(exchange, _SECONDS - max(0.0, age))

    def start(self, exchange: Exchange, seconds: float | None = None) -> None:
        """End the answer after this time, unless it is started again meanwhile."""
        question, message = exchange.message.id, exchange.message
        is_running = question in self._ends
        self._ends[question] = self._clock.now() + max(0.0, _SECONDS if seconds is None else seconds)
        if not is_running:
            # The task may last longer than the texts, which can be deleted.
            message = replace(message, text="", quoted=None, files=(), further=(), reply_address=None)
            self._replies.run_beside(self._end(replace(exchange, answer=None, message=message)))

    async def _end(self, exchange: Exchange) -> None:
        question = exchange.message.id
        while (seconds := self._ends[question] - self._clock.now()) > 0:
            await self._clock.sleep(seconds)
        del self._ends[question]
        if not self._intake.exchanges.stop(exchange):
            return
        translate = self._intake.settings.translator_for(exchange.message)
        sentence = translate(
            "Discord lets me answer here for 15 minutes only, so the answer ends here. Please ask again."
        )
        log.warning("answer ended, the token of its interaction expires", exchange=exchange.id)
        try:
            await self._messenger.responses.tell(question, sentence)
        except PlatformError as error:
            log.info("the reason was not told", error=str(error))
