"""Export a channel's exchanges as JSON."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select, true

from bot.domain import Attachment, ChannelKey, Exchange, SettingChange
from bot.errors import StoreError
from bot.storage import migrate
from bot.storage.connections import inspector, locate, snapshot_reader
from bot.storage.encryption import DamagedRow, KeyMissing
from bot.storage.errors import map_errors
from bot.storage.further import read_further, with_further
from bot.storage.key_file import path_beside
from bot.storage.keys import keys_of
from bot.storage.master_key import NO_MASTER_KEY, MasterKeys
from bot.storage.pictures import PICTURES, with_pictures
from bot.storage.rows import file_fields, to_exchange
from bot.storage.schema import EXCHANGE, IS_KEPT, exchanges, settings
from bot.storage.settings import to_changes
from bot.storage.vault import Vault

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Rows, some of them with pictures.
BATCH = 100


def count_exchanges(url: str) -> dict[ChannelKey, int]:
    """Return the number of exchanges per channel and thread, highest first, without deleted ones.

    Raises:
        StoreError: The database cannot be read, or is not up to date.
    """
    with open_snapshot(url) as connection:
        return _count_exchanges(connection)


def export_channel(url: str, name: str, master: MasterKeys = NO_MASTER_KEY) -> Iterator[str]:
    """Yield a JSON object in lines: the exchanges of the channel whose `str(ChannelKey)` is `name`.

    A channel without a thread includes its threads, as in `/clear`.

    Raises:
        StoreError: The database cannot be read, or has no such channel.
    """
    with open_snapshot(url) as connection, reading_vault(url, connection, master) as vault:
        here = _condition(name, _count_exchanges(connection), locate(url).name)
        yield f'{{"channel": {_json(name)}, "exchanges": ['
        comma = ""
        for exchange in readable(connection, vault, here):
            yield comma + _json(_to_json(exchange))
            comma = ",\n"
        rows = connection.execute(_set_at(name)).all()
        changes = to_changes(rows, vault.decrypt(connection, settings, rows))
        yield '\n], "settings": ['
        yield ",\n".join(_json(_change_to_json(change)) for change in changes)
        yield "]}\n"


def export_all(url: str, master: MasterKeys = NO_MASTER_KEY) -> Iterator[str]:
    """Yield every exchange that is not deleted as a line of JSON with its channel, for another program.

    Raises:
        StoreError: The database cannot be read.
    """
    with open_snapshot(url) as connection, reading_vault(url, connection, master) as vault:
        for exchange in readable(connection, vault, true()):
            channel = replace(exchange.message.channel, thread=None)
            yield _json({"channel": str(channel), **_to_json(exchange)}) + "\n"


def readable(connection: Connection, vault: Vault, here: ColumnElement[bool]) -> Iterator[Exchange]:
    """Yield the exchanges that can be decrypted, by id; log the others."""
    last = 0
    while rows := connection.execute(_after(last, here)).all():
        further = read_further(connection, vault, [row.id for row in rows])
        for row, decrypted in zip(rows, vault.decrypt(connection, exchanges, rows), strict=True):
            last = row.id
            try:
                if isinstance(decrypted, DamagedRow):
                    raise decrypted
                exchange = with_further(to_exchange(decrypted), further.get(row.id))
                yield replace(exchange, message=with_pictures(exchange.message, decrypted))
            except KeyMissing:
                continue  # deleted meanwhile
            except DamagedRow as error:
                log.error("exchange skipped, its row is damaged", exchange=row.id, column=str(error))


@contextmanager
def open_snapshot(url: str) -> Iterator[Connection]:
    """Open a read-only connection on one snapshot; a bot may run meanwhile.

    Raises:
        StoreError: The database does not exist, or has another revision.
    """
    location = locate(url)
    revision, head = migrate.current_revision(url), migrate.head_revision()
    if revision is None:
        raise StoreError(f"no database {location.name}: nothing is stored yet")
    if revision != head:
        raise StoreError(
            f"{location.name} has revision {revision}, this version requires {head}: upgrade it with bot migrate, "
            "or update the program"
        )
    with map_errors(location.name), snapshot_reader(location).begin() as connection:
        yield connection


@contextmanager
def reading_vault(url: str, connection: Connection, master: MasterKeys = NO_MASTER_KEY) -> Iterator[Vault]:
    """Open the keys of a database to read them; a bot may run meanwhile.

    Raises:
        StoreError: They are not there, or not those of this database.
    """
    keys = keys_of(locate(url), master)
    try:
        vault = Vault(keys)
        vault.open_to_read(connection)
        yield vault
    finally:
        keys.close()


def check_keys(url: str, master: MasterKeys = NO_MASTER_KEY) -> None:
    """Check that a bot could use the keys of a database that it has opened before; change nothing.

    Raises:
        StoreError: As `reading_vault`, or they cannot be written.
    """
    location = locate(url)
    if migrate.current_revision(url) != migrate.head_revision():
        return
    with (
        map_errors(location.name),
        inspector(location).connect() as connection,
        reading_vault(url, connection, master),
    ):
        keys = location.path and path_beside(location.path)
        if keys and keys.exists() and not os.access(keys, os.W_OK):
            raise StoreError(f"{keys} cannot be written: the bot's user needs read and write permission on it")


def _count_exchanges(connection: Connection) -> dict[ChannelKey, int]:
    place = (exchanges.c.platform, exchanges.c.channel, exchanges.c.thread)
    count = func.count().label("number")
    query = select(*place, count).where(IS_KEPT).group_by(*place).order_by(count.desc(), *place)
    return {ChannelKey(row.platform, row.channel, row.thread): row.number for row in connection.execute(query)}


def _condition(name: str, known: Mapping[ChannelKey, int], place: str) -> ColumnElement[bool]:
    # Compared and not parsed, because ids may contain colons.
    whole = {(key.platform, key.channel) for key in known if str(ChannelKey(key.platform, key.channel)) == name}
    threads = {key for key in known if str(key) == name and (key.platform, key.channel) not in whole}
    if not (whole or threads):
        near = get_close_matches(name, map(str, known), n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise StoreError(f"no conversation {name!r} in {place}{hint}: list them with bot export")
    return or_(
        *(and_(exchanges.c.platform == platform, exchanges.c.channel == channel) for platform, channel in whole),
        *(
            and_(
                exchanges.c.platform == key.platform,
                exchanges.c.channel == key.channel,
                exchanges.c.thread == key.thread,
            )
            for key in threads
        ),
    )


def _after(last: int, here: ColumnElement[bool]) -> Any:
    return (
        select(*EXCHANGE, *PICTURES).where(here, IS_KEPT, exchanges.c.id > last).order_by(exchanges.c.id).limit(BATCH)
    )


def _set_at(name: str) -> Select[Any]:
    """Select what was set in the chat there, oldest first."""
    here = or_(settings.c.place == name, settings.c.place.startswith(f"{name}:", autoescape=True))
    return select(settings).where(here, settings.c.level.in_(("channel", "thread"))).order_by(settings.c.id)


def _change_to_json(change: SettingChange) -> dict[str, Any]:
    return {
        "place": change.scope.id,
        "setting": change.setting,
        "value": change.value,
        "text": change.text,
        "author": {"id": change.author.key if change.author.id else "", "name": change.author.name},
        "text_author": change.text_author,
        "set_at": change.at.isoformat(),
    }


def _to_json(exchange: Exchange) -> dict[str, Any]:
    message, answer = exchange.message, exchange.answer
    return {
        "id": exchange.id,
        "thread": message.channel.thread,
        "message": message.id,
        "kind": exchange.kind,
        "status": exchange.status,
        "sent_at": message.sent_at.isoformat(),
        "server": message.server,
        "is_direct": message.is_direct,
        "locale": message.locale,
        "author": {
            "id": message.author.key if message.author.id else "",
            "name": message.author.name,
            "roles": sorted(message.author.roles),
            "is_bot": message.author.is_bot,
        },
        "quoted": message.quoted,
        "quoted_id": message.quoted_id,
        "quotes_bot": message.quotes_bot,
        "files": [_file_to_json(file) for file in message.files],
        "text": message.text,
        "further": [
            {
                "message": each.id,
                "channel": each.channel,
                "kind": each.kind,
                "sent_at": each.sent_at.isoformat(),
                "author": {"id": each.author.key, "name": each.author.name},
                "text": each.text,
                "files": [_file_to_json(file) for file in each.files],
            }
            for each in message.further
        ],
        "answer": answer
        and {
            "text": answer.text,
            "notice": answer.notice,
            "reason": answer.reason,
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
        },
        "parts": exchange.parts,
    }


def _file_to_json(file: Attachment) -> dict[str, Any]:
    return file_fields(file) | ({} if file.picture is None else {"picture": file.picture.url})


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
