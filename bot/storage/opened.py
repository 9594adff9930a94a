"""An open database: its transactions and keys, and what is read from it, decrypted."""

import asyncio
import heapq
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial, wraps
from itertools import count
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import structlog
from sqlalchemy import ColumnElement, CursorResult, Row, Select, Update, and_, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.domain import Author, ChannelKey, Exchange, FinishReason, FurtherMessage, Kind, SettingChange, Status, Upkeep
from bot.errors import StoreDamaged, StoreError
from bot.observability.metrics import Metrics
from bot.storage import connections, migrate
from bot.storage.base import History
from bot.storage.conditions import NO_CHANGE, exactly, here, recent, with_threads, within
from bot.storage.conversion import Conversion
from bot.storage.encryption import DamagedRow, KeyMissing
from bot.storage.errors import map_errors
from bot.storage.further import read_further, with_further
from bot.storage.key_file import path_beside
from bot.storage.keys import FileKeys, keys_of
from bot.storage.lost_keys import LostKeys
from bot.storage.master_key import NO_MASTER_KEY, MasterKeys
from bot.storage.open_files import DatabaseHeader, OpenFiles
from bot.storage.pictures import PICTURES_AND_KEYS, with_pictures
from bot.storage.rows import to_exchange
from bot.storage.schema import EXCHANGE, IS_KEPT, channels, exchanges, parts, settings
from bot.storage.settings import select_changes, select_settings, to_changes
from bot.storage.transactions import Transactions, write_first_page
from bot.storage.vault import Vault, WriteTransaction
from bot.util.aio import detach_on_cancel, join_task
from bot.util.clock import Calendar, Clock, MonotonicClock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
AnyStore = TypeVar("AnyStore", bound="OpenStore")

# Without these methods no message is answered.
_ESSENTIAL = ("enqueue", "claim_owed")

# A question that the model has answered.  Built once: see conditions.py.
_IS_TURN = and_(
    exchanges.c.kind == Kind.CHAT,
    exchanges.c.status.in_([Status.ANSWERED, Status.DELIVERED]),
    func.length(exchanges.c.answer) > 0,
    exchanges.c.reason != FinishReason.ERROR,
)

# Rows that are converted before the event loop runs again: 600 at once took 90 ms.
_SLICE = 10


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


async def rows_of(result: CursorResult[Any]) -> list[Row[Any]]:
    """Return the rows of a result, whose values are converted here; the event loop runs in between."""
    rows: list[Row[Any]] = []
    for some in result.partitions(_SLICE):
        rows += some
        await asyncio.sleep(0)
    return rows


