"""Another answer to a question: /retry, the Regenerate button, an edit."""

from contextlib import suppress
from dataclasses import replace

from bot.chat.access import RIGHTS_SECONDS, Access
from bot.chat.exchanges import Exchanges
from bot.chat.quotas import Quotas
from bot.chat.settings import ChatSettings
from bot.chat.stream import refused
from bot.domain import Answer, Author, Exchange, FurtherMessage, IncomingMessage
from bot.errors import ClaimLost
from bot.observability.metrics import Metrics
from bot.storage.base import Store
from bot.util.clock import Clock
from bot.util.retry import retry_until_stored


def with_roles_of(exchange: Exchange, by: Author) -> Exchange:
    """Return the exchange with the roles that its author has by now, if it is the author who asks again."""
    author = exchange.message.author
    if by.key != author.key:
        return exchange
    return replace(exchange, message=replace(exchange.message, author=replace(author, roles=by.roles)))


class Retries:
    """Finds the question that a /retry refers to, and requeues it."""

    def __init__(
        self,
        access: Access,
        exchanges: Exchanges,
        store: Store,
        settings: ChatSettings,
        quotas: Quotas,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._access = access
        self._exchanges = exchanges
        self._store = store
        self._settings = settings
        self._quotas = quotas
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
        target = with_roles_of(target, retry.message.author)
        if refusal := await retry_until_stored(lambda: self.refusal(target), self._clock):
            return await self._exchanges.answer_with(retry, refused(refusal))
        address = retry.message.reply_address
        requeued = await retry_until_stored(
            lambda: self._exchanges.requeue(target, reply_address=address, is_admitted=True), self._clock
        )
        if requeued is None:
            return retry
        try:
            with suppress(ClaimLost):  # the /retry was deleted meanwhile
                await self._exchanges.settle(retry, Answer(""))  # the answer is the other reply, edited
        except BaseException:
            self._exchanges.release(requeued)
            raise
        return requeued

    async def refusal(self, exchange: Exchange, reader: IncomingMessage | None = None) -> str | None:
        """Return why the question is not answered again; asked before its old answer is dropped.

        The sentence has the language of its author, or of the `reader`.

        Raises:
            StoreError: What was used of a quota cannot be read.
        """
        translate = self._settings.translator_for(reader or exchange.message)
        who = self._settings.rules.who(exchange.message)
        refusal = await self._access.asker_refusal(exchange.message, who, translate, RIGHTS_SECONDS)
        refusal = refusal or await self._quotas.refusal(exchange.message, translate)
        refusal = refusal or self._access.refusal(exchange.message, translate, self._exchanges.depth(exchange))
        if refusal is not None:
            self._metrics.refusals.labels("question").inc()
        return refusal

    async def refusal_of_part(self, exchange: Exchange, part: FurtherMessage) -> str | None:
        """Return why an answered question is not answered again with one more message that was sent with it.

        It was let through by the other limits, and its answers count as one.

        Raises:
            StoreError: What was used of a quota cannot be read.
        """
        message = replace(exchange.message, further=(*exchange.message.further, part))
        translate = self._settings.translator_for(message)
        refusal = self._access.text_refusal(message, translate)
        return refusal or await self._quotas.refusal(message, translate, is_counted=True)
