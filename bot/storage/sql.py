"""The Store in SQL: a SQLite file, or a PostgreSQL server."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import wraps
from itertools import count
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, assert_never

import structlog
from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Insert,
    Integer,
    Row,
    Update,
    and_,
    delete,
    false,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from bot import lifecycle
from bot.domain import Answer, Author, ChannelKey, Exchange, FinishReason, IncomingMessage, Kind, SettingChange, Status
from bot.errors import NotErased, StoreError
from bot.lifecycle import ClaimEffect, Transition
from bot.observability.metrics import Metrics
from bot.storage import connections, migrate
from bot.storage.base import History
from bot.storage.group_commit import GroupCommit
from bot.storage.quoted_text import Said, redact_quotes, replace_quotes, select_said
from bot.storage.rows import BLANK, UNANSWERED, UNQUOTED, DamagedRow, answer_values, message_values, to_exchange
from bot.storage.schema import EXCHANGE, IS_KEPT, IS_OWED, IS_TOMBSTONE, SafeText, channels, exchanges, parts
from bot.storage.settings import (
    expire_changes,
    forget_author,
    insert_change,
    rename_places,
    select_changes,
    select_settings,
    to_changes,
)
from bot.storage.transactions import Transactions
from bot.storage.vacuum import Vacuum
from bot.util.aio import detach_on_cancel, join_task
from bot.util.clock import Calendar, Clock, MonotonicClock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# An open command may be the one that deletes, and is still owed its reply.
_NOT_OPEN_COMMAND = or_(exchanges.c.kind != Kind.COMMAND, exchanges.c.status != Status.OPEN)

# The key of a message.
_KEY = ["platform", "channel", "message"]

# The `failure` of a row whose message was deleted, not only cleared.
_DELETED = "deleted"

# A platform delivers a message at most so long after its deletion.
_TOMBSTONES_KEPT = timedelta(days=1)

# Rows that are deleted in one transaction for their age.
_BATCH = 500

# Rows that are converted before the event loop runs again: 600 at once took 90 ms.
_SLICE = 50

_NO_CHANGE = update(exchanges).where(false()).values(status=Status.OPEN)


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A message to store, and to claim for this owner."""

    message: IncomingMessage
    kind: Kind
    owner: str | None