class OpenStore:
    """The database, and the methods of the store that change nothing; see SqlStore."""

    def __init__(
        self,
        url: str,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        *,
        master: MasterKeys = NO_MASTER_KEY,
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
        self._vault = Vault(keys_of(self._location, master))
        self._conversion = Conversion(self._location, self._vault, self._transactions, self._writing, self._clock)
        self._calendar = Calendar(self._clock)
        self._lost_keys = LostKeys(self._vault, self._transactions, self._writing, self._calendar.today)
        self._header: DatabaseHeader | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._damaged: set[int] = set()  # rows that were reported
        self._damage: StoreDamaged | None = None  # of which the program ends

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
            with map_errors(self._location.name):
                self._watch_files()
        except BaseException:
            await self._dispose()
            raise

        self._tasks = [asyncio.create_task(self._conversion.run(), name="conversion")]
        if self._vault.keys.mismatch is not None:
            self._tasks.append(asyncio.create_task(self._lost_keys.run(), name="lost keys"))

    def _watch_files(self) -> None:
        keys, path = self._vault.keys, self._location.path
        if isinstance(keys, FileKeys) and path is not None:
            self._header = DatabaseHeader(path)
            self._transactions.files = OpenFiles({path: self._header.marks, path_beside(path): keys.marks})
            if self._header.is_of_backup:
                self._transactions.start(self._write_first_page(), "first page")

    async def _write_first_page(self) -> None:
        with suppress(StoreError):  # the disk is full: another write of the page does it
            async with self._transactions.writing() as tx:
                await write_first_page(tx)
            await self._transactions.checkpoint()

    @property
    def upkeep(self) -> Upkeep:
        """Return what an operator should know of the database."""
        is_rewriting = self._location.path is not None and self._vault.encrypted_to is not None
        return Upkeep(self._conversion.left, is_rewriting, self._lost_keys.count)

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transactions.wait_idle()
        await self._dispose()

    async def _dispose(self) -> None:
        try:
            await self._transactions.dispose()
        finally:
            self._vault.keys.close()
            if self._header is not None:
                self._header.close()
                self._header = None

    def check_files(self) -> None:
        """Check that the database can go on; blocks for as long as its disk takes.

        Raises:
            StoreLost: The files were deleted or replaced.
            StoreDamaged: Messages could not be stored or claimed, and trying again does not help.
        """
        self._transactions.files.check()
        if self._damage is not None:
            raise self._damage

    async def _shield(self, name: str, work: Coroutine[Any, Any, Result]) -> Result:
        with self._metrics.store_call(name, self._clock):
            try:
                return await detach_on_cancel(self._transactions.start(work, name))
            except StoreDamaged as error:
                if name in _ESSENTIAL:
                    self._damage = error
                raise

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
            rows = await rows_of(await tx.execute(query))
            readable, missing = await self._decrypt(tx, rows)
        if missing and self._location.path is not None:
            # A deletion may have come between the row and its key.
            async with self._transactions.reading() as tx:
                rows = await rows_of(await tx.execute(query))
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
            further: dict[int, tuple[FurtherMessage, ...]] = {}
            if ids := [row.id for row in some if row.has_further]:
                further = await tx.run_sync(partial(read_further, vault=self._vault, ids=ids))
            for row, decrypted in zip(some, decrypted_rows, strict=True):
                try:
                    if isinstance(decrypted, DamagedRow):
                        raise decrypted
                    readable.append(with_further(to_exchange(decrypted), further.get(row.id)))
                except DamagedRow as error:
                    is_missing = isinstance(error, KeyMissing)
                    if is_missing:
                        missing.add(row.id)
                    if (is_final or not is_missing) and row.id not in self._damaged:
                        self._damaged.add(row.id)
                        log.error("exchange skipped, its row is damaged", exchange=row.id, column=str(error))
            await asyncio.sleep(0)
        return readable, missing

    async def _with_pictures(self, tx: AsyncConnection, found: list[Exchange], most: int) -> list[Exchange]:
        """Load the pictures of the newest exchanges that have any."""
        ids = [exchange.id for exchange in found if any(file.is_picture for file in exchange.message.files)]
        newest = sorted(ids)[-most:]
        rows = (await tx.execute(select(exchanges.c.id, *PICTURES_AND_KEYS).where(exchanges.c.id.in_(newest)))).all()
        loaded = {
            row["id"]: row
            for row in await tx.run_sync(partial(self._vault.decrypt, table=exchanges, rows=rows))
            if not isinstance(row, DamagedRow)
        }
        return [
            replace(exchange, message=with_pictures(exchange.message, loaded[exchange.id]))
            if exchange.id in loaded
            else exchange
            for exchange in found
        ]

    @property
    def _unclaimed(self) -> ColumnElement[bool]:
        """Rows that no worker of this process has claimed; another process that had is gone."""
        return or_(exchanges.c.owner.is_(None), exchanges.c.owner.not_like(f"{self.life}.%"))

    def _by(self, author: Author) -> ColumnElement[bool]:
        names = self._vault.pseudonyms(author.platform, author.id)
        return and_(exchanges.c.author_platform == author.platform, exchanges.c.author.in_(names))

    # Methods that change nothing.

    @shielded
    async def history(self, before: Exchange, limit: int, *, is_own: bool = False, pictures: int = 0) -> History:
        answered = exactly(before.message.channel), exchanges.c.id < before.id, _IS_TURN
        newest = select(*EXCHANGE).where(IS_KEPT, *answered).order_by(exchanges.c.id.desc()).limit(limit)
        if is_own:
            newest = newest.where(self._by(before.message.author), recent(before))
        is_now = select(*EXCHANGE).where(exchanges.c.id == before.id)
        told = select(channels.c.is_shortening_told).where(here(before.message.channel))
        for is_final in (False, True):
            async with self._transactions.reading() as tx:
                rows = (await tx.execute(newest)).all()
                now = (await tx.execute(is_now)).one()
                is_told = (await tx.execute(told)).scalar()
                readable, missing = await self._decrypt(tx, [now, *reversed(rows)], is_final=is_final)
                if pictures:
                    readable = await self._with_pictures(tx, readable, pictures)
            if not missing:
                break
        if not readable or readable[0].id != before.id:
            raise StoreError(f"the row of exchange {before.id} is damaged")
        return History(tuple(readable[1:]), readable[0], bool(is_told))

    @shielded
    async def is_context_told(self, channel: ChannelKey) -> bool:
        told = select(channels.c.thread).where(with_threads(channel), channels.c.is_context_told)
        async with self._transactions.reading() as tx:
            return (await tx.execute(told.limit(1))).first() is not None

    @shielded
    async def find(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        # Ids are unique in their channel, and some events omit the thread, so it is left out.
        return await self._find(within(channel), exchanges.c.message == message_id)

    @shielded
    async def find_by_reply(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        carried = exchanges.c.id == parts.c.exchange, parts.c.message == message_id
        # An expression: with the columns' index SQLite would read the whole channel.
        key = zip((exchanges.c.platform, exchanges.c.channel), (channel.platform, channel.channel), strict=True)
        return await self._find(*carried, *(column.concat("") == value for column, value in key))

    @shielded
    async def has_history(self, channel: ChannelKey) -> bool:
        async with self._transactions.reading() as tx:
            return (await tx.execute(select(channels.c.thread).where(here(channel)))).first() is not None

    @shielded
    async def latest(self, channel: ChannelKey, author: Author | None = None) -> Exchange | None:
        newest = select(*EXCHANGE).where(exactly(channel), IS_KEPT, exchanges.c.kind == Kind.CHAT)
        if author is not None:
            newest = newest.where(self._by(author))
        return next(iter(await self._select(newest.order_by(exchanges.c.id.desc()).limit(1))), None)

    @shielded
    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        query = select(channels.c.channel, channels.c.thread, channels.c.last_message)
        query = query.where(channels.c.platform == platform)
        newest: dict[ChannelKey, str] = {}
        async with self._transactions.reading() as tx:
            # Where each question opens a thread, a year has tens of thousands.
            for rows in (await tx.execute(query)).partitions(_SLICE):
                newest |= {ChannelKey(platform, row.channel, row.thread or None): row.last_message for row in rows}
                await asyncio.sleep(0)
        return newest

    @shielded
    async def said_since(self, platform: str, time: datetime) -> list[Exchange]:
        said = and_(exchanges.c.platform == platform, exchanges.c.sent_at >= time, IS_KEPT)
        return sorted(await self._select(select(*EXCHANGE).where(said)), key=lambda exchange: exchange.id)

    @shielded
    async def said_in(self, channel: ChannelKey, limit: int) -> list[Exchange]:
        newest = select(*EXCHANGE).where(IS_KEPT, exactly(channel)).order_by(exchanges.c.id.desc()).limit(limit)
        return (await self._select(newest))[::-1]

    @shielded
    async def openings(self, channel: ChannelKey, limit: int) -> list[Exchange]:
        said = and_(
            exchanges.c.platform == channels.c.platform,
            exchanges.c.channel == channels.c.channel,
            exchanges.c.thread == channels.c.thread,
        )
        first = select(func.min(exchanges.c.id)).where(IS_KEPT, said).correlate(channels).scalar_subquery()
        threads = select(first.label("first"), channels.c.last_exchange).where(with_threads(channel))
        async with self._transactions.reading() as tx:
            rows = (await tx.execute(threads)).all()
        last = {row.first: row.last_exchange for row in rows if row.first is not None}
        newest = heapq.nlargest(limit, last, key=last.__getitem__)
        opened = await self._select(select(*EXCHANGE).where(exchanges.c.id.in_(newest)))
        return sorted(opened, key=lambda exchange: last[exchange.id], reverse=True)

    @shielded
    async def settings(self) -> list[SettingChange]:
        return await self._changes(select_settings())

    @shielded
    async def setting_changes(self, place: str | None, limit: int, setting: str | None = None) -> list[SettingChange]:
        return await self._changes(select_changes(place, limit, setting))

    async def _changes(self, query: Select[Any]) -> list[SettingChange]:
        async with self._transactions.reading() as tx:
            rows = (await tx.execute(query)).all()
            decrypted = await tx.run_sync(partial(self._vault.decrypt, table=settings, rows=rows))
        return list(to_changes(rows, decrypted))

    async def _find(self, *conditions: ColumnElement[bool]) -> Exchange | None:
        return next(iter(await self._select(select(*EXCHANGE).where(*conditions).limit(1))), None)
