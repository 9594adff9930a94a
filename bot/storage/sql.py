"""The Store in SQL: a SQLite file, or a PostgreSQL server."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from sqlalchemy import Insert, Row, Text, and_, bindparam, delete, or_, select, update

from bot import lifecycle
from bot.domain import (
    UNREADABLE,
    Answer,
    Attachment,
    ChannelKey,
    Exchange,
    FurtherMessage,
    IncomingMessage,
    Kind,
    Scope,
    SettingChange,
    Status,
    UsageSum,
)
from bot.errors import StoreError
from bot.storage.conditions import DELETED, NO_CHANGE, allowed, change, held, here, place, taken, with_threads, within
from bot.storage.deletion import KEY
from bot.storage.encryption import DamagedRow
from bot.storage.feedback import delete_votes
from bot.storage.further import IS_CONTINUATION, delete_linked, replace_contents, replace_texts
from bot.storage.joined import Joined, new_seed
from bot.storage.opened import claiming, shielded
from bot.storage.pictures import keep_pictures
from bot.storage.quoted_text import Said, replace_quotes
from bot.storage.renaming import RENAMED_AT_ONCE, ids_to_rename, rename_exchanges, rename_further
from bot.storage.rows import (
    UNANSWERED,
    UNQUOTED,
    answer_texts,
    answer_values,
    message_values,
    question_texts,
    quotation_texts,
)
from bot.storage.schema import EXCHANGE, IS_OWED, IS_QUOTING, SafeText, channels, exchanges, parts, usage
from bot.storage.settings import insert_change, rename_places
from bot.storage.transactions import GroupCommit, write_first_page
from bot.storage.usage import adding, count_use, delete_use, rename_use, select_use, stored_place, to_use
from bot.storage.vault import WriteTransaction
from bot.usage import use_of


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A message to store, and to claim for this owner."""

    message: IncomingMessage
    kind: Kind
    owner: str | None


