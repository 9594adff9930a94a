"""Context messages: those before a question and those that it links to, read from its platform and kept with it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from bot.chat.access import Access
from bot.chat.exchanges import Exchanges
from bot.chat.worker import Worker
from bot.domain import FurtherKind, FurtherMessage, IncomingMessage
from bot.errors import BotError, ClaimLost, StoreError
from bot.util.aio import race

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Returns the last messages of the question's conversation before it, at most so many, without the bot's own.
ReadBefore = Callable[[IncomingMessage, int], Awaitable[Sequence[FurtherMessage]]]
# Returns the messages that the question links to and its author may read.
ReadLinked = Callable[[IncomingMessage], Awaitable[Sequence[FurtherMessage]]]
# Seconds for reading either.
_SECONDS = 5.0
# Characters of each message.
_LONGEST = 4000


class Context:
    """Reads what belongs to a question with the functions that the platforms' adapters have put here."""

    def __init__(self, access: Access, exchanges: Exchanges) -> None:
        self.before: dict[str, ReadBefore] = {}
        self.linked: dict[str, ReadLinked] = {}
        self._access = access
        self._exchanges = exchanges

    async def read(self, worker: Worker, count: int) -> bool:
        """Read and store the last `count` messages before the worker's question, and those that it links to.

        Return False if they could not be read.  What is stored already stays: the store drops linked ones with the text
        that has the links.  A stopped question reads no further.

        Raises:
            ClaimLost: Another worker goes on with the exchange.
        """
        message = worker.exchange.message
        platform = message.channel.platform
        stored = {each.kind for each in message.further}
        reads_before = count > 0 and not message.is_direct and FurtherKind.BEFORE not in stored
        before = self.before.get(platform) if reads_before else None
        reads_linked = "://" in message.whole.text and FurtherKind.LINKED not in stored
        linked = self.linked.get(platform) if reads_linked else None
        if before is None and linked is None:
            return True
        kinds = [
            *([] if before is None else [FurtherKind.BEFORE]),
            *([] if linked is None else [FurtherKind.LINKED]),
        ]

        async def store() -> None:
            found = [
                *([] if before is None else await before(message, count)),
                *([] if linked is None else await linked(message.whole)),
            ]
            known = {message.id, *(each.id for each in message.further)}
            read = {
                (each.channel, each.id): replace(each, text=each.text[:_LONGEST])
                for each in found
                if each.text.strip() and each.id not in known and not self._access.is_denied(each.author)
            }
            await self._exchanges.record_context(worker, list(read.values()), kinds)

        try:
            async with asyncio.timeout(_SECONDS):
                # Once more if a message is edited or deleted meanwhile.
                reading = asyncio.create_task(self._exchanges.read_undeleted(store), name="context")
                await race(reading, worker.wait_stopped())
            if not reading.cancelled():
                reading.result()
        except (ClaimLost, StoreError):
            raise
        except (BotError, TimeoutError) as error:
            log.info("messages before a question were not read", error=str(error) or "timeout")
            return False
        return True
