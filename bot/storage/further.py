"""Statements for messages that belong to a question beside its own: parts of it, what was said before, what it links to."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from itertools import accumulate
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Delete,
    FromClause,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.domain import KINDS_OF_OTHERS, Attachment, Author, ChannelKey, Exchange, FurtherKind, FurtherMessage, Scope
from bot.storage.encryption import DamagedRow
from bot.storage.pictures import pictures_to_json, to_pictures
from bot.storage.rows import files_from_json, files_to_json
from bot.storage.schema import exchanges, further_messages, readable_since
from bot.storage.usage import AnyInsert, stored_place
from bot.storage.vault import AnyRow, Vault, WriteTransaction

_LEVELS = ("user", "channel", "thread", "member", "all")
# The level and the place of all places.
EVERYWHERE = ("all", "")
_NEVER = datetime.min.replace(tzinfo=UTC)
OF_OTHERS = further_messages.c.kind.in_(KINDS_OF_OTHERS)
_KINDS_OF_ASKER = [FurtherKind.CONTINUATION, FurtherKind.FORWARD]
OF_ASKER = further_messages.c.kind.in_(_KINDS_OF_ASKER)
# The columns of the key, with the parameters of a deletion by it.
_KEY = {"exchange": "of_exchange", "channel": "in_channel", "message": "with_id"}

# Whether the message of an exchange is a part of another question; named as text for a RETURNING clause, where SQLite
# uses the index only for values without a column's collation.
_SAME = [
    further_messages.c[name] == cast(literal_column(f"exchanges.{name}"), Text)
    for name in ("platform", "channel", "message")
]
IS_CONTINUATION = select(literal(1)).where(*_SAME, OF_ASKER).exists().label("is_continuation")


def read_further(connection: Connection, vault: Vault, ids: Collection[int]) -> dict[int, tuple[FurtherMessage, ...]]:
    """Return the further messages of exchanges, in the order in which they were sent; without what cannot be decrypted."""
    rows = connection.execute(_of_exchanges(), {"ids": list(ids)}).all()
    if not rows:
        return {}
    found: dict[int, list[FurtherMessage]] = {}
    for row in vault.decrypt(connection, further_messages, rows):
        # A key that is missing is that of a message that is being deleted.
        if isinstance(row, dict) and row["sent_at"] is not None and row["kind"] in list(FurtherKind):
            found.setdefault(row["exchange"], []).append(_to_message(row))
    # Within a second or less the ids tell the order, on all platforms.
    return {
        id: tuple(sorted(each, key=lambda message: (message.sent_at, len(message.id), message.id)))
        for id, each in found.items()
    }


def with_further(exchange: Exchange, further: tuple[FurtherMessage, ...] | None) -> Exchange:
    return replace(exchange, message=replace(exchange.message, further=further)) if further else exchange


def _to_message(row: dict[str, Any]) -> FurtherMessage:
    try:
        pictures = iter(to_pictures(row["pictures"]))
        files = tuple(
            replace(file, picture=next(pictures, None)) if file.is_picture else file
            for file in files_from_json(row["files"])
        )
    except DamagedRow:
        files = ()
    author = Author(row["author_platform"], row["author_id"], row["author_name"])
    kind = FurtherKind(row["kind"])
    said = author, row["text"], row["sent_at"]
    return FurtherMessage(row["message"], row["channel"], *said, kind, files, row["thread"])


@cache
def _of_exchanges() -> Select[Any]:
    return select(further_messages).where(_of_ids())


async def insert_further(tx: WriteTransaction, vault: Vault, exchange: int, messages: Iterable[FurtherMessage]) -> None:
    for message in messages:
        author = message.author
        values = {
            "exchange": exchange,
            "channel": message.channel,
            "message": message.id,
            "thread": message.thread,
            "platform": author.platform,
            "kind": message.kind,
            "author_platform": author.platform,
            "author": vault.pseudonym(author.platform, author.id),
            "sent_at": message.sent_at,
            **await _encrypt(tx, message),
        }
        await tx.execute(further_messages.insert().values(values))


async def replace_contents(
    tx: WriteTransaction, exchange: int, message: FurtherMessage, text: str, files: tuple[Attachment, ...]
) -> None:
    """Give a further message another text and other files, with a new key."""
    changed = replace(message, text=text, files=files)
    which = and_(further_messages.c.exchange == exchange, _is(message.channel, [message.id]))
    tx.keys.delete(*(await tx.execute(select(further_messages.c.text_key).where(which))).scalars())
    await tx.execute(update(further_messages).where(which).values(await _encrypt(tx, changed)))


async def _encrypt(tx: WriteTransaction, message: FurtherMessage) -> dict[str, Any]:
    texts = {
        "author_id": message.author.id,
        "author_name": message.author.name,
        "text": message.text,
        "files": files_to_json(message.files),
        "pictures": pictures_to_json(message.files, is_quoted=False),
    }
    return await tx.encrypt(further_messages, "text_key", texts)


async def question_of(tx: AsyncConnection, channel: ChannelKey, message_id: str) -> int | None:
    """Return the exchange whose question a message is a continuation of."""
    which = said_in(channel, [message_id]), OF_ASKER
    return (await tx.execute(select(further_messages.c.exchange).where(*which).limit(1))).scalar()


async def has_any(tx: AsyncConnection, channel: ChannelKey, message_ids: Collection[str]) -> bool:
    """Return whether one of these messages belongs to a question."""
    which = said_in(channel, message_ids)
    return (await tx.execute(select(further_messages.c.exchange).where(which).limit(1))).first() is not None


async def own_texts(tx: AsyncConnection, vault: Vault, *which: ColumnElement[bool]) -> list[tuple[int, str]]:
    """Return the texts of parts of questions, each with its exchange."""
    columns = further_messages.c.exchange, further_messages.c.text, further_messages.c.text_key
    rows = (await tx.execute(select(*columns).where(*which, OF_ASKER))).all()
    found = await tx.run_sync(partial(vault.decrypt, table=further_messages, rows=rows)) if rows else []
    return [(each["exchange"], each["text"]) for each in found if isinstance(each, dict)]


async def replace_texts(tx: WriteTransaction, channel: ChannelKey, message_id: str, text: str) -> None:
    """Let an edited message have its new text wherever it was read as what others said."""
    which = said_in(channel, [message_id]), OF_OTHERS
    rows = (await tx.execute(select(further_messages).where(*which))).all()
    for row, found in zip(rows, await tx.decrypt(further_messages, rows), strict=True):
        if isinstance(found, dict) and text:
            await replace_contents(tx, row.exchange, _to_message(found), text, ())
        else:
            await delete_further(tx, further_messages.c.exchange == row.exchange, said_in(channel, [message_id]))


async def first_with_at_most(tx: WriteTransaction, ids: Sequence[int], most: int) -> int:
    """Return the number of the first exchanges whose further messages fit into one batch, at least one."""
    rows = await tx.execute(_numbers_of_exchanges(), {"ids": list(ids)})
    numbers: dict[int, int] = {row.exchange: row.number for row in rows}
    sums = accumulate(numbers.get(id, 0) for id in ids)
    return max(1, sum(each <= most for each in sums))


@cache
def _numbers_of_exchanges() -> Select[Any]:
    numbers = select(further_messages.c.exchange, func.count().label("number"))
    return numbers.where(_of_ids()).group_by(further_messages.c.exchange)


async def delete_of_exchanges(tx: WriteTransaction, ids: Collection[int]) -> None:
    """Delete the further messages of exchanges."""
    keys = (await tx.execute(_keys_of_exchanges(), {"ids": list(ids)})).scalars().all()
    if keys:
        tx.keys.delete(*keys)
        await tx.execute(_deletion_of_exchanges(), {"ids": list(ids)})


@cache
def _keys_of_exchanges() -> Select[Any]:
    return select(further_messages.c.text_key).where(_of_ids())


@cache
def _deletion_of_exchanges() -> Delete:
    return delete(further_messages).where(_of_ids())


def _of_ids() -> ColumnElement[bool]:
    return further_messages.c.exchange.in_(bindparam("ids", expanding=True))


async def delete_copies(tx: WriteTransaction, ids: Collection[int]) -> None:
    """Delete what other questions have read of the messages and the further parts of exchanges."""
    for copies in _copies():
        await _delete_rows(tx, (await tx.execute(copies, {"ids": list(ids)})).all())


async def delete_some(tx: WriteTransaction, most: int, *which: ColumnElement[bool]) -> int:
    """Delete up to `most` further messages; return their number."""
    some = select(*further_messages.primary_key, further_messages.c.text_key).where(*which).limit(most)
    rows = (await tx.execute(some)).all()
    await _delete_rows(tx, rows)
    return len(rows)


async def _delete_rows(tx: WriteTransaction, rows: Sequence[AnyRow]) -> None:
    """Delete rows by their keys, which are followed by the number of the text's key."""
    if rows:
        tx.keys.delete(*(row.text_key for row in rows))
        await tx.execute(_deletion_by_key(), [dict(zip(_KEY.values(), row[:-1], strict=True)) for row in rows])