class SqlStore(Joined):
    """The Store on the database that `url` names.

    Writers take turns in the order of their calls, and rows are numbered in that order.

    Texts are encrypted, and deleted with their keys (keys.py).

    `busy_timeout` limits the wait for another program's lock, `queue_timeout` the wait for
    the writer's turn; a transaction older than `slow_after` is logged.  All in seconds.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._arrivals = GroupCommit(self._transactions, self._claiming, self._insert_all)
        # Built once: to build them takes longer than to execute them.
        new = self._insert(exchanges)
        stored = exchanges.c.id, exchanges.c.question_key, IS_CONTINUATION
        self._store = new.on_conflict_do_nothing(index_elements=KEY).returning(*stored)
        self._store_claimed = new.on_conflict_do_update(
            index_elements=KEY,
            set_=taken(bindparam("claimant", type_=Text)),
            where=and_(allowed(lifecycle.CLAIM), self._unclaimed),
        ).returning(*EXCHANGE, IS_CONTINUATION)
        self._advance = self._advancing()
        self._record_part = self._recording_part()
        self._add_use = adding(self._insert(usage))

    @claiming
    async def enqueue(
        self, owner: str, /, message: IncomingMessage, kind: Kind, *, claim: bool = True
    ) -> Exchange | None:
        return await self._arrivals.run(_Arrival(message, kind, owner if claim else None))

    async def _insert_all(self, tx: WriteTransaction, arrivals: Sequence[_Arrival]) -> list[Exchange | None]:
        newest: dict[ChannelKey, dict[str, Any]] = {}
        claimed: list[Exchange | None] = []
        for arrival in arrivals:
            id, exchange = await self._insert_one(tx, arrival)
            claimed.append(exchange)
            if id is not None:
                channel = arrival.message.channel
                newest[channel] = {**place(channel), "last_exchange": id, "last_message": arrival.message.id}
        if newest:
            await tx.execute(self._advance, list(newest.values()))
        return claimed

    def _advancing(self) -> Insert:
        """Build the statement that inserts channels, or updates those whose last exchange is older."""
        new = self._insert(channels)
        later = {name: new.excluded[name] for name in ("last_exchange", "last_message")}
        is_later = new.excluded.last_exchange > channels.c.last_exchange
        return new.on_conflict_do_update(index_elements=list(channels.primary_key), set_=later, where=is_later)

    def _recording_part(self) -> Insert:
        """Build the statement that stores the message of a part, if the one before it has a message."""
        id, part = bindparam("id", type_=parts.c.exchange.type), bindparam("part", type_=parts.c.number.type)
        before = select(parts.c.exchange).where(parts.c.exchange == id, parts.c.number == part - 1)
        allowed_now = select(exchanges.c.id, part, bindparam("message_id", type_=SafeText)).where(
            exchanges.c.id == id,
            exchanges.c.fence == bindparam("its_fence"),
            allowed(lifecycle.RECORD_PART),
            or_(part == 0, before.exists()),
        )
        new = self._insert(parts).from_select(["exchange", "number", "message"], allowed_now)
        recorded = {"message": new.excluded.message}
        return new.on_conflict_do_update(index_elements=["exchange", "number"], set_=recorded).returning(parts.c.number)

    async def _insert_one(self, tx: WriteTransaction, arrival: _Arrival) -> tuple[int | None, Exchange | None]:
        """Store and claim a message; return the row's id unless the message was known and finished."""
        message, owner = arrival.message, arrival.owner
        values = {
            **message_values(message),
            "author": self._vault.pseudonym(message.author.platform, message.author.id),
            "kind": arrival.kind,
            "status": Status.OPEN,
            "seed": new_seed(),
            "owner": owner,
            "fence": int(owner is not None),
        }
        values |= await tx.encrypt(exchanges, "question_key", question_texts(message))
        if await self._quotes_deleted(tx, message):
            values |= UNQUOTED
        else:
            values |= await tx.encrypt(exchanges, "quotation_key", quotation_texts(message.quoted, message.files))
        stored = await (
            tx.execute(self._store, values)
            if owner is None
            else tx.execute(self._store_claimed, {**values, "claimant": owner})
        )
        rows = stored.all()
        if not any(row.question_key == values["question_key"] for row in rows):
            tx.keys.give_back(values["question_key"], values["quotation_key"])  # the message is known
        elif any(row.is_continuation for row in rows):
            # A part of another question came again.  To look first would cost a statement for each message.
            tx.keys.delete(values["question_key"], values["quotation_key"])
            await tx.execute(delete(exchanges).where(exchanges.c.id.in_([row.id for row in rows])))
            return None, None
        claimed = [] if owner is None else await self._readable_claims(tx, rows)
        return next((row.id for row in rows), None), next(iter(claimed), None)

    async def _quotes_deleted(self, tx: WriteTransaction, message: IncomingMessage) -> bool:
        """Return whether the message that this one quotes was deleted before this one came."""
        if message.quoted_id is None:
            return False
        deleted = select(exchanges.c.id).where(
            within(message.channel), exchanges.c.message == message.quoted_id, exchanges.c.failure == DELETED
        )
        return (await tx.execute(deleted.limit(1))).first() is not None

    @claiming
    async def claim_owed(self, owner: str, /, platform: str) -> list[Exchange]:
        async with self._claiming() as tx:
            owed = change(lifecycle.CLAIM, owner=owner).where(
                exchanges.c.platform == platform, IS_OWED, self._unclaimed
            )
            return sorted(await self._claimed(tx, owed), key=lambda exchange: exchange.id)

    @claiming
    async def claim(self, owner: str, /, exchange: Exchange) -> Exchange | None:
        async with self._claiming() as tx:
            owed = change(lifecycle.CLAIM, owner=owner).where(exchanges.c.id == exchange.id, self._unclaimed)
            return next(iter(await self._claimed(tx, owed)), None)

    def release(self, exchange: Exchange) -> None:
        self.void.append((None, change(lifecycle.RELEASE, held_by=exchange)))

    @shielded
    async def record_part(self, exchange: Exchange, part: int, message_id: str) -> bool:
        # A crash before this is stored sends that message again: so it is a single statement
        # that jumps the queue.
        values = {"id": exchange.id, "its_fence": exchange.fence, "part": part, "message_id": message_id}
        async with self._transactions.writing(urgent=True) as tx:
            is_recorded = (await tx.execute(self._record_part, values)).first() is not None
        if not is_recorded and await self._find(held(exchange), allowed(lifecycle.RECORD_PART)) is not None:
            raise StoreError(f"exchange {exchange.id} has no part {part - 1} yet, so part {part} cannot be recorded")
        return is_recorded

    @shielded
    async def move(self, exchange: Exchange, channel: ChannelKey) -> bool:
        newest = {**place(channel), "last_exchange": exchange.id, "last_message": exchange.message.id}
        async with self._writing() as tx:
            moved = change(lifecycle.MOVE, held_by=exchange).values(thread=channel.thread)
            if not (await tx.execute(moved)).rowcount:
                return False
            await tx.execute(self._advance, [newest])
            return True

    @shielded
    async def record_files(
        self, exchange: Exchange, files: Sequence[Attachment], further: Sequence[FurtherMessage] = ()
    ) -> bool:
        # What is read of a quoted message goes with its deletion or edit: also with one since the claim.
        of_quoted = [file for file in files if file.is_quoted and (file.text or file.is_picture)]
        own = tuple(file for file in files if not (file.is_quoted and file.text))
        async with self._writing() as tx:
            keys = select(exchanges.c.question_key, exchanges.c.quotation_key, exchanges.c.quoted)
            held_row = (
                keys.add_columns(IS_QUOTING.label("is_quoting"))
                .where(held(exchange), allowed(lifecycle.RECORD_FILES))
                .with_for_update()
            )
            row = (await tx.execute(held_row)).one_or_none()
            if row is None:
                return False
            tx.keys.delete(row.question_key)
            message = replace(exchange.message, files=own)
            values = await tx.encrypt(exchanges, "question_key", question_texts(message))
            values["author"] = self._vault.pseudonym(message.author.platform, message.author.id)
            if of_quoted and row.is_quoting and await self._quotes(tx, row, message.quoted):
                pieces = [exchange.message.quoted or "", *(file.titled_text for file in of_quoted if file.text)]
                tx.keys.delete(row.quotation_key)
                texts = quotation_texts("\n\n".join(filter(None, pieces)) or exchange.message.quoted, files)
                values |= await tx.encrypt(exchanges, "quotation_key", texts)
            await tx.execute(change(lifecycle.RECORD_FILES, held_by=exchange).values(values))
            for each in further:
                await replace_contents(tx, exchange.id, each, each.text, each.files)
            return True

    async def _quotes(self, tx: WriteTransaction, row: Row[Any], quoted: str | None) -> bool:
        """Return whether a row still quotes these words."""
        now = (await tx.decrypt(exchanges, [row]))[0]
        return not isinstance(now, DamagedRow) and now["quoted"] == quoted

    @shielded
    async def record_answer(
        self,
        exchange: Exchange,
        answer: Answer,
        day: date | None = None,
        milliseconds: int = 0,
        *,
        is_counted: bool = False,
    ) -> bool:
        async with self._writing() as tx:
            # An acknowledgement may have been lost: then there is an answer, and its key, and it is counted.
            earlier = select(exchanges.c.answer_key, exchanges.c.status)
            earlier = earlier.where(held(exchange), allowed(lifecycle.ANSWER))
            earlier = earlier.with_for_update()
            row = (await tx.execute(earlier)).one_or_none()
            use = use_of(answer, milliseconds, is_counted=is_counted)
            if day is not None and use != UsageSum() and (row is None or row.status == Status.OPEN):
                await count_use(tx, self._add_use, self._vault, exchange.message, use, day)
            if row is None:
                return False
            tx.keys.delete(row.answer_key)
            texts = await tx.encrypt(exchanges, "answer_key", answer_texts(answer))
            await tx.execute(change(lifecycle.ANSWER, held_by=exchange).values(**answer_values(answer), **texts))
            return True

    @shielded
    async def usage(self, scope: Scope, since: date) -> dict[date, UsageSum]:
        # In the writer's turn: after every answer whose record was begun before.
        async with self._transactions.writing() as tx:
            rows = (await tx.execute(select_use(scope.level, stored_place(scope, self._vault), since))).all()
        return {row.day: to_use(row) for row in rows}

    @shielded
    async def end_usage(self, running_since: date, before: date | None = None) -> None:
        async with self._transactions.writing() as tx:
            await tx.execute(delete_use(running_since, ["user"]))
            if before is not None:
                await tx.execute(delete_use(min(before, running_since)))

    @shielded
    async def complete(self, exchange: Exchange) -> bool:
        return await self._execute(change(lifecycle.COMPLETE, held_by=exchange))

    @shielded
    async def fail(self, exchange: Exchange, reason: str) -> bool:
        return await self._execute(change(lifecycle.FAIL, held_by=exchange).values(failure=reason))

    @claiming
    async def requeue(
        self,
        owner: str,
        /,
        exchange: Exchange,
        text: str | None = None,
        files: Sequence[Attachment] | None = None,
        reply_address: str | None = None,
    ) -> Exchange | None:
        values: dict[str, Any] = {"seed": new_seed(), "failure": None, **UNANSWERED}
        quotations = self._quotations()
        if text is not None:
            await quotations.prepare([_said(exchange)])
        async with self._claiming() as tx:
            is_it = exchanges.c.id == exchange.id, allowed(lifecycle.REQUEUE)
            row = (await tx.execute(select(*EXCHANGE).where(*is_it).with_for_update(of=exchanges))).one_or_none()
            if row is None:
                return None
            tx.keys.delete(row.answer_key)
            await delete_votes(tx, [exchange.id])
            if text is not None:
                await delete_linked(tx, exchange.id)
            if text is None and row.failure == UNREADABLE:
                values["failure"] = UNREADABLE
            is_changed = text is not None or reply_address is not None
            before = (await self._decrypt(tx.connection, [row]))[0] if is_changed else []
            if before:
                message = before[0].message
                own = message.files if files is None else files
                changed = replace(
                    message,
                    # One that could not be decrypted has lost its author.
                    author=message.author if message.author.id else exchange.message.author,
                    text=message.text if text is None else text,
                    files=await keep_pictures(tx, before[0], own),
                    reply_address=reply_address or message.reply_address,
                )
                values |= await tx.encrypt(exchanges, "question_key", question_texts(changed))
                values |= {
                    "kind": row.kind if text is None else Kind.CHAT,
                    "author": self._vault.pseudonym(changed.author.platform, changed.author.id),
                }
                tx.keys.delete(row.question_key)
            again = change(lifecycle.REQUEUE, owner=owner).where(*is_it).values(values)
            requeued = await self._claimed(tx, again)
            if text is not None and requeued:
                channel = exchange.message.channel
                await replace_quotes(tx, channel, exchange.message.id, text)
                await replace_texts(tx, channel, exchange.message.id, text)
                await quotations.read_added(tx, {(channel.platform, channel.channel)})
                await quotations.redact(tx, [exchange.id], [_said(each) for each in before], of_replies_only=True)
        return next(iter(requeued), None)

    @shielded
    async def record_shortening(self, channel: ChannelKey) -> None:
        await self._execute(update(channels).where(here(channel)).values(is_shortening_told=True))

    @shielded
    async def rename_channel(self, channel: ChannelKey, to: str) -> int:
        # In batches: other writers take turns with them, and a call after a failed one goes on.
        async with self._transactions.reading() as tx:
            ids, readers = await ids_to_rename(tx, channel)
        count = 0
        for rename, those in (rename_exchanges, ids), (rename_further, readers):
            for start in range(0, len(those), RENAMED_AT_ONCE):
                async with self._writing() as tx:
                    count += await rename(tx, channel, to, those[start : start + RENAMED_AT_ONCE])
                await self._transactions.checkpoint()
        async with self._writing() as tx:
            later = select(exchanges.c.id).where(within(channel), exchanges.c.id > max(ids, default=0))
            count += await rename_exchanges(tx, channel, to, (await tx.execute(later)).scalars().all())
            await self._rename_channel(tx, channel, to)
            await tx.execute(rename_places(channel, to))
            await rename_use(tx, self._add_use, channel, to)
        return count

    async def _rename_channel(self, tx: WriteTransaction, channel: ChannelKey, to: str) -> None:
        theirs = with_threads(channel)
        columns = channels.c.thread, channels.c.last_exchange, channels.c.is_shortening_told, channels.c.is_context_told
        # The messages have their new ids already.
        renamed = select(*columns, exchanges.c.message.label("last_message")).where(
            theirs, exchanges.c.id == channels.c.last_exchange
        )
        rows = [{"platform": channel.platform, "channel": to, **row._mapping} for row in await tx.execute(renamed)]
        await tx.execute(delete(channels).where(theirs))
        if rows:
            await tx.execute(self._advance, rows)

    @shielded
    async def record_setting(self, change: SettingChange, cause: IncomingMessage | None = None) -> bool:
        async with self._writing() as tx:
            if cause and cause.id and not await self._is_first(tx.connection, cause.channel, f"setting {cause.id}"):
                return False
            await insert_change(tx, change, self._vault.pseudonym(change.author.platform, change.author.id))
        return True

    @shielded
    async def check(self) -> None:
        async with self._transactions.writing() as tx:
            if self._location.path is None:
                await tx.execute(NO_CHANGE)
            else:
                await write_first_page(tx)  # a transaction that writes nothing succeeds on a full disk


def _said(exchange: Exchange) -> Said:
    channel = exchange.message.channel
    return Said((channel.platform, channel.channel), exchange.message.text)