def shielded(
    method: Callable[Concatenate["SqlStore", Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate["SqlStore", Arguments], Coroutine[Any, Any, Result]]:
    """Run the method to completion even if its caller is cancelled.

    A task that is cancelled within a transaction can leave the file locked for writing
    while the pool looks idle.  So the caller is cancelled at once, and the transaction
    continues in a task of the store, which waits for it when it closes.
    """

    @wraps(method)
    async def call(store: "SqlStore", /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return await store._shield(method.__name__, method(store, *args, **kwargs))

    return call


def claiming(
    method: Callable[Concatenate["SqlStore", str, Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate["SqlStore", Arguments], Coroutine[Any, Any, Result]]:
    """Shield the method, and pass it a new owner to claim for.

    A claim whose acknowledgement is lost, by an error or a cancellation, belongs to no
    worker: whether it was committed or not, it is void for the next claiming method.
    """

    @wraps(method)
    async def call(store: "SqlStore", /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        owner = f"{store._life}.{next(store._claims)}"
        store._claiming_owners.add(owner)

        async def claim() -> Result:
            try:
                return await method(store, owner, *args, **kwargs)
            finally:
                store._claiming_owners.discard(owner)

        try:
            return await store._shield(method.__name__, claim())
        except BaseException:
            abandon = update(exchanges).where(exchanges.c.owner == owner).values(owner=None)
            store._void.append((owner, abandon))
            raise

    return call


class SqlStore:
    """The Store on the database that `url` names.

    Writers take turns in the order of their calls, and rows are numbered in that order.

    After clear, forget, erase and expire a SQLite file is vacuumed (vacuum.py), at once or
    when the time budget allows.  It waits up to `vacuum_patience` seconds for other readers of the
    file and is retried if that was not enough; clear and forget then raise NotErased.

    `busy_timeout` limits the wait for another program's lock, `queue_timeout` the wait for
    the writer's turn; a transaction older than `slow_after` is logged.  All in seconds.
    """

    def __init__(
        self,
        url: str,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        *,
        busy_timeout: float = connections.BUSY_TIMEOUT,
        queue_timeout: float = 30.0,
        vacuum_patience: float = 1.0,
        slow_after: float = 10.0,
    ) -> None:
        self._url = url
        self._clock = clock or MonotonicClock()
        self._metrics = metrics or Metrics()
        self._life = secrets.token_hex(8)  # of this process; claims of earlier ones are void
        self._claims = count()
        # Statements that take back released and abandoned claims, the latter with their owners.
        self._void: list[tuple[str | None, Update]] = []
        self._claiming_owners: set[str] = set()  # of claiming methods that have not ended
        self._location = connections.locate(url)
        self._busy_timeout = busy_timeout
        self._transactions = Transactions(
            self._location, busy_timeout=busy_timeout, queue_timeout=queue_timeout, slow_after=slow_after
        )
        self._arrivals = GroupCommit(self._transactions, self._claiming, self._insert_all)
        self._damaged: set[int] = set()  # rows that were reported
        # The dialects' own inserts, alike but for their module.
        self._insert = sqlite.insert if self._location.path is not None else postgresql.insert
        self._calendar = Calendar(self._clock)
        # On a server, vacuum, logs and backups are the operator's.
        self._vacuum: Vacuum | None = None
        if self._location.path is not None:
            self._vacuum = Vacuum(self._transactions, self._clock, busy_timeout=busy_timeout, patience=vacuum_patience)

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

    @claiming
    async def enqueue(
        self, owner: str, /, message: IncomingMessage, kind: Kind, *, claim: bool = True
    ) -> Exchange | None:
        return await self._arrivals.run(_Arrival(message, kind, owner if claim else None))

    async def _insert_all(self, tx: AsyncConnection, arrivals: Sequence[_Arrival]) -> list[Exchange | None]:
        newest: dict[ChannelKey, dict[str, Any]] = {}
        claimed: list[Exchange | None] = []
        for arrival in arrivals:
            id, exchange = await self._insert_one(tx, arrival)
            claimed.append(exchange)
            if id is not None:
                channel = arrival.message.channel
                newest[channel] = {**_place(channel), "last_exchange": id, "last_message": arrival.message.id}
        if newest:
            await self._advance_channels(tx, list(newest.values()))
        return claimed

    async def _advance_channels(self, tx: AsyncConnection, rows: Sequence[dict[str, Any]]) -> None:
        """Insert channels, or update those whose last exchange is older."""
        new = self._insert(channels)
        later = {name: new.excluded[name] for name in ("last_exchange", "last_message")}
        is_later = new.excluded.last_exchange > channels.c.last_exchange
        advance = new.on_conflict_do_update(index_elements=list(channels.primary_key), set_=later, where=is_later)
        await tx.execute(advance, rows)

    async def _insert_one(self, tx: AsyncConnection, arrival: _Arrival) -> tuple[int | None, Exchange | None]:
        """Store and claim a message; return the row's id unless the message was known and finished."""
        message, owner = arrival.message, arrival.owner
        values = message_values(message)
        if message.quoted_id is not None and await _has_rows(
            tx,
            _within(message.channel),
            exchanges.c.message == message.quoted_id,
            exchanges.c.failure == _DELETED,
        ):
            values |= UNQUOTED
        new = self._insert(exchanges).values(
            **values,
            kind=arrival.kind,
            status=Status.OPEN,
            seed=_new_seed(),
            owner=owner,
            fence=int(owner is not None),
        )
        if owner is None:
            stored = new.on_conflict_do_nothing(index_elements=_KEY).returning(exchanges.c.id)
            return (await tx.execute(stored)).scalar(), None
        owed = new.on_conflict_do_update(
            index_elements=_KEY, set_=_taken(owner), where=and_(_allowed(lifecycle.CLAIM), self._unclaimed)
        )
        exchange = next(iter(await self._claimed(tx, owed)), None)
        return None if exchange is None else exchange.id, exchange

    @claiming
    async def claim_owed(self, owner: str, /, platform: str) -> list[Exchange]:
        async with self._claiming() as tx:
            owed = _change(lifecycle.CLAIM, owner=owner).where(
                exchanges.c.platform == platform, IS_OWED, self._unclaimed
            )
            return sorted(await self._claimed(tx, owed), key=lambda exchange: exchange.id)

    @claiming
    async def claim(self, owner: str, /, exchange: Exchange) -> Exchange | None:
        async with self._claiming() as tx:
            owed = _change(lifecycle.CLAIM, owner=owner).where(exchanges.c.id == exchange.id, self._unclaimed)
            return next(iter(await self._claimed(tx, owed)), None)

    def release(self, exchange: Exchange) -> None:
        self._void.append((None, _change(lifecycle.RELEASE, held_by=exchange)))

    @shielded
    async def record_part(self, exchange: Exchange, part: int, message_id: str) -> bool:
        # A crash before this is stored sends that message again: so it is a single statement
        # that jumps the queue.
        before = select(parts.c.exchange).where(parts.c.exchange == exchange.id, parts.c.number == part - 1)
        has_room = true() if part == 0 else before.exists()
        allowed = select(exchanges.c.id, literal(part, Integer), literal(message_id, SafeText)).where(
            _held(exchange), _allowed(lifecycle.RECORD_PART), has_room
        )
        new = self._insert(parts).from_select(["exchange", "number", "message"], allowed)
        record = new.on_conflict_do_update(
            index_elements=["exchange", "number"], set_={"message": new.excluded.message}
        ).returning(parts.c.number)
        async with self._transactions.writing(urgent=True) as tx:
            is_recorded = (await tx.execute(record)).first() is not None
        if not is_recorded and await self._find(_held(exchange), _allowed(lifecycle.RECORD_PART)) is not None:
            raise StoreError(f"exchange {exchange.id} has no part {part - 1} yet, so part {part} cannot be recorded")
        return is_recorded

    @shielded
    async def record_answer(self, exchange: Exchange, answer: Answer) -> bool:
        return await self._execute(_change(lifecycle.ANSWER, held_by=exchange).values(**answer_values(answer)))

    @shielded
    async def complete(self, exchange: Exchange) -> bool:
        return await self._execute(_change(lifecycle.COMPLETE, held_by=exchange))

    @shielded
    async def fail(self, exchange: Exchange, reason: str) -> bool:
        return await self._execute(_change(lifecycle.FAIL, held_by=exchange).values(failure=reason))

    @claiming
    async def requeue(self, owner: str, /, exchange: Exchange, text: str | None = None) -> Exchange | None:
        values = {"seed": _new_seed(), "failure": None, **UNANSWERED}
        if text is not None:
            values |= {"text": text, "kind": Kind.CHAT}
        async with self._claiming() as tx:
            is_it = exchanges.c.id == exchange.id
            again = _change(lifecycle.REQUEUE, owner=owner).where(is_it).values(values)
            said = [] if text is None else await _said(tx, is_it)
            requeued = await self._claimed(tx, again)
            if not requeued:
                return None
            if text is not None:
                await replace_quotes(tx, exchange.message.channel, exchange.message.id, text)
                await redact_quotes(tx, [each._replace(message="") for each in said])
            if said and self._vacuum is not None:
                await self._vacuum.record_deletion(tx)
        if said and self._vacuum is not None:
            self._vacuum.schedule()  # the author waits for the new answer, not for this
        return requeued[0]

    @shielded
    async def history(self, before: Exchange, limit: int) -> History:
        answered = and_(
            _exactly(before.message.channel),
            exchanges.c.id < before.id,
            exchanges.c.kind == Kind.CHAT,
            exchanges.c.status.in_([Status.ANSWERED, Status.DELIVERED]),
            exchanges.c.answer != "",
            exchanges.c.reason != FinishReason.ERROR,
        )
        newest = select(*EXCHANGE).where(IS_KEPT, answered).order_by(exchanges.c.id.desc()).limit(limit)
        async with self._transactions.reading() as tx:
            rows = (await tx.execute(newest)).all()
            now = (await tx.execute(select(*EXCHANGE).where(exchanges.c.id == before.id))).one()
            told = select(channels.c.is_shortening_told).where(_here(before.message.channel))
            is_told = (await tx.execute(told)).scalar()
        readable = self._readable([now, *reversed(rows)])
        if not readable or readable[0].id != before.id:
            raise StoreError(f"the row of exchange {before.id} is damaged")
        return History(tuple(readable[1:]), readable[0], bool(is_told))

    @shielded
    async def record_shortening(self, channel: ChannelKey) -> None:
        await self._execute(update(channels).where(_here(channel)).values(is_shortening_told=True))

    @shielded
    async def find(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        # Ids are unique in their channel, and some events omit the thread, so it is left out.
        return await self._find(_within(channel), exchanges.c.message == message_id)

    @shielded
    async def find_by_reply(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        return await self._find(_within(channel), parts.c.message == message_id, exchanges.c.id == parts.c.exchange)

    @shielded
    async def has_history(self, channel: ChannelKey) -> bool:
        async with self._transactions.reading() as tx:
            return (await tx.execute(select(channels.c.thread).where(_here(channel)))).first() is not None

    @shielded
    async def latest(self, channel: ChannelKey, author: Author | None = None) -> Exchange | None:
        newest = select(*EXCHANGE).where(_exactly(channel), IS_KEPT, exchanges.c.kind == Kind.CHAT)
        if author is not None:
            newest = newest.where(_by(author))
        async with self._transactions.reading() as tx:
            rows = await tx.execute(newest.order_by(exchanges.c.id.desc()).limit(1))
            return next(iter(self._readable(rows)), None)

    @shielded
    async def clear(self, channel: ChannelKey, before: Exchange | None = None) -> int:
        here = _exactly(channel) if channel.thread is not None else _within(channel)
        places = _here(channel) if channel.thread is not None else _with_threads(channel)
        begin_anew = update(channels).where(places).values(is_shortening_told=False)
        which = here, _NOT_OPEN_COMMAND, *_earlier(before)
        return self._checked(await self._blank(lifecycle.CLEAR, *which, with_quotations=True, beside=begin_anew))

    @shielded
    async def forget(self, author: Author, before: Exchange | None = None) -> int:
        return self._checked(
            await self._blank(
                lifecycle.CLEAR,
                _by(author),
                *(_earlier(before) or [_NOT_OPEN_COMMAND]),
                with_quotations=True,
                also=forget_author(author),
            )
        )

    @shielded
    async def erase(self, exchange: Exchange) -> None:
        await self._blank(lifecycle.CLEAR, exchanges.c.id == exchange.id, with_quotations=True)

    @shielded
    async def delete_messages(
        self, channel: ChannelKey, message_ids: Collection[str], *, is_expected: bool = False
    ) -> None:
        here = and_(_within(channel), exchanges.c.message.in_(message_ids))
        async with self._transactions.writing() as tx:
            if not is_expected and not await _has_channel(tx, channel):
                return  # the messages are not for the bot, and nothing quotes them
            await self._bury(tx, channel, message_ids)
            said = await _said(tx, here)
            _, changes = await self._erase(tx, lifecycle.CLEAR, here, said=said)
            await tx.execute(update(exchanges).where(here).values(failure=_DELETED))
        if changes and self._vacuum is not None:
            await self._vacuum.run()

    @shielded
    async def replace_quotes(self, channel: ChannelKey, message_id: str, text: str) -> None:
        async with self._transactions.writing() as tx:
            count = await replace_quotes(tx, channel, message_id, text)
            if count and self._vacuum is not None:
                await self._vacuum.record_deletion(tx)
        if count and self._vacuum is not None:
            self._vacuum.schedule()

    @shielded
    async def expire(self, before: datetime) -> int:
        aged = and_(IS_KEPT, exchanges.c.sent_at < before, _allowed(lifecycle.EXPIRE))
        count, last = 0, None
        while last != 0:
            # In batches: other writers take turns with them.
            async with self._transactions.writing() as tx:
                ids = (await tx.execute(select(exchanges.c.id).where(aged).limit(_BATCH))).scalars().all()
                questions, last = await self._erase(tx, lifecycle.EXPIRE, exchanges.c.id.in_(ids), said=[])
            count += questions
        async with self._transactions.writing() as tx:
            if (await tx.execute(expire_changes(before))).rowcount and self._vacuum is not None:
                await self._vacuum.record_deletion(tx)
        if self._vacuum is not None:
            await self._vacuum.run()
        return count

    @shielded
    async def rename_channel(self, channel: ChannelKey, to: str) -> int:
        # No platform's id has a space, so no future message is mistaken for one of these.
        prefix = f"{channel.channel} "
        there = select(exchanges.c.id, exchanges.c.message).where(_within(channel))
        async with self._transactions.writing() as tx:
            rows = (await tx.execute(there.with_for_update())).all()
            goal = _within(ChannelKey(channel.platform, to))
            alike = exchanges.c.message.between(prefix, f"{channel.channel}!")
            taken = set((await tx.execute(select(exchanges.c.message).where(goal, alike))).scalars())
            for row in rows:
                message = prefix + row.message
                while message in taken:
                    message = prefix + message
                taken.add(message)
                values = {"channel": to, "message": message}
                await tx.execute(update(exchanges).where(exchanges.c.id == row.id).values(values))
                renamed = update(parts).where(parts.c.exchange == row.id)
                await tx.execute(renamed.values(message=literal(prefix, SafeText) + parts.c.message))
            await self._rename_channel(tx, channel, to)
            await tx.execute(rename_places(channel, to))
        return len(rows)

    async def _rename_channel(self, tx: AsyncConnection, channel: ChannelKey, to: str) -> None:
        here = _with_threads(channel)
        columns = channels.c.thread, channels.c.last_exchange, channels.c.is_shortening_told
        # The messages have their new ids already.
        renamed = select(*columns, exchanges.c.message.label("last_message")).where(
            here, exchanges.c.id == channels.c.last_exchange
        )
        rows = [{"platform": channel.platform, "channel": to, **row._mapping} for row in await tx.execute(renamed)]
        await tx.execute(delete(channels).where(here))
        if rows:
            await self._advance_channels(tx, rows)

    @shielded
    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        query = select(channels).where(channels.c.platform == platform)
        async with self._transactions.reading() as tx:
            rows = sorted((await tx.execute(query)).all(), key=lambda row: row.last_exchange)
        return {ChannelKey(platform, row.channel, row.thread or None): row.last_message for row in rows}

    @shielded
    async def said_since(self, platform: str, time: datetime) -> list[Exchange]:
        said = and_(exchanges.c.platform == platform, exchanges.c.sent_at >= time, IS_KEPT)
        async with self._transactions.reading() as tx:
            readable, _ = await self._read_all(await tx.execute(select(*EXCHANGE).where(said)))
            return sorted(readable, key=lambda exchange: exchange.id)

    @shielded
    async def settings(self) -> list[SettingChange]:
        async with self._transactions.reading() as tx:
            return list(to_changes(await tx.execute(select_settings())))

    @shielded
    async def record_setting(self, change: SettingChange) -> None:
        async with self._transactions.writing() as tx:
            await tx.execute(insert_change(change))

    @shielded
    async def setting_changes(self, place: str, limit: int) -> list[SettingChange]:
        async with self._transactions.reading() as tx:
            return list(to_changes(await tx.execute(select_changes(place, limit))))

    @shielded
    async def check(self) -> None:
        async with self._transactions.writing() as tx:
            if self._location.path is None:
                await tx.execute(_NO_CHANGE)
            else:
                # A transaction that writes nothing succeeds on a full disk; this writes a page.
                deletions = (await tx.exec_driver_sql("PRAGMA user_version")).scalar_one()
                await tx.exec_driver_sql(f"PRAGMA user_version={deletions}")

    async def _find(self, *conditions: ColumnElement[bool]) -> Exchange | None:
        async with self._transactions.reading() as tx:
            rows = await tx.execute(select(*EXCHANGE).where(*conditions).limit(1))
            return next(iter(self._readable(rows)), None)

    def _readable(self, rows: Iterable[Row[Any]]) -> list[Exchange]:
        """Convert rows; skip those that are damaged, and log each of them once."""
        readable = []
        for row in rows:
            try:
                readable.append(to_exchange(row))
            except DamagedRow as error:
                if row.id not in self._damaged:
                    self._damaged.add(row.id)
                    log.error("exchange skipped, its row is damaged", exchange=row.id, column=str(error))
        return readable

    async def _read_all(self, result: CursorResult[Any]) -> tuple[list[Exchange], set[int]]:
        """Convert rows, and return the ids of damaged ones; a start may read thousands: the event loop runs in between."""
        readable: list[Exchange] = []
        ids: set[int] = set()
        for rows in result.partitions(_SLICE):
            readable += self._readable(rows)
            ids.update(row.id for row in rows)
            await asyncio.sleep(0)
        return readable, ids - {exchange.id for exchange in readable}

    async def _claimed(self, tx: AsyncConnection, claim: Update | Insert) -> list[Exchange]:
        """Run a statement that claims rows, and return their exchanges; a damaged row fails."""
        readable, damaged = await self._read_all(await tx.execute(claim.returning(*EXCHANGE)))
        if damaged:
            failed = {"status": Status.FAILED, "owner": None, "fence": 0, "failure": "damaged row"}
            await tx.execute(update(exchanges).where(exchanges.c.id.in_(damaged)).values(failed))
        return readable

    async def _shield(self, name: str, work: Coroutine[Any, Any, Result]) -> Result:
        with self._metrics.store_call(name, self._clock):
            return await detach_on_cancel(self._transactions.start(work, name))

    @asynccontextmanager
    async def _claiming(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction that claims, and in which released and abandoned claims are void."""
        async with self._transactions.writing() as tx:
            # A claim may be abandoned before its transaction runs: until that has ended, it cannot be voided.
            void = [entry for entry in self._void if entry[0] not in self._claiming_owners]
            for _, statement in void:
                await tx.execute(statement)
            yield tx
        self._void = [entry for entry in self._void if entry not in void]

    async def _execute(self, change: Update) -> bool:
        async with self._transactions.writing() as tx:
            return (await tx.execute(change)).rowcount == 1

    @property
    def _unclaimed(self) -> ColumnElement[bool]:
        """Rows that no worker of this process has claimed; another process that had is gone."""
        return or_(exchanges.c.owner.is_(None), exchanges.c.owner.not_like(f"{self._life}.%"))

    async def _blank(
        self,
        transition: Transition,
        *which: ColumnElement[bool],
        with_quotations: bool = False,
        beside: Update | None = None,
        also: Update | None = None,
    ) -> int:
        """Delete texts and names, with another change; return the number of questions among the rows.

        `also` deletes texts of another table.
        """
        async with self._transactions.writing() as tx:
            said = await _said(tx, IS_KEPT, *which) if with_quotations else []
            questions, _ = await self._erase(tx, transition, *which, said=said)
            if also is not None and (await tx.execute(also)).rowcount and self._vacuum is not None:
                await self._vacuum.record_deletion(tx)
            if beside is not None:
                await tx.execute(beside)
        if self._vacuum is not None:
            await self._vacuum.run()
        return questions

    async def _erase(
        self, tx: AsyncConnection, transition: Transition, *which: ColumnElement[bool], said: list[Said]
    ) -> tuple[int, int]:
        """Blank rows, and quotations of what was `said`; return the numbers of questions and of changed rows."""
        blank = _change(transition).where(IS_KEPT, *which).values(**BLANK, **UNANSWERED).returning(exchanges.c.kind)
        kinds: list[str] = list((await tx.execute(blank)).scalars())
        changes = len(kinds) + await redact_quotes(tx, said)
        if changes and self._vacuum is not None:
            await self._vacuum.record_deletion(tx)
        return kinds.count(Kind.CHAT), changes

    async def _bury(self, tx: AsyncConnection, channel: ChannelKey, message_ids: Collection[str]) -> None:
        """Store messages that may still come as deleted, unless they are known."""
        today = self._calendar.today()
        gone = [IncomingMessage(id, channel, Author("", "", ""), "", today) for id in message_ids]
        rows = [{**message_values(each), "kind": Kind.CHAT, "status": Status.CLEARED, "seed": 0} for each in gone]
        await tx.execute(delete(exchanges).where(IS_TOMBSTONE, exchanges.c.sent_at < today - _TOMBSTONES_KEPT))
        await tx.execute(self._insert(exchanges).on_conflict_do_nothing(index_elements=_KEY), rows)

    def _checked(self, count: int) -> int:
        """Return the count; raise NotErased if the file still holds the text."""
        if count and self._vacuum is not None and self._vacuum.last_run_failed:
            raise NotErased(count)
        return count

    async def _open(self) -> None:
        await asyncio.to_thread(migrate.upgrade, self._url, self._busy_timeout)
        try:
            # Missing permissions show in a transaction; on a server only in a change.
            async with self._transactions.writing() as tx:
                if self._location.path is None:
                    await tx.execute(_NO_CHANGE)
        except StoreError:
            await self._transactions.dispose()
            raise
        if self._vacuum is not None:
            await self._vacuum.run()  # after a crash between a deletion and its vacuum

    async def _close(self) -> None:
        await self._transactions.wait_idle()
        if self._vacuum is not None:
            await self._vacuum.close()
        await self._transactions.dispose()


def _new_seed() -> int:
    return secrets.randbits(63)


async def _said(tx: AsyncConnection, *which: ColumnElement[bool]) -> list[Said]:
    return [Said._make(row) for row in await tx.execute(select_said(*which))]


def _place(channel: ChannelKey) -> dict[str, str]:
    return {"platform": channel.platform, "channel": channel.channel, "thread": channel.thread or ""}


def _here(channel: ChannelKey) -> ColumnElement[bool]:
    return and_(*(channels.c[name] == value for name, value in _place(channel).items()))


def _with_threads(channel: ChannelKey) -> ColumnElement[bool]:
    return and_(channels.c.platform == channel.platform, channels.c.channel == channel.channel)


async def _has_channel(tx: AsyncConnection, channel: ChannelKey) -> bool:
    """Return whether the channel, or a thread of it, has exchanges."""
    return (await tx.execute(select(channels.c.thread).where(_with_threads(channel)).limit(1))).first() is not None


async def _has_rows(tx: AsyncConnection, *which: ColumnElement[bool]) -> bool:
    return (await tx.execute(select(exchanges.c.id).where(*which).limit(1))).first() is not None


def _within(channel: ChannelKey) -> ColumnElement[bool]:
    return and_(exchanges.c.platform == channel.platform, exchanges.c.channel == channel.channel)


def _exactly(channel: ChannelKey) -> ColumnElement[bool]:
    thread = exchanges.c.thread
    return and_(_within(channel), thread.is_(None) if channel.thread is None else thread == channel.thread)


def _earlier(before: Exchange | None) -> list[ColumnElement[bool]]:
    return [] if before is None else [exchanges.c.id < before.id]


def _by(author: Author) -> ColumnElement[bool]:
    return and_(exchanges.c.author_platform == author.platform, exchanges.c.author == author.id)


def _allowed(transition: Transition) -> ColumnElement[bool]:
    return exchanges.c.status.in_(sorted(transition.origins))


def _taken(owner: str) -> dict[str, Any]:
    return {"owner": owner, "fence": exchanges.c.fence + 1}


def _held(exchange: Exchange) -> ColumnElement[bool]:
    """Select the row if the claim of `exchange` is still its latest one."""
    return and_(exchanges.c.id == exchange.id, exchanges.c.fence == exchange.fence)


def _change(transition: Transition, *, owner: str | None = None, held_by: Exchange | None = None) -> Update:
    """Build the statement of a transition; an illegal one changes no row."""
    assert transition.needs_claim == (held_by is not None), "a worker's transition names its claim"
    change = update(exchanges).where(_allowed(transition))
    if held_by is not None:
        change = change.where(_held(held_by))
    if transition.target is not None:
        change = change.values(status=transition.target)
    match transition.claim:
        case ClaimEffect.TAKE:
            assert owner is not None, "a claim has an owner"
            return change.values(_taken(owner))
        case ClaimEffect.KEEP:
            return change
        case ClaimEffect.RELEASE:
            return change.values(owner=None)
        case ClaimEffect.REVOKE:
            return change.values(owner=None, fence=exchanges.c.fence + 1)
        case _:
            assert_never(transition.claim)
