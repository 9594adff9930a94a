"""The Store in SQL: a SQLite file, or a PostgreSQL server."""

import asyncio
import json
import secrets
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import ColumnElement, Text, and_, cast, false, func, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from bot.domain import Answer, Author, ChannelKey, Exchange, FinishReason, IncomingMessage, Kind, Status
from bot.errors import NotErased, StoreError
from bot.observability.metrics import Metrics
from bot.storage import connections, migrate
from bot.storage.base import History
from bot.storage.quoted_text import redact_quotes, select_text
from bot.storage.rows import BLANK, UNANSWERED, answer_values, message_values, to_exchange
from bot.storage.schema import exchanges
from bot.storage.transactions import Transactions
from bot.storage.vacuum import Vacuum
from bot.util.aio import detach_on_cancel, join_task
from bot.util.clock import Clock, MonotonicClock

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# A command that is being carried out may be the very one that deletes: it is still owed its reply.
_NOT_ASKING = or_(exchanges.c.kind != Kind.COMMAND, exchanges.c.status != Status.OPEN)

# The list of parts with one of them in its place, or at its end.
_WITH_PART = text("json_set(parts, '$[' || :part || ']', json(:written))")
_WITH_PART_ON_A_SERVER = text(
    # Not as jsonb, which takes less than json does.
    "(SELECT array_to_json(each[1 \\: CAST(:part AS int)] || CAST(:written AS json) || each[CAST(:part AS int) + 2 \\:]) "
    "FROM (SELECT ARRAY(SELECT json_array_elements(parts)) AS each) AS parted)"
)

_NO_CHANGE = update(exchanges).where(false()).values(status=Status.OPEN)


