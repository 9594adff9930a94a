"""An open database: transactions, keys, and rows that are decrypted."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial, wraps
from itertools import count
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import structlog
from sqlalchemy import ColumnElement, Row, Select, Update, and_, or_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.domain import Author, Exchange
from bot.observability.metrics import Metrics
from bot.storage import connections, migrate
from bot.storage.conditions import NO_CHANGE
from bot.storage.conversion import Conversion
from bot.storage.encryption import DamagedRow, KeyMissing
from bot.storage.keys import keys_of
from bot.storage.rows import to_exchange
from bot.storage.schema import exchanges
from bot.storage.transactions import Transactions
from bot.storage.vault import Vault, WriteTransaction
from bot.util.aio import detach_on_cancel, join_task
from bot.util.clock import Calendar, Clock, MonotonicClock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
AnyStore = TypeVar("AnyStore", bound="OpenStore")

# Rows that are converted before the event loop runs again: 600 at once took 90 ms.
_SLICE = 50


def shielded(
    method: Callable[Concatenate[AnyStore, Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[AnyStore, Arguments], Coroutine[Any, Any, Result]]:
    """Run the method to completion even if its caller is cancelled.

    A task that is cancelled within a transaction can leave the file locked for writing
    while the pool looks idle.  So the caller is cancelled at once, and the transaction
    continues in a task of the store, which waits for it when it closes.
    """

    @wraps(method)
    async def call(store: AnyStore, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return await store._shield(method.__name__, method(store, *args, **kwargs))

    return call


def claiming(
    method: Callable[Concatenate[AnyStore, str, Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[AnyStore, Arguments], Coroutine[Any, Any, Result]]:
    """Shield the method, and pass it a new owner to claim for.

    A claim whose acknowledgement is lost, by an error or a cancellation, belongs to no
    worker: whether it was committed or not, it is void for the next claiming method.
    """

    @wraps(method)
    async def call(store: AnyStore, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        owner = f"{store.life}.{next(store.claims)}"
        store.claiming_owners.add(owner)

        async def claim() -> Result:
            try:
                return await method(store, owner, *args, **kwargs)
            finally:
                store.claiming_owners.discard(owner)

        try:
            return await store._shield(method.__name__, claim())
        except BaseException:
            abandon = update(exchanges).where(exchanges.c.owner == owner).values(owner=None)
            store.void.append((owner, abandon))
            raise

    return call


class OpenStore:
    """What the methods of the store share; see SqlStore."""

    def __init__(
        self,
        url: str,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        *,
        busy_timeout: float = connections.BUSY_TIMEOUT,
        queue_timeout: float = 30.0,
        slow_after: float = 10.0,
    ) -> None:
        self._url = url
        self._clock = clock or MonotonicClock()
        self._metrics = metrics or Metrics()
        self.life = secrets.token_hex(8)  # of this process; claims of earlier ones are void
        self.claims = count()
        # Statements that take back released and abandoned claims, the latter with their owners.
        self.void: list[tuple[str | None, Update]] = []
        self.claiming_owners: set[str] = set()  # of claiming methods that have not ended
        self._location = connections.locate(url)
        self._busy_timeout = busy_timeout
        self._transactions = Transactions(
            self._location, busy_timeout=busy_timeout, queue_timeout=queue_timeout, slow_after=slow_after
        )
        self._vault = Vault(keys_of(self._location))
        self._conversion: asyncio.Task[None] | None = None
        self._damaged: set[int] = set()  # rows that were reported
        self._calendar = Calendar(self._clock)

    async def __aenter__(self) -> Self:
        try:
            await join_task(self._transactions.start(self._open(), "open"))
        except asyncio.CancelledError:
            await join_task(asyncio.create_task(self._close()))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await join_task(asyncio.create_task(self._close()))

    async def _open(self) -> None:
        await asyncio.to_thread(migrate.upgrade, self._url, self._busy_timeout)
        try:
            async with self._writing() as tx:
                # Missing permissions show in a transaction; on a server only in a change.
                if self._location.path is None:
                    await tx.execute(NO_CHANGE)
                await tx.run_sync(lambda _: self._vault.open(tx.keys))
        except BaseException:
            self._vault.keys.close()
            await self._transactions.dispose()
            raise

        conversion = Conversion(self._location, self._vault, self._transactions, self._writing, self._clock)
        self._conversion = asyncio.create_task(conversion.run(), name="conversion")

    async def _close(self) -> None:
        if self._conversion is not None:
            self._conversion.cancel()
            await asyncio.wait([self._conversion])
        await self._transactions.wait_idle()
        await self._transactions.dispose()
        self._vault.keys.close()

    async def _shield(self, name: str, work: Coroutine[Any, Any, Result]) -> Result:
        with self._metrics.store_call(name, self._clock):
            return await detach_on_cancel(self._transactions.start(work, name))

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[WriteTransaction]:
        """Begin a transaction that writes; the keys of what it deletes are deleted when this ends."""
        is_prepared, tx = False, None
        try:
            async with self._transactions.writing() as connection:
                tx = WriteTransaction(connection, self._vault)
                yield tx
                await tx.prepare()
                is_prepared = True
        except BaseException:
            # Whether a commit that failed was made is unknown: its texts may be there, and need their keys.
            if tx is not None and not is_prepared:
                await tx.finish(is_committed=False)
            raise
        await tx.finish()

    @asynccontextmanager
    async def _claiming(self) -> AsyncIterator[WriteTransaction]:
        """Begin a transaction that claims, and in which released and abandoned claims are void."""
        async with self._writing() as tx:
            # A claim may be abandoned before its transaction runs: until that has ended, it cannot be voided.
            void = [entry for entry in self.void if entry[0] not in self.claiming_owners]
            for _, statement in void:
                await tx.execute(statement)
            yield tx
        self.void = [entry for entry in self.void if entry not in void]

    async def _execute(self, statement: Update) -> bool:
        async with self._transactions.writing() as tx:
            return (await tx.execute(statement)).rowcount == 1

    async def _select(self, query: Select[Any]) -> list[Exchange]:
        """Return the exchanges of a query, without damaged ones."""
        async with self._transactions.reading() as tx:
            rows = (await tx.execute(query)).all()
            readable, missing = await self._decrypt(tx, rows)
        if missing and self._location.path is not None:
            # A deletion may have come between the row and its key.
            async with self._transactions.reading() as tx:
                rows = (await tx.execute(query)).all()
                readable, _ = await self._decrypt(tx, rows, is_final=True)
        return readable

    async def _decrypt(
        self, tx: AsyncConnection, rows: Iterable[Row[Any]], *, is_final: bool = False
    ) -> tuple[list[Exchange], set[int]]:
        """Convert rows, and return the ids of those without a key; log each damaged one once.

        A start may read thousands: the event loop runs in between.
        """
        readable: list[Exchange] = []
        missing: set[int] = set()
        waiting = list(rows)
        for start in range(0, len(waiting), _SLICE):
            some = waiting[start : start + _SLICE]
            decrypted_rows = await tx.run_sync(partial(self._vault.decrypt, table=exchanges, rows=some))
            for row, decrypted in zip(some, decrypted_rows, strict=True):
                try:
                    if isinstance(decrypted, DamagedRow):
                        raise decrypted
                    readable.append(to_exchange(decrypted))
                except DamagedRow as error:
                    is_missing = isinstance(error, KeyMissing)
                    if is_missing:
                        missing.add(row.id)
                    if (is_final or not is_missing) and row.id not in self._damaged:
                        self._damaged.add(row.id)
                        log.error("exchange skipped, its row is damaged", exchange=row.id, column=str(error))
            await asyncio.sleep(0)
        return readable, missing

    @property
    def _unclaimed(self) -> ColumnElement[bool]:
        """Rows that no worker of this process has claimed; another process that had is gone."""
        return or_(exchanges.c.owner.is_(None), exchanges.c.owner.not_like(f"{self.life}.%"))

    def _by(self, author: Author) -> ColumnElement[bool]:
        names = self._vault.pseudonyms(author.platform, author.id)
        return and_(exchanges.c.author_platform == author.platform, exchanges.c.author.in_(names))
