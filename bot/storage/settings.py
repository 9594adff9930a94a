"""Statements for settings that were set in the chat: the newest row of a place and setting is in force."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Select, Update, and_, delete, exists, func, insert, literal, or_, select, update

from bot.domain import Author, ChannelKey, Scope, ScopeLevel, SettingChange
from bot.storage.encryption import DamagedRow, KeyMissing
from bot.storage.schema import IS_RESTORED, SafeText, settings
from bot.storage.vault import AnyRow, WriteTransaction

_LEVELS = get_args(ScopeLevel)
_BLANK = {"author": "", "author_id": None, "author_name": b""}
_NEWEST = select(func.max(settings.c.id)).group_by(settings.c.level, settings.c.place, settings.c.setting)


def select_settings() -> Select[Any]:
    """Select the settings in force."""
    return select(settings).where(settings.c.id.in_(_NEWEST)).order_by(settings.c.id)


def select_changes(place: str | None, limit: int, setting: str | None = None) -> Select[Any]:
    """Select the latest changes of a place, or of all, newest first; of all settings, or of one."""
    # All of them are read in the order of the key, from its end, and no further than the limit.
    where = [settings.c.id > 0 if place is None else settings.c.place == place]
    if setting is not None:
        where.append(settings.c.setting == setting)
    return select(settings).where(*where).order_by(settings.c.id.desc()).limit(limit)


async def insert_change(tx: WriteTransaction, change: SettingChange, pseudonym: str) -> None:
    author = change.author
    texts = {
        "text": change.text,
        "text_author": change.text_author,
        "author_id": author.id,
        "author_name": author.name,
    }
    values = {
        "level": change.scope.level,
        "place": change.scope.id,
        "setting": change.setting,
        "value": change.value,
        "author_platform": author.platform,
        "author": pseudonym,
        "set_at": change.at,
    }
    number = select(func.coalesce(func.max(settings.c.id), 0) + 1).scalar_subquery()
    encrypted = await tx.encrypt(settings, "text_key", texts)
    await tx.execute(insert(settings).values(id=number, **values, **encrypted))


async def forget_author(tx: WriteTransaction, author: Author, names: Sequence[str]) -> None:
    """Clear the texts of a person and blank the name; a choice between the operator's names stays."""
    await _forget_in_restored(tx, author, names)
    by = settings.c.author_platform == author.platform, settings.c.author.in_(names)
    tx.keys.delete(*(await tx.execute(select(settings.c.text_key).where(*by))).scalars())
    await tx.execute(update(settings).where(*by).values(**_BLANK, text=None, text_author=None, text_key=None))


async def _forget_in_restored(tx: WriteTransaction, author: Author, names: Sequence[str]) -> None:
    """Clear the part of restored settings that is of one person: the text, or the name of the person who restored it."""
    # With a bound SQLite searches the index of such rows.
    rows = (await tx.execute(select(settings).where(IS_RESTORED, settings.c.id > 0))).all()
    own: dict[str, Any]
    for row in await tx.decrypt(settings, rows):
        if isinstance(row, DamagedRow):
            continue
        if row["text_author"] == author.key:
            kept, own = ("author_id", "author_name"), {"text": None, "text_author": None}
        elif row["author_platform"] == author.platform and row["author"] in names:
            kept, own = ("text", "text_author"), _BLANK
        else:
            continue
        tx.keys.delete(row["text_key"])
        encrypted = await tx.encrypt(settings, "text_key", {name: row[name] for name in kept})
        await tx.execute(update(settings).where(settings.c.id == row["id"]).values(**own, **encrypted))


async def expire_changes(tx: WriteTransaction, before: datetime) -> None:
    """Delete rows that have not been in force since then."""
    newer = settings.alias()
    same = and_(*(newer.c[name] == settings.c[name] for name in ("level", "place", "setting")))
    replaced = exists().where(same, newer.c.id > settings.c.id, newer.c.set_at < before)
    aged = settings.c.set_at < before, replaced
    tx.keys.delete(*(await tx.execute(select(settings.c.text_key).where(*aged))).scalars())
    await tx.execute(delete(settings).where(*aged))


def rename_places(channel: ChannelKey, to: str) -> Update:
    """Move the settings of a channel and its threads to its new id; a server that is the channel moves with it."""
    old, new = str(ChannelKey(channel.platform, channel.channel)), str(ChannelKey(channel.platform, to))
    here = or_(
        settings.c.level.in_(["channel", "server"]) & (settings.c.place == old),
        (settings.c.level == "thread") & settings.c.place.startswith(f"{old}:", autoescape=True),
    )
    moved = literal(new, SafeText) + func.substr(settings.c.place, len(old) + 1)
    return update(settings).where(here).values(place=moved)


def without_texts(row: AnyRow) -> dict[str, Any]:
    """Return a row as it is once its author is forgotten, decrypted."""
    return {**row._asdict(), **_BLANK, "author_name": "", "text": None, "text_author": None}


def to_changes(rows: Iterable[AnyRow], decrypted: Iterable[dict[str, Any] | DamagedRow]) -> Iterator[SettingChange]:
    """Convert rows; skip those that no version of this program wrote.

    A row whose key is deleted is one of a restored database, whose author was forgotten since: the choice stays.
    """
    for stored, texts in zip(rows, decrypted, strict=True):
        row = without_texts(stored) if isinstance(texts, KeyMissing) else texts
        if isinstance(row, dict) and row["level"] in _LEVELS and row["set_at"] is not None:
            author = Author(row["author_platform"], row["author_id"] or "", row["author_name"])
            scope = Scope(row["level"], row["place"])
            written = row["text"], author, row["set_at"], row["text_author"]
            yield SettingChange(scope, row["setting"], row["value"], *written)