@cache
def _copies() -> tuple[Select[Any], Select[Any]]:
    part = further_messages.alias("part")
    ids: BindParameter[int] = bindparam("ids", expanding=True)
    columns = [*further_messages.primary_key, further_messages.c.text_key]
    of_messages = select(*columns).where(_is_same(exchanges), exchanges.c.id.in_(ids), OF_OTHERS)
    is_part = part.c.exchange.in_(ids), part.c.kind.in_(_KINDS_OF_ASKER)
    return of_messages, select(*columns).where(_is_same(part), *is_part, OF_OTHERS)


def _is_same(table: FromClause) -> ColumnElement[bool]:
    return and_(*(further_messages.c[name] == table.c[name] for name in ("platform", "channel", "message")))


@cache
def _deletion_by_key() -> Delete:
    are_equal = [further_messages.c[column] == bindparam(name) for column, name in _KEY.items()]
    return delete(further_messages).where(*are_equal)


async def delete_further(tx: WriteTransaction, *which: ColumnElement[bool]) -> None:
    keys = (await tx.execute(select(further_messages.c.text_key).where(*which))).scalars().all()
    if keys:
        tx.keys.delete(*keys)
        await tx.execute(delete(further_messages).where(*which))


async def delete_linked(tx: WriteTransaction, exchange: int) -> None:
    """Delete what a question links to, whose text changes."""
    which = further_messages.c.exchange == exchange, further_messages.c.kind == FurtherKind.LINKED
    await delete_further(tx, *which)


