"""Slack events and commands as messages: addressee, author, plain text."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.send_once import RecentDict
from bot.adapters.slack.errors import try_call
from bot.chat.commands import COMMANDS, parse
from bot.domain import Author, ChannelKey, IncomingMessage
from bot.util.clock import Clock

PLATFORM = "slack"
Event = Mapping[str, Any]

# Subtypes of users' messages; the others are joins, topics, pins and bots' messages.
_MESSAGES = frozenset({"", "file_share", "thread_broadcast", "me_message"})
_TIMESTAMP = re.compile(r"\d{1,12}\.\d{1,9}")
_ID = re.compile(r"[\w.-]{1,100}", re.ASCII)
_MARKED = re.compile(r"<([^<>]*)>")
_ESCAPES = {"&lt;": "<", "&gt;": ">", "&amp;": "&"}

# Slack waits 3 s for an acknowledgement, so a name or a quote must not take longer than this.
_LOOKUP_SECONDS = 1.0
_MOST_NAMES = 20
_CACHE_SECONDS = 3600.0
_UNKNOWN_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class BotIdentity:
    """The bot's identity (auth.test)."""

    user: str
    bot: str
    team: str
    name: str


class UserDirectory:
    """Authors and their locales, cached for an hour."""

    def __init__(self, web: AsyncWebClient, clock: Clock) -> None:
        self._web = web
        self._clock = clock
        self._cache: RecentDict[str, tuple[float, Author, str | None]] = RecentDict()

    async def find(self, user: str) -> tuple[Author, str | None]:
        """Look up a user; one that cannot be looked up in time has the id as name."""
        until, author, locale = self._cache.get(user, (0.0, Author(PLATFORM, user, user), None))
        if self._clock.now() >= until:
            response = await try_call(self._web.users_info(user=user, include_locale=True), _LOOKUP_SECONDS)
            if response is None:
                until = self._clock.now() + _UNKNOWN_SECONDS
            else:
                until = self._clock.now() + _CACHE_SECONDS
                found = response.get("user") or {}
                profile = found.get("profile") or {}
                name = profile.get("display_name") or profile.get("real_name") or found.get("name") or user
                author, locale = Author(PLATFORM, user, name, is_bot=bool(found.get("is_bot"))), found.get("locale")
            self._cache[user] = (until, author, locale)
        return author, locale