def shielded(
    method: Callable[Concatenate["SqlStore", Arguments], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate["SqlStore", Arguments], Coroutine[Any, Any, Result]]:
    """Let the method run to its end even if its caller is cancelled meanwhile.

    A task that is cancelled within a transaction can leave the file locked for writing
    while the pool looks idle.  So the caller gets its CancelledError at once, and the
    transaction goes on in a task of the store, which waits for it when it closes.
    """

    @wraps(method)
    async def call(store: "SqlStore", /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with store._metrics.store_call(method.__name__, store._clock):
            return await detach_on_cancel(store._transactions.start(method(store, *args, **kwargs), method.__name__))

    return call


class SqlStore:
    """A Store on the database that `url` names.

    Writers take turns in the order they came, so rows are numbered in the order of the calls.

    After clear, forget, erase and expire a SQLite file is scrubbed (scrub.py), at once or as
    soon as that is not too dear.  It waits up to `patience` seconds for whoever else reads the
    file, and is tried again by itself if that was not enough: the rows are blank then, and
    clear and forget say so with NotScrubbed.

    `busy_timeout` is how long another program's lock is waited for, `queue_timeout` how
    long one's turn; a transaction older than `suspicious` is reported.  All in seconds.
    """

    def __init__(
        self,
        url: str,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        *,
        busy_timeout: float = connections.BUSY_TIMEOUT,
        queue_timeout: float = 30.0,
        patience: float = 1.0,
        suspicious: float = 10.0,
    ) -> None:
        self._url = url
        self._clock = clock or MonotonicClock()
        self._metrics = metrics or Metrics()
        self._location = connections.locate(url)
        self._busy_timeout = busy_timeout
        self._transactions = Transactions(
            self._location, busy_timeout=busy_timeout, queue_timeout=queue_timeout, suspicious=suspicious
        )
        # On a server the operator's VACUUM, logs and backups decide.
        self._scrubber: Vacuum | None = None
        if self._location.path is not None:
            self._scrubber = Vacuum(
                self._transactions.writer,
                self._transactions.lock,
                self._location.name,
                self._clock,
                busy_timeout=busy_timeout,
                patience=patience,
            )

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

    @shielded
    async def enqueue(self, message: IncomingMessage, kind: Kind) -> Exchange | None:
        # The dialects' own inserts, alike but for their module.
        insert = sqlite.insert if self._location.path is not None else postgresql.insert
        new = (
            insert(exchanges)
            .values(**message_values(message), kind=kind, status=Status.OPEN, seed=_new_seed(), parts=[])
            .on_conflict_do_nothing(index_elements=["platform", "channel", "message"])
            .returning(*exchanges.c)
        )
        async with self._transactions.writing() as tx:
            row = (await tx.execute(new)).first()
        return None if row is None else to_exchange(row)

    @shielded
    async def record_part(self, exchange: int, part: int, message_id: str) -> None:
        # Killed before this is kept, the bot sends that message again: so it waits for nobody,
        # and is one statement.
        with_part = _WITH_PART if self._location.path is not None else _WITH_PART_ON_A_SERVER
        note = (
            update(exchanges)
            .where(exchanges.c.id == exchange, func.json_array_length(exchanges.c.parts) >= part)
            .values(parts=with_part.bindparams(part=part, written=json.dumps(message_id)))
        )
        async with self._transactions.writing(urgent=True) as tx:
            noted = await tx.execute(note)
        if noted.rowcount != 1:
            raise StoreError(f"exchange {exchange} does not exist, or its part {part} comes before an earlier one")

    @shielded
    async def record_answer(self, exchange: int, answer: Answer) -> bool:
        return await self._move(exchange, {Status.OPEN}, Status.ANSWERED, answer_values(answer))

    @shielded
    async def complete(self, exchange: int) -> None:
        await self._move(exchange, {Status.ANSWERED}, Status.DELIVERED)

    @shielded
    async def fail(self, exchange: int, why: str) -> None:
        await self._move(exchange, {Status.OPEN, Status.ANSWERED}, Status.FAILED, {"failure": why})

    @shielded
    async def requeue(self, exchange: int, text: str | None = None) -> Exchange | None:
        values = {"status": Status.OPEN, "seed": _new_seed(), "failure": None, **UNANSWERED}
        if text is not None:
            values["text"] = text
        again = (
            update(exchanges)
            .where(exchanges.c.id == exchange, exchanges.c.status != Status.CLEARED)
            .values(values)
            .returning(*exchanges.c)
        )
        async with self._transactions.writing() as tx:
            said = [] if text is None else (await tx.execute(select_text(exchanges.c.id == exchange))).all()
            row = (await tx.execute(again)).first()
            if row is None:
                return None
            await redact_quotes(tx, said)
            if said and self._scrubber is not None:
                await self._scrubber.record_deletion(tx)
        if said and self._scrubber is not None:
            self._scrubber.schedule()  # who edited waits for the new answer, nobody for this
        return to_exchange(row)

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
        newest = select(exchanges).where(answered).order_by(exchanges.c.id.desc()).limit(limit)
        async with self._transactions.reading() as tx:
            rows = (await tx.execute(newest)).all()
            count = (await tx.execute(select(func.count()).select_from(exchanges).where(answered))).scalar_one()
            now = (await tx.execute(select(exchanges).where(exchanges.c.id == before.id))).one()
        return History(tuple(to_exchange(row) for row in reversed(rows)), count - len(rows), to_exchange(now))

    @shielded
    async def find(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        # The thread is left out: an id is unique in its channel, and an event about a
        # message does not always say which thread that is in.
        return await self._first(_within(channel), exchanges.c.message == message_id)

    @shielded
    async def find_by_reply(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        # A button is pressed seldom: the channel's rows are few enough to look through.  LIKE takes
        # a for A and cannot tell an id from the end of another, so it only narrows the search.
        likely = cast(exchanges.c.parts, Text).contains(json.dumps(message_id), autoescape=True)
        query = select(exchanges).where(_within(channel), likely).order_by(exchanges.c.id.desc())
        async with self._transactions.reading() as tx:
            found = [to_exchange(row) for row in await tx.execute(query)]
        return next((exchange for exchange in found if message_id in exchange.parts), None)

    @shielded
    async def has_history(self, channel: ChannelKey) -> bool:
        return await self._first(_exactly(channel)) is not None

    @shielded
    async def latest(self, channel: ChannelKey, author: Author | None = None) -> Exchange | None:
        return await self._first(
            _exactly(channel),
            exchanges.c.kind == Kind.CHAT,
            exchanges.c.status != Status.CLEARED,
            *([] if author is None else [_by(author)]),
        )

    @shielded
    async def clear(self, channel: ChannelKey, before: Exchange | None = None) -> int:
        here = _exactly(channel) if channel.thread is not None else _within(channel)
        return self._told(await self._blank(here, _NOT_ASKING, *_earlier(before), with_quotations=True))

    @shielded
    async def forget(self, author: Author, before: Exchange | None = None) -> int:
        return self._told(await self._blank(_by(author), *(_earlier(before) or [_NOT_ASKING]), with_quotations=True))

    @shielded
    async def erase(self, exchange: int) -> None:
        await self._blank(exchanges.c.id == exchange, with_quotations=True)

    @shielded
    async def expire(self, before: datetime) -> int:
        return await self._blank(exchanges.c.sent_at < before, exchanges.c.status != Status.OPEN)

    @shielded
    async def rename_channel(self, channel: ChannelKey, to: str) -> int:
        there = select(exchanges.c.id, exchanges.c.message, exchanges.c.parts).where(_within(channel))
        async with self._transactions.writing() as tx:
            rows = (await tx.execute(there.with_for_update())).all()
            goal = _within(ChannelKey(channel.platform, to))
            taken = set((await tx.execute(select(exchanges.c.message).where(goal))).scalars())
            for row in rows:
                # No id of a platform has a space, so no message that is yet to come can be meant.
                message = f"{channel.channel} {row.message}"
                while message in taken:
                    message = f"{channel.channel} {message}"
                taken.add(message)
                values = {
                    "channel": to,
                    "message": message,
                    "parts": [f"{channel.channel} {part}" for part in row.parts],
                }
                await tx.execute(update(exchanges).where(exchanges.c.id == row.id).values(values))
        return len(rows)

    @shielded
    async def owed(self, platform: str) -> list[Exchange]:
        query = (
            select(exchanges)
            .where(exchanges.c.platform == platform, exchanges.c.status.in_([Status.OPEN, Status.ANSWERED]))
            .order_by(exchanges.c.id)
        )
        async with self._transactions.reading() as tx:
            return [to_exchange(row) for row in await tx.execute(query)]

    @shielded
    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        newest = (
            select(func.max(exchanges.c.id))
            .where(exchanges.c.platform == platform)
            .group_by(exchanges.c.channel, exchanges.c.thread)
        )
        query = select(exchanges.c.channel, exchanges.c.thread, exchanges.c.message).where(exchanges.c.id.in_(newest))
        async with self._transactions.reading() as tx:
            return {ChannelKey(platform, row.channel, row.thread): row.message for row in await tx.execute(query)}

    @shielded
    async def check(self) -> None:
        async with self._transactions.writing() as tx:
            if self._location.path is None:
                await tx.execute(_NO_CHANGE)
            else:
                # A transaction that writes nothing succeeds on a full disk; this writes a page.
                deletions = (await tx.exec_driver_sql("PRAGMA user_version")).scalar_one()
                await tx.exec_driver_sql(f"PRAGMA user_version={deletions}")

    async def _first(self, *conditions: ColumnElement[bool]) -> Exchange | None:
        query = select(exchanges).where(*conditions).order_by(exchanges.c.id.desc()).limit(1)
        async with self._transactions.reading() as tx:
            row = (await tx.execute(query)).first()
        return None if row is None else to_exchange(row)

    async def _move(
        self, exchange: int, origins: set[Status], status: Status, values: dict[str, Any] | None = None
    ) -> bool:
        """Change the status if it is one of `origins`; say whether it was."""
        move = (
            update(exchanges)
            .where(exchanges.c.id == exchange, exchanges.c.status.in_(origins))
            .values(status=status, **(values or {}))
        )
        async with self._transactions.writing() as tx:
            moved = await tx.execute(move)
        return moved.rowcount == 1

    async def _blank(self, *which: ColumnElement[bool], with_quotations: bool = False) -> int:
        """Delete text and names for good; return how many chats had some."""
        blank = (
            update(exchanges)
            .where(*which, exchanges.c.status != Status.CLEARED)
            .values(**BLANK, **UNANSWERED)
            .returning(exchanges.c.kind)
        )
        async with self._transactions.writing() as tx:
            said = (await tx.execute(select_text(*which))).all() if with_quotations else []
            kinds: list[str] = list((await tx.execute(blank)).scalars())
            if kinds and self._scrubber is not None:
                await self._scrubber.record_deletion(tx)
            await redact_quotes(tx, said)
        if self._scrubber is not None:
            await self._scrubber.run()
        return kinds.count(Kind.CHAT)

    def _told(self, count: int) -> int:
        """The count, unless whoever deleted so much is to know that the file still holds it."""
        if count and self._scrubber is not None and self._scrubber.last_run_failed:
            raise NotErased(count)
        return count

    async def _open(self) -> None:
        await asyncio.to_thread(migrate.upgrade, self._url, self._busy_timeout)
        try:
            # Whether one may write here shows with a transaction, on a server with a change.
            async with self._transactions.writing() as tx:
                if self._location.path is None:
                    await tx.execute(_NO_CHANGE)
        except StoreError:
            await self._transactions.dispose()
            raise
        if self._scrubber is not None:
            await self._scrubber.run()  # a crash may have come in between

    async def _close(self) -> None:
        await self._transactions.wait_idle()
        if self._scrubber is not None:
            await self._scrubber.close()
        await self._transactions.dispose()


def _new_seed() -> int:
    return secrets.randbits(63)


def _within(channel: ChannelKey) -> ColumnElement[bool]:
    return and_(exchanges.c.platform == channel.platform, exchanges.c.channel == channel.channel)


def _exactly(channel: ChannelKey) -> ColumnElement[bool]:
    thread = exchanges.c.thread
    return and_(_within(channel), thread.is_(None) if channel.thread is None else thread == channel.thread)


def _earlier(before: Exchange | None) -> list[ColumnElement[bool]]:
    return [] if before is None else [exchanges.c.id < before.id]


def _by(author: Author) -> ColumnElement[bool]:
    return and_(exchanges.c.author_platform == author.platform, exchanges.c.author == author.id)
