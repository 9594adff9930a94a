"""Votes on answers: the buttons below a finished answer, and what is said to who presses one."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import structlog

from bot.chat.access import Access
from bot.chat.settings import ChatSettings
from bot.config.schema import DEFAULT_MODEL
from bot.domain import NO_PERSONA, Author, Exchange, Vote, VoteResult
from bot.observability.metrics import Metrics
from bot.storage.base import Store

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SYMBOLS = {Vote.UP: "👍", Vote.DOWN: "👎"}


class Feedback:
    """Stores votes, counts them, and answers with a sentence.

    Everybody whom the bot answers in the channel may vote, as often as they may send commands.
    """

    def __init__(
        self, access: Access, store: Store, settings: ChatSettings, today: Callable[[], datetime], metrics: Metrics
    ) -> None:
        self._access = access
        self._store = store
        self._settings = settings
        self._today = today
        self._metrics = metrics

    async def press(self, exchange: Exchange, vote: Vote, by: Author) -> str:
        """Store or take back a vote; return the sentence for the person who pressed the button."""
        translate = self._settings.translator_for(exchange.message)
        if not self._settings.feedback.enabled:
            return translate("Votes are not collected any more.")
        if refusal := self._access.command_refusal(replace(exchange.message, author=by), translate):
            return refusal
        result = await self._store.vote(exchange, by, vote, self._today())
        if result is VoteResult.NO_ANSWER:
            return translate("That answer was deleted or is being replaced, so your vote was not saved.")
        answer = exchange.answer
        model, persona = (answer.model, answer.persona) if answer is not None else ("", "")
        self._metrics.votes.labels(model or DEFAULT_MODEL, persona or NO_PERSONA, result.value).inc()
        log.info("vote", exchange=exchange.id, result=result.value)
        if result is VoteResult.TAKEN_BACK:
            return translate("Your vote was taken back.")
        return translate("Saved: {vote}. Press it again to take it back.").format(vote=SYMBOLS[vote])
