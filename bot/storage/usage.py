"""Statements for the ledger: what was used of the model, by day, of people, channels, servers and platforms."""

from collections.abc import Collection, Iterable
from datetime import date
from typing import Any

from sqlalchemy import Connection, Delete, Row, Select, delete, select
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert

from bot.domain import ChannelKey, IncomingMessage, Scope, UsageSum
from bot.storage.schema import exchanges, usage
from bot.storage.vault import Vault, WriteTransaction
from bot.usage import counted_scopes

AnyInsert = SqliteInsert | PostgresInsert

SUMS = ("answers", "prompt_tokens", "completion_tokens", "milliseconds")


def stored_place(scope: Scope, vault: Vault) -> str:
    """Return the `place` of a scope: of a person the pseudonym."""
    if scope.level != "user":
        return scope.id
    platform, _, person = scope.id.partition(":")
    return f"{platform}:{vault.pseudonym(platform, person)}"


async def count_use(
    tx: WriteTransaction, addition: AnyInsert, vault: Vault, message: IncomingMessage, use: UsageSum, day: date
) -> None:
    """Add to the sums of the day: one statement, of `adding`, for all scopes."""
    sums = {name: getattr(use, name) for name in SUMS}
    rows = [
        {"level": scope.level, "place": stored_place(scope, vault), "day": day, **sums}
        for scope in counted_scopes(message)
    ]
    await tx.execute(addition, rows)


def adding(new: AnyInsert) -> AnyInsert:
    """Build the statement that adds to the sums of a day, or begins them."""
    added = {name: usage.c[name] + new.excluded[name] for name in SUMS}
    return new.on_conflict_do_update(index_elements=list(usage.primary_key), set_=added)


def select_use(level: str, place: str, since: date) -> Select[Any]:
    """Select the days of one scope."""
    return select(usage).where(usage.c.level == level, usage.c.place == place, usage.c.day >= since)


def to_use(row: Row[Any]) -> UsageSum:
    return UsageSum(*(int(getattr(row, name)) for name in SUMS))  # sums of PostgreSQL are decimals


def delete_use(before: date, levels: Collection[str] = ()) -> Delete:
    """Delete the days before this one, of some levels or of all."""
    aged = delete(usage).where(usage.c.day < before)
    return aged.where(usage.c.level.in_(levels)) if levels else aged


async def rename_use(tx: WriteTransaction, addition: AnyInsert, channel: ChannelKey, to: str) -> None:
    """Move the sums of a channel to its new id, to those that it has there; a server that is the channel moves with it."""
    old = str(ChannelKey(channel.platform, channel.channel))
    theirs = usage.c.level.in_(["channel", "server"]), usage.c.place == old
    rows = [dict(row._mapping) for row in await tx.execute(select(usage).where(*theirs))]
    if rows:
        place = str(ChannelKey(channel.platform, to))
        await tx.execute(addition, [{**row, "place": place} for row in rows])
        await tx.execute(delete(usage).where(*theirs))


def people_of(connection: Connection, vault: Vault, places: Iterable[str]) -> dict[str, str]:
    """Return the ids, as in config.toml, of the people that pseudonyms stand for, while a message of theirs is stored."""
    found = {}
    columns = exchanges.c.author_id, exchanges.c.question_key
    for place in places:
        platform, _, name = place.partition(":")
        theirs = exchanges.c.author_platform == platform, exchanges.c.author == name
        rows = connection.execute(select(*columns).where(*theirs, exchanges.c.author_id.is_not(None)).limit(1)).all()
        for row in vault.decrypt(connection, exchanges, rows):
            if isinstance(row, dict) and row["author_id"]:
                found[place] = f"{platform}:{row['author_id']}"
    return found
