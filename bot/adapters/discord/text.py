"""Discord's notation as plain words: names, dates, commands; the text of embeds and polls."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import discord

from bot.adapters.malformed import PARSE_ERRORS

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Code is matched first, so that notation in it stays as it is.
_NOTATION = re.compile(
    r"(?P<code>```.*?```|``.+?``|`[^`\n]+`)"
    r"|<(?P<kind>@!?|@&|\#)(?P<id>\d{1,20})>"
    r"|<t:(?P<time>-?\d{1,17})(?::(?P<style>\w))?>"
    r"|<(?P<command>/[^<>:\n]{1,100}):\d{1,20}>"
    r"|<id:(?P<page>[\w-]{1,32})(?::\d{1,20})?>"
    r"|<(?P<sound>sound):\d{1,20}:\d{1,20}>"
    r"|<a?(?P<emoji>:\w{1,64}:)\d{1,20}>",
    re.DOTALL,
)
_PAGES = {
    "browse": "Browse Channels",
    "customize": "Channels & Roles",
    "guide": "Server Guide",
    "home": "Server Guide",  # its former name
    "linked-roles": "Linked Roles",
}
_DATE_ONLY, _TIME_ONLY = frozenset("dD"), frozenset("tT")


def plain_text(content: str, users: Mapping[int, str], guild: discord.Guild | None, own: Iterable[str] = ()) -> str:
    """Return the text with names instead of ids, without the mentions `own`.

    >>> plain_text("<t:1700000000:F>, </clear:1> <a:wave:2> `<:x:3>` <#4>", {}, None)
    '2023-11-14 22:13 UTC, /clear :wave: `<:x:3>` #unknown'
    """
    if mentions := "|".join(map(re.escape, own)):
        content = re.sub(rf"[ \t]*(?:{mentions})[ \t]*", " ", content)
    return _NOTATION.sub(lambda found: _words(found, users, guild), content).strip()


def _words(found: re.Match[str], users: Mapping[int, str], guild: discord.Guild | None) -> str:
    match found.lastgroup:
        case "id":
            return _name(found["kind"], int(found["id"]), users, guild)
        case "time" | "style":
            return _date(int(found["time"]), found["style"] or "f") or found[0]
        case "page":
            return _PAGES.get(found["page"], found[0])
        case "command" | "sound" | "emoji" as kind:
            return found[kind]
    return found[0]


def _name(kind: str, id: int, users: Mapping[int, str], guild: discord.Guild | None) -> str:
    if kind == "#":
        channel = guild and guild.get_channel_or_thread(id)
        return f"#{channel.name}" if channel else "#unknown"
    if kind == "@&":
        role = guild and guild.get_role(id)
        return f"@{role.name}" if role else "@unknown-role"
    member = guild and guild.get_member(id)
    return f"@{users.get(id) or (member.display_name if member else 'unknown-user')}"


def _date(seconds: int, style: str) -> str | None:
    try:
        time = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return None
    if style in _DATE_ONLY:
        return time.date().isoformat()
    clock = time.strftime("%H:%M:%S" if style in "TS" else "%H:%M")
    return f"{clock} UTC" if style in _TIME_ONLY else f"{time.date().isoformat()} {clock} UTC"


def whole_text(message: discord.Message | discord.MessageSnapshot) -> str:
    """Return all words that a message shows, as they were written: those of its embeds, poll and components too."""
    found = _read(_content, message)
    if isinstance(message, discord.Message):
        found += _read(poll_text, message)
    for embed in message.embeds:
        found += _read(_embed_text, embed)
    for component in getattr(message, "components", ()):
        found += _read(lambda each: "\n".join(_displayed(each)), component)
    return "\n".join(filter(None, found))


def _content(message: discord.Message | discord.MessageSnapshot) -> str:
    if not message.content and isinstance(message, discord.Message) and message.is_system():
        return message.system_content
    return message.content


def poll_text(message: discord.Message) -> str:
    """Return the question of the message's poll and its answers."""
    if message.poll is None:
        return ""
    return "\n".join([message.poll.question, *(f"- {answer.text}" for answer in message.poll.answers)])


def _embed_text(embed: discord.Embed) -> str:
    if embed.type == "poll_result":
        return ""
    fields = (f"{field.name}: {field.value}" for field in embed.fields)
    return "\n".join(filter(None, [embed.author.name, embed.title, embed.description, *fields, embed.footer.text]))


def _displayed(component: object) -> Iterator[str]:
    if isinstance(component, discord.TextDisplay):
        yield component.content
    for child in getattr(component, "children", None) or ():
        yield from _displayed(child)


def _read(read: Callable[[T], str], part: T) -> list[str]:
    """Return the text of a part of a message, nothing if it has an unexpected form."""
    with suppress(*PARSE_ERRORS):
        return [read(part).strip()]
    return []
