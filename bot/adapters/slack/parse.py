"""What people say on Slack, as the bot understands it: which message is for it, from whom, in plain words."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.slack.errors import map_errors
from bot.chat.commands import COMMANDS, parse
from bot.domain import Author, ChannelKey, IncomingMessage
from bot.errors import PlatformError
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PLATFORM = "slack"
Event = Mapping[str, Any]

# All other subtypes tell of joins, topics, pins, and what other bots say.
_SPOKEN = frozenset({"", "file_share", "thread_broadcast", "me_message"})
_TIMESTAMP = re.compile(r"\d{1,12}\.\d{1,9}")
_ID = re.compile(r"[\w.-]{1,100}", re.ASCII)
_MARKED = re.compile(r"<([^<>]*)>")
_ESCAPES = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}

# Slack waits 3 s for its acknowledgement: a name or a quotation is not worth missing it.
_LOOK_UP_SECONDS = 1.0
_MOST_NAMES = 20
# A changed name or language shows after an hour; ten thousand people weigh a few megabytes.
_REMEMBERED_SECONDS = 3600.0
_UNKNOWN_SECONDS = 60.0
_REMEMBERED_PEOPLE = 10_000


@dataclass(frozen=True, slots=True)
class BotIdentity:
    """Whom the bot token belongs to."""

    user: str
    bot: str
    team: str
    name: str


@dataclass(frozen=True, slots=True)
class User:
    name: str
    locale: str | None = None
    is_bot: bool = False


class UserDirectory:
    """Names and languages of the workspace's people, each asked for once in an hour."""

    def __init__(self, web: AsyncWebClient, clock: Clock) -> None:
        self._web = web
        self._clock = clock
        self._known: dict[str, tuple[float, User]] = {}

    async def person(self, user: str) -> User:
        """Look somebody up; who cannot be found in time is called by their id."""
        until, known = self._known.get(user, (0.0, None))
        if known is not None and self._clock.now() < until:
            return known
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS):
                with map_errors():
                    response = await self._web.users_info(user=user, include_locale=True)
        except (PlatformError, TimeoutError) as error:
            log.warning("a person is unknown", error=str(error) or "no answer in time")
            self._remember(user, known or User(user), _UNKNOWN_SECONDS)
            return known or User(user)
        told = response.get("user") or {}
        profile = told.get("profile") or {}
        name = profile.get("display_name") or profile.get("real_name") or told.get("name") or user
        person = User(name, told.get("locale"), bool(told.get("is_bot")))
        self._remember(user, person, _REMEMBERED_SECONDS)
        return person

    def _remember(self, user: str, person: User, seconds: float) -> None:
        if len(self._known) >= _REMEMBERED_PEOPLE:
            del self._known[next(iter(self._known))]
        self._known[user] = (self._clock.now() + seconds, person)


class MessageParser:
    """Tells which events are said to the bot, and makes messages of them."""

    def __init__(
        self,
        me: BotIdentity,
        web: AsyncWebClient,
        people: UserDirectory,
        knows: Callable[[ChannelKey], Awaitable[bool]],
        *,
        threads: bool,
    ) -> None:
        self._me = me
        self._web = web
        self._people = people
        self._knows = knows
        self._threads = threads
        self._mention = re.compile(rf"<@{re.escape(me.user)}(?:\|[^<>]*)?>[ \t]*[,:，：]?[ \t]*")

    async def heard(self, event: Event) -> IncomingMessage | None:
        """Make a message of what is said to the bot; None if this event is not.

        One mention comes as `message` and as `app_mention`: both give the same message.
        """
        said = self._said(event)
        if said is None:
            return None
        channel, thread, ts, raw = said
        is_direct = channel.startswith("D")
        is_answer = event.get("parent_user_id") == self._me.user
        is_known = thread is not None and await self._knows(ChannelKey(PLATFORM, channel, thread))
        if not (is_direct or self._mention.search(raw) or is_answer or (is_known and self._threads)):
            return None
        message = await self._message(event, channel, thread, ts, raw)
        if thread is None or is_known:
            return message
        return replace(message, quoted=await self._root(channel, thread) or None)

    async def changed(self, event: Event) -> IncomingMessage | None:
        """Make a message of what somebody edited, whether it was said to the bot or not."""
        said = self._said(event)
        return None if said is None else await self._message(event, *said)

    def _said(self, event: Event) -> tuple[str, str | None, str, str] | None:
        """Channel, thread, timestamp and text of what a person said."""
        channel, ts, user = id_of(event, "channel"), text_of(event, "ts"), id_of(event, "user")
        is_spoken = text_of(event, "subtype") in _SPOKEN and not event.get("bot_id")
        if not (is_spoken and channel and is_timestamp(ts) and user and user != self._me.user):
            return None
        thread = text_of(event, "thread_ts")
        return channel, thread if is_timestamp(thread) and thread != ts else None, ts, text_of(event, "text")

    async def _message(self, event: Event, channel: str, thread: str | None, ts: str, raw: str) -> IncomingMessage:
        user = text_of(event, "user")
        person = await self._people.person(user)
        text = await self._plain(self._mention.sub("", raw))
        is_direct = channel.startswith("D")
        # A mention outside a thread begins one; a command there is about the whole channel.
        if thread is None and not is_direct and parse(text) is None:
            thread = ts
        return IncomingMessage(
            id=ts,
            channel=ChannelKey(PLATFORM, channel, thread),
            author=Author(PLATFORM, user, person.name, is_bot=person.is_bot),
            text=text,
            sent_at=datetime.fromtimestamp(float(ts), UTC),
            server=self._me.team,
            is_direct=is_direct,
            locale=person.locale,
        )

    async def _root(self, channel: str, thread: str) -> str | None:
        """What the thread hangs on: whoever calls the bot into a thread speaks about that."""
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS):
                with map_errors():
                    response = await self._web.conversations_replies(channel=channel, ts=thread, limit=1)
        except (PlatformError, TimeoutError) as error:
            log.warning("a thread's first message cannot be read", error=str(error) or "no answer in time")
            return None
        roots: list[Event] = response.get("messages") or []
        return await self._plain(self._mention.sub("", text_of(roots[0], "text"))) if roots else None

    async def _plain(self, raw: str) -> str:
        """Write Slack's notation for people, channels and links as they are read."""
        marks = [marked[1:].partition("|")[0] for marked in _MARKED.findall(raw) if marked.startswith("@")]
        users = [mark for mark in dict.fromkeys(marks) if _ID.fullmatch(mark)][:_MOST_NAMES]
        people = await asyncio.gather(*map(self._people.person, users))
        names = {user: person.name for user, person in zip(users, people, strict=True)}
        return _unescaped(_MARKED.sub(lambda found: _read(found[1], names), raw)).strip()


