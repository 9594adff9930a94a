"""Databases of any size for the benchmark of the store, with the keys and the encryption of the bot."""

import random
import secrets
import shutil
from collections.abc import Callable, Collection
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select

from bot.domain import Answer, Author, ChannelKey, IncomingMessage, Kind, Status, Usage
from bot.storage import migrate
from bot.storage.connections import Location, locate, migrator
from bot.storage.encryption import KEY_SIZE
from bot.storage.key_file import path_beside
from bot.storage.keys import BATCH, Keys, TableKeys, keys_of
from bot.storage.rows import answer_texts, answer_values, message_values, question_texts
from bot.storage.schema import channels, exchanges, parts, text_keys
from bot.storage.vault import KeyChanges, Vault

CHANNELS = 1_000
# The share of all exchanges that the first channel has.
LARGE = 0.2
AUTHORS = 5_000
QUESTION = "How do I read a large file line by line, and stop at the first empty one? " * 3
ANSWER = "Open it in a with statement and iterate over it; each step returns one line. " * 16
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
# Rows of one transaction, so that SQLite's log stays small.
_COMMIT = 50 * BATCH

Place = Callable[[int, random.Random], tuple[int, int]]
"""The channel and the author of the message with a number."""


def channel(number: int) -> ChannelKey:
    return ChannelKey("slack", f"C{number}")


def message(number: int, where: int, author: int) -> IncomingMessage:
    return IncomingMessage(
        id=f"17000{number:08}.000100",
        channel=channel(where),
        author=Author("slack", f"U{author}", f"Person {author}"),
        text=QUESTION,
        sent_at=FIRST + timedelta(seconds=40 * number),
    )


def anywhere(number: int, chance: random.Random) -> tuple[int, int]:
    where = 0 if chance.random() < LARGE else chance.randrange(1, CHANNELS)
    return where, chance.randrange(AUTHORS)


class _BulkKeys(TableKeys):
    """Keys in a table, a thousand of them made by one statement."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._made: dict[int, bytes] = {}
        self._free: list[int] = []

    def take(self, connection: Connection) -> int:
        if not self._free:
            new = insert(text_keys).returning(text_keys.c.number, text_keys.c.key)
            rows = connection.execute(new, [{"key": secrets.token_bytes(KEY_SIZE)} for _ in range(1000)]).all()
            self._made = {row.number: bytes(row.key) for row in rows}
            self._free = sorted(self._made, reverse=True)
        return self._free.pop()

    def read(self, connection: Connection, numbers: Collection[int]) -> dict[int, bytes]:
        made = {number: self._made[number] for number in numbers if number in self._made}
        return made if len(made) == len(numbers) else super().read(connection, numbers)


def fill(url: str, first: int, size: int, place: Place = anywhere, *, is_encrypted: bool = True) -> None:
    """Add `size` delivered exchanges to a database, numbered from `first`."""
    migrate.upgrade(url, 5.0)
    location = locate(url)
    chance = random.Random(size)
    with closing(_keys(location)) as keys, migrator(location).connect() as connection:
        if location.path is not None:
            # The copy that is measured is synced; here, each page of an index would be read again and again.
            connection.exec_driver_sql("COMMIT")
            connection.exec_driver_sql("PRAGMA synchronous=OFF")
            connection.exec_driver_sql("PRAGMA cache_size=-500000")
            connection.exec_driver_sql("BEGIN")
        vault = Vault(keys)
        changes = KeyChanges(connection, vault)
        vault.open(changes)
        changes.prepare()
        for start in range(first, first + size, _COMMIT):
            changes = KeyChanges(connection, vault)
            end = min(start + _COMMIT, first + size)
            for some in range(start, end, BATCH):
                numbers = range(some, min(some + BATCH, end))
                rows = [_row(number, *place(number, chance), vault, changes, is_encrypted) for number in numbers]
                connection.execute(insert(exchanges), rows)
                connection.execute(
                    insert(parts),
                    [
                        {"exchange": number + 1, "number": 0, "message": f"17000{number:08}.000200"}
                        for number in numbers
                    ],
                )
            changes.prepare()
            connection.commit()
        _advance(connection, first)
        connection.commit()


def _keys(location: Location) -> Keys:
    return _BulkKeys(location.name) if location.path is None else keys_of(location)


def _row(number: int, where: int, author: int, vault: Vault, changes: KeyChanges, is_encrypted: bool) -> dict[str, Any]:
    said = message(number, where, author)
    answer = Answer(ANSWER, usage=Usage(400, 300))
    texts = question_texts(said), answer_texts(answer)
    if is_encrypted:
        question, answered = (
            changes.encrypt(exchanges, name, each)
            for name, each in zip(("question_key", "answer_key"), texts, strict=True)
        )
    else:
        question, answered = ({name: text and text.encode() for name, text in each.items()} for each in texts)
    return {
        **message_values(said),
        **question,
        **answer_values(answer),
        **answered,
        "id": number + 1,
        "author": vault.pseudonym("slack", said.author.id) if is_encrypted else said.author.id,
        "kind": Kind.CHAT,
        "status": Status.DELIVERED,
        "seed": number,
        "fence": 1,
    }


def _advance(connection: Connection, first: int) -> None:
    """Add the channels of rows from `first` on that are not known yet."""
    place = exchanges.c.platform, exchanges.c.channel, func.coalesce(exchanges.c.thread, "")
    newest = (
        select(*place, func.max(exchanges.c.id), func.max(exchanges.c.message))
        .where(exchanges.c.id > first, exchanges.c.channel.not_in(select(channels.c.channel)))
        .group_by(*place)
    )
    names = ["platform", "channel", "thread", "last_exchange", "last_message"]
    connection.execute(insert(channels).from_select(names, newest))
    if connection.dialect.name == "postgresql":
        last = select(func.setval(func.pg_get_serial_sequence("exchanges", "id"), func.max(exchanges.c.id)))
        connection.execute(last)


def kept(folder: Path, size: int) -> Path:
    """Return a database of `size` exchanges in the folder, built if it is not there."""
    path = folder / f"{size}.db"
    if not path.exists():
        print(f"writing {size:,} exchanges …", flush=True)
        partial = folder / f"{size}.partial"
        for old in (partial, path_beside(partial)):
            old.unlink(missing_ok=True)
        fill(f"sqlite+aiosqlite:///{partial}", 0, size)
        path_beside(partial).replace(path_beside(path))
        partial.replace(path)
    return path


def copied(path: Path, folder: Path) -> Path:
    """Copy a database that is not open, with its keys."""
    copy = folder / path.name
    for file, target in ((path, copy), (path_beside(path), path_beside(copy))):
        shutil.copyfile(file, target)
    return copy


def size_on_disk(path: Path) -> int:
    """Return the bytes of a database and its keys, if it has any."""
    return sum(file.stat().st_size for file in (path, path_beside(path)) if file.exists())


def growth_by_encryption(folder: Path, size: int) -> float:
    """Return the share by which the encryption lets a database grow."""
    sizes = []
    for is_encrypted in (True, False):
        path = folder / f"growth-{is_encrypted}.db"
        fill(f"sqlite+aiosqlite:///{path}", 0, size, is_encrypted=is_encrypted)
        sizes.append(size_on_disk(path) if is_encrypted else path.stat().st_size)
    return sizes[0] / sizes[1] - 1
