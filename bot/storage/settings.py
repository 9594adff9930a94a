"""Statements for settings that were set in the chat: the newest row of a place and setting is in force."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Delete, Insert, Row, Select, Update, delete, func, insert, literal, or_, select, update

from bot.domain import Author, ChannelKey, Scope, ScopeLevel, SettingChange
from bot.storage.schema import SafeText, settings

_LEVELS = get_args(ScopeLevel)
_NEWEST = select(func.max(settings.c.id)).group_by(settings.c.level, settings.c.place, settings.c.setting)


def select_settings() -> Select[Any]:
    """Select the settings in force."""
    return select(settings).where(settings.c.id.in_(_NEWEST)).order_by(settings.c.id)


def select_changes(place: str, limit: int) -> Select[Any]:
    """Select the latest changes of a place, newest first."""
    return select(settings).where(settings.c.place == place).order_by(settings.c.id.desc()).limit(limit)


def insert_change(change: SettingChange) -> Insert:
    values = {
        "level": change.scope.level,
        "place": change.scope.id,
        "setting": change.setting,
        "value": change.value,
        "text": change.text,
        "author_platform": change.author.platform,
        "author": change.author.id,
        "author_name": change.author.name,
        "set_at": change.at,
    }
    number = select(func.coalesce(func.max(settings.c.id), 0) + 1).scalar_subquery()
    return insert(settings).values(id=number, **values)


def forget_author(author: Author) -> Update:
    """Clear the texts of a person and blank the name; a choice between the operator's names stays."""
    by = settings.c.author_platform == author.platform, settings.c.author == author.id
    return update(settings).where(*by).values(text=None, author="", author_name="")


def expire_changes(before: datetime) -> Delete:
    """Delete rows of this age that are no longer in force."""
    return delete(settings).where(settings.c.set_at < before, settings.c.id.not_in(_NEWEST))


def rename_places(channel: ChannelKey, to: str) -> Update:
    """Move the settings of a channel and its threads to the channel's new id."""
    old, new = str(ChannelKey(channel.platform, channel.channel)), str(ChannelKey(channel.platform, to))
    here = or_(
        (settings.c.level == "channel") & (settings.c.place == old),
        (settings.c.level == "thread") & settings.c.place.startswith(f"{old}:", autoescape=True),
    )
    moved = literal(new, SafeText) + func.substr(settings.c.place, len(old) + 1)
    return update(settings).where(here).values(place=moved)


def to_changes(rows: Iterable[Row[Any]]) -> Iterator[SettingChange]:
    """Convert rows; skip those that no version of this program wrote."""
    for row in rows:
        if row.level in _LEVELS and row.set_at is not None:
            author = Author(row.author_platform, row.author, row.author_name)
            yield SettingChange(Scope(row.level, row.place), row.setting, row.value, row.text, author, row.set_at)