def slash(command: Mapping[str, Any], person: User) -> IncomingMessage:
    """Make a message of a slash command.

    It has no timestamp; who used it and Slack's name for this one use are its id.
    """
    user, channel = id_of(command, "user_id"), id_of(command, "channel_id")
    return IncomingMessage(
        id=f"/{user}/{id_of(command, 'trigger_id')}",
        channel=ChannelKey(PLATFORM, channel),
        author=Author(PLATFORM, user, person.name, is_bot=person.is_bot),
        text=spelled(text_of(command, "command"), text_of(command, "text")),
        sent_at=datetime.now(UTC),
        server=text_of(command, "team_id"),
        is_direct=channel.startswith("D"),
        locale=person.locale,
    )


def spelled(name: str, text: str) -> str:
    """Write a slash command as it is written everywhere else.

    What it is called in the app's settings is free: one command for all, or one for each.

    >>> spelled("/chat", "clear"), spelled("/glm-clear", ""), spelled("/stop", ""), spelled("/chat", "")
    ('/clear', '/clear', '/stop', '/help')
    """
    word, _, args = text.strip().partition(" ")
    called = re.split("[-_/]", name.lower())[-1]
    if called in COMMANDS:
        return f"/{called} {text}".strip()
    called = word.lower().removeprefix("/")
    if called in COMMANDS:
        return f"/{called} {args}".strip()
    return f"/{called}" if called.isalpha() else "/help"


def text_of(event: Event, key: str) -> str:
    """A field that should be a text, and is not always."""
    value = event.get(key)
    return value if isinstance(value, str) else ""


def id_of(event: Event, key: str) -> str:
    """A field that should name a person, a channel or an interaction; ids stand in logs, and texts may not."""
    value = text_of(event, key)
    return value if _ID.fullmatch(value) else ""


def is_timestamp(text: str) -> bool:
    """Whether this is the id of a message.

    >>> is_timestamp("1718000000.000100"), is_timestamp("/U01/13345224609.738474920.8088930838d88f008e0")
    (True, False)
    """
    return _TIMESTAMP.fullmatch(text) is not None


def _read(marked: str, names: Mapping[str, str]) -> str:
    """Read what stands between < and >.

    >>> [_read(marked, {"U01": "Mei"}) for marked in ("@U01", "#C1|general", "!here", "!subteam^S1|@team")]
    ['@Mei', '#general', '@here', '@team']
    >>> [_read(marked, {}) for marked in ("http://a.b|a.b", "http://a.b|this", "http://a.b", "!date^1^{date}|May")]
    ['a.b', 'this (http://a.b)', 'http://a.b', 'May']
    """
    target, _, label = marked.partition("|")
    match target[:1]:
        case "@":
            return f"@{names.get(target[1:], target[1:])}"
        case "#":
            return f"#{label or target[1:]}"
        case "!":
            return label or f"@{target[1:]}"
        case _:
            return f"{label} ({target})" if label and not target.endswith(label) else label or target


def _unescaped(text: str) -> str:
    return re.sub("&(?:lt|gt|amp);", lambda found: _ESCAPES[found[0]], text)
