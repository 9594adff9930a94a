"""Votes on answers: the buttons below a finished answer, and what is said to who presses one."""

from collections.abc import Callable
from datetime import datetime

import structlog

from bot.chat.access import RIGHTS_SECONDS, Access
from bot.chat.i18n import Translate
from bot.chat.incoming import used_by
from bot.chat.settings import ChatSettings
from bot.config.schema import DEFAULT_MODEL
from bot.domain import NO_PERSONA, Author, Exchange, FinishReason, IncomingMessage, Vote, VoteResult
from bot.observability.metrics import Metrics
from bot.storage.base import Store

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SYMBOLS = {Vote.UP: "👍", Vote.DOWN: "👎"}
_SKIN_TONES = dict.fromkeys(range(0x1F3FB, 0x1F400))


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

    async def press(
        self, exchange: Exchange, vote: Vote, by: Author, press: str | None = None, locale: str | None = None
    ) -> str:
        """Store or take back a vote; return a sentence in the language of the person who pressed the button.

        `press` is the platform's id of the press, which may be delivered again; `locale` is the person's.
        """
        message = used_by(exchange.message, by, locale)
        translate = self._settings.translator_for(message)
        if not self._settings.feedback.enabled:
            return translate("Votes are not collected any more.")
        refusal = await self._refusal(message, translate)
        if refusal := refusal or self._access.command_refusal(message, translate):
            return refusal
        result = await self._store.vote(exchange, by, vote, self._today(), press)
        if result is VoteResult.REPEATED:
            # The first confirmation may not have arrived.
            return _confirmation((await self._store.own_votes(by, [exchange.id])).get(exchange.id), translate)
        if result is VoteResult.NO_ANSWER:
            return translate("That answer was deleted or is being replaced, so your vote was not saved.")
        self._count(exchange, result)
        return _confirmation(None if result is VoteResult.TAKEN_BACK else vote, translate)

    async def react(self, exchange: Exchange, vote: Vote, by: Author, *, is_added: bool) -> None:
        """Store the vote of a reaction that was added, or take it back; reactions get no reply."""
        message = used_by(exchange.message, by)
        answer, translate = exchange.answer, self._settings.translator_for(message)
        # As for the buttons: nobody votes on a sentence in place of an answer, or on one that broke off.
        is_whole = answer is not None and answer.text.strip() and answer.reason is not FinishReason.ERROR
        if not is_whole:
            return
        if is_added:
            if await self._refusal(message, translate) or self._access.command_refusal(message, translate):
                return
        elif (await self._store.own_votes(by, [exchange.id])).get(exchange.id) is not vote:
            return  # no limit keeps a vote that was taken back, and nothing is written where there is none
        result = await self._store.react(exchange, by, vote, self._today(), is_added=is_added)
        if result not in (VoteResult.REPEATED, VoteResult.NO_ANSWER):
            self._count(exchange, result)

    async def _refusal(self, message: IncomingMessage, translate: Translate) -> str | None:
        """Return a sentence if the bot does not answer the author of a message in its place."""
        who = self._settings.rules.who(message)
        return await self._access.asker_refusal(message, who, translate, RIGHTS_SECONDS)

    def _count(self, exchange: Exchange, result: VoteResult) -> None:
        answer = exchange.answer
        model, persona = (answer.model, answer.persona) if answer is not None else ("", "")
        self._metrics.votes.labels(model or DEFAULT_MODEL, persona or NO_PERSONA, result.value).inc()
        log.info("vote", exchange=exchange.id, result=result.value)


def vote_of(emoji: str) -> Vote | None:
    """Return the meaning of a reaction with this emoji, of any skin tone; None for another emoji."""
    plain = emoji.translate(_SKIN_TONES)
    return next((vote for vote, symbol in SYMBOLS.items() if symbol == plain), None)


def _confirmation(vote: Vote | None, translate: Translate) -> str:
    if vote is None:
        return translate("Your vote was taken back.")
    return translate("Saved: {vote}. Press it again to take it back.").format(vote=SYMBOLS[vote])