class MessageParser:
    """Selects the events that address the bot and builds messages from them."""

    def __init__(
        self,
        me: BotIdentity,
        web: AsyncWebClient,
        users: UserDirectory,
        has_history: Callable[[ChannelKey], Awaitable[bool]],
        *,
        threads: bool,
    ) -> None:
        self._me = me
        self._web = web
        self._users = users
        self._has_history = has_history
        self._threads = threads
        self._mention = re.compile(rf"<@{re.escape(me.user)}(?:\|[^<>]*)?>[ \t]*[,:，：]?[ \t]*")

    async def parse(self, event: Event) -> IncomingMessage | None:
        """Build the message of an event; None if it does not address the bot.

        One mention arrives as `message` and as `app_mention`: both give the same message.
        """
        fields = self._fields(event)
        if fields is None:
            return None
        channel, thread, ts, raw = fields
        is_direct = channel.startswith("D")
        is_reply = event.get("parent_user_id") == self._me.user
        is_known = thread is not None and await self._has_history(ChannelKey(PLATFORM, channel, thread))
        if not (is_direct or self._mention.search(raw) or is_reply or (is_known and self._threads)):
            return None
        message = await self._message(event, channel, thread, ts, raw)
        if thread is None or is_known:
            return message
        return replace(message, quoted=await self._first_message(channel, thread))

    async def parse_edit(self, event: Event) -> IncomingMessage | None:
        """Build the message of an edit, whether it addresses the bot or not."""
        fields = self._fields(event)
        return None if fields is None else await self._message(event, *fields)

    async def parse_command(self, command: Mapping[str, Any]) -> IncomingMessage:
        """Build the message of a slash command; its id is made of the user and the trigger id.

        Raises:
            ValueError: The user, channel or trigger is missing.
        """
        user, channel, trigger = (id_of(command, name) for name in ("user_id", "channel_id", "trigger_id"))
        if not (user and channel and trigger):
            raise ValueError("a slash command without user, channel or trigger")
        text = normalize_command(text_of(command, "command"), text_of(command, "text"))
        return await self._build(f"/{user}/{trigger}", user, channel, None, text, datetime.now(UTC))

    def _fields(self, event: Event) -> tuple[str, str | None, str, str] | None:
        """Return channel, thread, timestamp and text of a user's message; None for other events."""
        channel, ts, user = id_of(event, "channel"), text_of(event, "ts"), id_of(event, "user")
        is_message = text_of(event, "subtype") in _MESSAGES and not event.get("bot_id")
        if not (is_message and channel and is_timestamp(ts) and user and user != self._me.user):
            return None
        thread = text_of(event, "thread_ts")
        return channel, thread if is_timestamp(thread) and thread != ts else None, ts, text_of(event, "text")

    async def _message(self, event: Event, channel: str, thread: str | None, ts: str, raw: str) -> IncomingMessage:
        text = await self._plain(raw)
        # A mention outside a thread starts one; a command there concerns the whole channel.
        if thread is None and not channel.startswith("D") and parse(text) is None:
            thread = ts
        sent_at = datetime.fromtimestamp(float(ts), UTC)
        return await self._build(ts, text_of(event, "user"), channel, thread, text, sent_at)

    async def _build(
        self, id: str, user: str, channel: str, thread: str | None, text: str, sent_at: datetime
    ) -> IncomingMessage:
        author, locale = await self._users.find(user)
        return IncomingMessage(
            id=id,
            channel=ChannelKey(PLATFORM, channel, thread),
            author=author,
            text=text,
            sent_at=sent_at,
            server=self._me.team,
            is_direct=channel.startswith("D"),
            locale=locale,
        )

    async def _first_message(self, channel: str, thread: str) -> str | None:
        call = self._web.conversations_replies(channel=channel, ts=thread, limit=1)
        response = await try_call(call, _LOOKUP_SECONDS)
        messages: list[Event] = (response.get("messages") if response else None) or []
        return await self._plain(text_of(messages[0], "text")) or None if messages else None

    async def _plain(self, raw: str) -> str:
        """Replace Slack's markup for users, channels and links; remove mentions of the bot."""
        raw = self._mention.sub("", raw)
        marks = [marked[1:].partition("|")[0] for marked in _MARKED.findall(raw) if marked.startswith("@")]
        users = [mark for mark in dict.fromkeys(marks) if _ID.fullmatch(mark)][:_MOST_NAMES]
        found = await asyncio.gather(*map(self._users.find, users))
        names = {author.id: author.name for author, _ in found}
        return _unescape(_MARKED.sub(lambda mark: _plain_mark(mark[1], names), raw)).strip()


def normalize_command(name: str, text: str) -> str:
    """Return a slash command in the form of the other platforms.

    Its name in the app's settings is free: one command for all, or one for each.

    >>> normalize_command("/chat", "clear"), normalize_command("/glm-clear", "")
    ('/clear', '/clear')
    >>> normalize_command("/stop", ""), normalize_command("/chat", "")
    ('/stop', '/help')
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
    """Return a text field; "" where it has another type."""
    value = event.get(key)
    return value if isinstance(value, str) else ""


def id_of(event: Event, key: str) -> str:
    """Return an id field; "" where it is not an id: ids are logged, texts are not."""
    value = text_of(event, key)
    return value if _ID.fullmatch(value) else ""


def is_timestamp(text: str) -> bool:
    """Return whether this is the id of a message.

    >>> is_timestamp("1718000000.000100"), is_timestamp("/U01/13345224609.738474920.8088930838d88f008e0")
    (True, False)
    """
    return _TIMESTAMP.fullmatch(text) is not None


def _plain_mark(marked: str, names: Mapping[str, str]) -> str:
    """Return the plain text of the markup between < and >.

    >>> [_plain_mark(mark, {"U01": "Mei"}) for mark in ("@U01", "#C1|general", "!here", "!subteam^S1|@team")]
    ['@Mei', '#general', '@here', '@team']
    >>> [_plain_mark(mark, {}) for mark in ("http://a.b|a.b", "http://a.b|this", "http://a.b", "!date^1^{date}|May")]
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


def _unescape(text: str) -> str:
    return re.sub("&(?:lt|gt|amp);", lambda found: _ESCAPES[found[0]], text)
