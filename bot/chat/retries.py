"""Another answer to a question: /retry, the Regenerate button, an edit."""

from contextlib import suppress

from bot.chat.access import Access
from bot.chat.exchanges import Exchanges, refused
from bot.chat.settings import ChatSettings
from bot.domain import Answer, Exchange
from bot.errors import ClaimLost
from bot.observability.metrics import Metrics
from bot.storage.base import Store
from bot.util.clock import Clock
from bot.util.retry import retry_until_stored


class Retries:
    """Finds the question that a /retry refers to, and requeues it."""

    def __init__(
        self, access: Access, exchanges: Exchanges, store: Store, settings: ChatSettings, clock: Clock, metrics: Metrics
    ) -> None:
        self._access = access
        self._exchanges = exchanges
        self._store = store
        self._settings = settings
        self._clock = clock
        self._metrics = metrics

    async def target(self, retry: Exchange) -> Exchange | None:
        """Return the author's newest question in the channel; an admin's /retry covers everybody's."""
        author, channel = retry.message.author, retry.message.channel
        by = None if self._access.is_admin(author) else author
        # The /retry is stored, so its platform will not send it again.
        return await retry_until_stored(lambda: self._store.latest(channel, by), self._clock)

    async def resolve(self, retry: Exchange, target: Exchange | None) -> Exchange:
        """Requeue the target and return it; return the /retry itself where it gets a sentence instead."""
        if target is None:
            return retry
        if refusal := self.refusal(target):
            return await self._exchanges.answer_with(retry, refused(refusal))
        requeued = await retry_until_stored(lambda: self._exchanges.requeue(target, is_admitted=True), self._clock)
        if requeued is None:
            return retry
        try:
            with suppress(ClaimLost):  # the /retry was deleted meanwhile
                await self._exchanges.settle(retry, Answer(""))  # the answer is the other reply, edited
        except BaseException:
            self._exchanges.release(requeued)
            raise
        return requeued

    def refusal(self, exchange: Exchange) -> str | None:
        """Return why the question is not answered again; asked before its old answer is dropped."""
        translate = self._settings.translator_for(exchange.message)
        refusal = self._access.refusal(exchange.message, translate, self._exchanges.depth(exchange))
        if refusal is not None:
            self._metrics.refusals.labels("question").inc()
        return refusal