def said_in(channel: ChannelKey, message_ids: Collection[str]) -> ColumnElement[bool]:
    """Select messages of a channel, threads included, in whatever questions they are."""
    return and_(further_messages.c.platform == channel.platform, _is(channel.channel, message_ids))


def of_exchanges(ids: Collection[int]) -> ColumnElement[bool]:
    return further_messages.c.exchange.in_(ids)


def _is(channel: str, message_ids: Collection[str]) -> ColumnElement[bool]:
    return and_(further_messages.c.channel == channel, further_messages.c.message.in_(message_ids))


def cleared(channel: ChannelKey, before: int | None) -> list[ColumnElement[bool]]:
    """Select what others said in a channel that is cleared, read for questions before an exchange."""
    here = further_messages.c.platform == channel.platform, further_messages.c.channel == channel.channel
    return [*here, OF_OTHERS, *_earlier(before)]


def cleared_thread(channel: ChannelKey, before: int | None) -> list[ColumnElement[bool]]:
    """Select what others said in a thread that is cleared, read for questions before an exchange."""
    return [*cleared(channel, before), further_messages.c.thread == channel.thread]


def read_in(channel: ChannelKey) -> ColumnElement[bool]:
    """Select what was said in a thread, or read for the questions there."""
    asked_there = exchanges.c.id == further_messages.c.exchange, exchanges.c.thread == channel.thread
    return or_(further_messages.c.thread == channel.thread, select(literal(1)).where(*asked_there).exists())


def by(platform: str, names: Collection[str]) -> list[ColumnElement[bool]]:
    """Select what a person said before the questions of others; the parts of their own go with these."""
    return [further_messages.c.author_platform == platform, further_messages.c.author.in_(names), OF_OTHERS]


def older(than: datetime) -> list[ColumnElement[bool]]:
    """Select what others said before a time; parts are as old as their question."""
    return [further_messages.c.sent_at < than, OF_OTHERS]


def _earlier(before: int | None) -> list[ColumnElement[bool]]:
    return [] if before is None else [further_messages.c.exchange < before]


async def set_readable_since(tx: WriteTransaction, new: AnyInsert, level: str, place: str, since: datetime) -> None:
    """Let what was said until then, by a person or in a place, not be read any more."""
    add = new.on_conflict_do_update(index_elements=["level", "place"], set_={"since": new.excluded.since})
    await tx.execute(add, {"level": level, "place": place, "since": since})


async def forget_places(tx: WriteTransaction, person: str) -> None:
    """Delete the rows of a person in single places, when one for all places replaces them."""
    # In the order of the key, "!" follows the space before the place.
    theirs = readable_since.c.place > f"{person} ", readable_since.c.place < f"{person}!"
    await tx.execute(delete(readable_since).where(readable_since.c.level == "member", *theirs))


async def unreadable(
    tx: WriteTransaction, vault: Vault, here: ChannelKey, messages: Iterable[FurtherMessage]
) -> set[FurtherMessage]:
    """Return the messages from before a /forget me of their author, or a /clear where they were said."""
    scopes = {message: _scopes_of(message, vault, here) for message in messages}
    known = readable_since.c.level, readable_since.c.place, readable_since.c.since
    places = {place for each in scopes.values() for _, place in each}
    rows = (
        await tx.execute(select(*known).where(readable_since.c.level.in_(_LEVELS), readable_since.c.place.in_(places)))
    ).all()
    since = {(row.level, row.place): row.since for row in rows}
    return {
        message
        for message, each in scopes.items()
        if any(message.sent_at <= since.get(scope, _NEVER) for scope in each)
    }


def _scopes_of(message: FurtherMessage, vault: Vault, here: ChannelKey) -> list[tuple[str, str]]:
    author = message.author
    channel = ChannelKey(author.platform, message.channel)
    threads = {replace(channel, thread=message.thread)} if message.thread is not None else set()
    if message.kind is FurtherKind.BEFORE and here.thread is not None:
        threads.add(here)
    return [
        EVERYWHERE,
        ("user", stored_place(Scope("user", author.key), vault)),
        ("channel", str(channel)),
        *(("thread", str(thread)) for thread in threads),
        *(("member", member_place(author, place, vault)) for place in (channel, *threads)),
    ]


def member_place(author: Author, channel: ChannelKey, vault: Vault) -> str:
    """Return the `place` of a person in a channel or thread; a channel's id has no space."""
    return f"{stored_place(Scope('user', author.key), vault)} {channel}"
