"""Check what a setting names on a platform: `"discord:1234"` in `[servers."discord:1234"]`."""

import re
from collections.abc import Mapping
from typing import ClassVar

from bot.config.http import WEB_PLATFORM
from bot.config.schema import AdapterSection

# Of a person or place, or channel:thread; Telegram's groups are negative.
_NUMERIC_ID = re.compile(r"-?[0-9]+(:[0-9]+)?")


class _WebSection(AdapterSection):
    """The chat page, which has no table of its own."""

    has_roles: ClassVar[bool] = False
    has_servers: ClassVar[bool] = False
    has_channels: ClassVar[bool] = False


def check_platform_id(named: str, adapters: Mapping[str, type[AdapterSection]], table: str) -> str:
    """Return the id if its platform can have it in a `table` such as "servers".

    Raises:
        ValueError: It cannot.
    """
    platform, _, id = named.partition(":")
    sections = _sections(adapters)
    section = sections.get(platform)
    if section is None:
        raise ValueError(f"{named!r}: unknown platform; known platforms: {', '.join(sections)}")
    if (table == "roles" and not section.has_roles) or (table == "servers" and not section.has_servers):
        raise ValueError(f"{named!r}: {platform} has no {table}")
    if id and section.has_numeric_ids and not _NUMERIC_ID.fullmatch(id):
        raise ValueError(f'{named!r}: an id of {platform} is a number, as in "{platform}:1234"')
    if table == "servers" and section.has_negative_groups and not id.startswith("-"):
        raise ValueError(f'{named!r}: the id of a group on {platform} is negative, as in "{platform}:-1001234"')
    return named


def check_quota(name: str, adapters: Mapping[str, type[AdapterSection]]) -> str:
    """Return the name of a table of `[quotas]`, such as "channel:slack:C01", if its platform can have it.

    Raises:
        ValueError: It cannot, or it would never be in force.
    """
    level, _, named = name.partition(":")
    if not named:
        return name
    platform, _, id = check_platform_id(named, adapters, f"{level}s").partition(":")
    section = _sections(adapters)[platform]
    if level != "channel":
        return name
    if not section.has_channels or (section.has_negative_groups and not id.startswith("-")):
        raise ValueError(f'{name!r}: a direct chat is no channel; write [quotas.user] or [quotas."user:{platform}:…"]')
    if ":" in id:
        raise ValueError(f"{name!r} names a thread: a channel's quota covers its threads, leave the last id out")
    return name


def _sections(adapters: Mapping[str, type[AdapterSection]]) -> Mapping[str, type[AdapterSection]]:
    return {**adapters, WEB_PLATFORM: _WebSection}
