"""Ends answers in guest places while Discord still takes their tokens: for 15 minutes."""

import structlog

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
    """Stops answers in time; one that is answered with a newer token meanwhile goes on."""

    def __init__(self, intake: Intake, replies: Replies, messenger: DiscordMessenger, clock: Clock) -> None:
        self._intake = intake
        self._replies = replies
        self._messenger = messenger
        self._clock = clock

    def resume(self, exchange: Exchange) -> None:
        """Let an exchange of an earlier run be answered, as long as its token is taken."""
        message = exchange.message
        self._messenger.know(message, exchange.parts)
        if (token := token_of(message)) is not None:
            age = (self._intake.today() - message.sent_at).total_seconds()
            self.start(exchange, token, _SECONDS - max(0.0, age))

    def start(self, exchange: Exchange, token: str, seconds: float = _SECONDS) -> None:
        """End the answer after this time, unless it has another token by then."""
        self._replies.run_beside(self._end(exchange, token, seconds))

    async def _end(self, exchange: Exchange, token: str, seconds: float) -> None:
        await self._clock.sleep(max(0.0, seconds))
        question, responses = exchange.message.id, self._messenger.responses
        if responses.token_of(question) != token or not self._intake.exchanges.stop(exchange):
            return
        translate = self._intake.settings.translator_for(exchange.message)
        sentence = translate(
            "Discord lets me answer here for 15 minutes only, so the answer ends here. Please ask again."
        )
        log.warning("answer ended, the token of its interaction expires", exchange=exchange.id)
        try:
            await responses.tell(question, sentence)
        except PlatformError as error:
            log.info("the reason was not told", error=str(error))
