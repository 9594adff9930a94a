"""Slack events and commands as messages: addressee, author, plain text."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from bot.adapters.malformed import bounded
from bot.adapters.quotation import Quotation, quotation
from bot.adapters.slack.errors import try_call
from bot.adapters.slack.files import files_of
from bot.adapters.slack.markup import MARKED, attachment_words, block_words, plain_mark, unescaped, words
from bot.chat.commands import COMMANDS, parse
from bot.domain import Author, ChannelKey, IncomingMessage
from bot.errors import AccessDenied, ChannelGone
from bot.util.clock import Clock
from bot.util.recent import RecentDict

PLATFORM = "slack"
# Characters of a message that people send; the app cuts a longer text into several messages.
LONGEST_TEXT = 4000
Event = Mapping[str, Any]

# Subtypes of users' messages; the others are joins, topics, pins and bots' messages.
_MESSAGES = frozenset({"", "file_share", "thread_broadcast", "me_message"})
# The message that begins a chat with an agent: its text is the chat's title.
_CHAT_TITLE = "assistant_app_thread"
_TIMESTAMP = re.compile(r"\d{1,12}\.\d{1,9}")
_ID = re.compile(r"[\w.-]{1,100}", re.ASCII)

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


class Directory:
    """Authors with their locales, and names of channels; cached for an hour."""

    def __init__(self, web: AsyncWebClient, clock: Clock) -> None:
        self._web = web
        self._clock = clock
        self._cache: RecentDict[str, tuple[float, Event]] = RecentDict()

    async def find(self, user: str) -> tuple[Author, str | None]:
        """Look up a user; one that cannot be looked up in time has the id as name."""
        found = await self._look_up(user, "user", partial(self._web.users_info, user=user, include_locale=True))
        profile = found.get("profile")
        profile = profile if isinstance(profile, Mapping) else {}
        name = text_of(profile, "display_name") or text_of(profile, "real_name") or text_of(found, "name") or user
        return Author(PLATFORM, user, name, is_bot=found.get("is_bot") is True), text_of(found, "locale") or None

    async def names(self, raw: str) -> dict[str, str]:
        """Return the names of the users and channels in a text, by id, as far as they are known."""
        marks = [
            mark
            for mark, _, label in (each.partition("|") for each in MARKED.findall(raw))
            if mark[:1] == "@" or not label
        ]
        ids = [mark for mark in dict.fromkeys(marks) if mark[:1] in {"@", "#"} and _ID.fullmatch(mark[1:])]
        found = await asyncio.gather(*(self._name(mark) for mark in ids[:_MOST_NAMES]))
        return {mark[1:]: name for mark, name in zip(ids, found, strict=False) if name}

    async def _name(self, mark: str) -> str:
        id = mark[1:]
        if mark.startswith("#"):
            found = await self._look_up(id, "channel", partial(self._web.conversations_info, channel=id))
            return text_of(found, "name")
        author, _ = await self.find(id)
        return "" if author.name == id else author.name

    async def is_manager(self, user: str, channel: str) -> bool:
        """Return whether a user created the channel or is an admin of the workspace; not from the cache.

        Raises:
            PlatformError: Slack cannot be asked.
        """
        person = fields(await self._web.users_info(user=user)).get("user")
        if isinstance(person, Mapping) and (person.get("is_admin") is True or person.get("is_owner") is True):
            return True
        try:
            found = fields(await self._web.conversations_info(channel=channel)).get("channel")
        except (AccessDenied, ChannelGone):
            return False  # a private channel needs another scope: its workspace's admins are left
        return isinstance(found, Mapping) and text_of(found, "creator") == user

    async def _look_up(self, id: str, field: str, call: Callable[[], Awaitable[AsyncSlackResponse]]) -> Event:
        until, found = self._cache.get(id, (0.0, {}))
        if self._clock.now() >= until:
            response = await try_call(call(), _LOOKUP_SECONDS)
            told = None if response is None else fields(response).get(field)
            seconds = _UNKNOWN_SECONDS
            if isinstance(told, Mapping):
                found, seconds = told, _CACHE_SECONDS
            self._cache[id] = self._clock.now() + seconds, found
        return found


class MessageParser:
    """Selects the events that address the bot and builds messages from them."""

    def __init__(
        self,
        me: BotIdentity,
        web: AsyncWebClient,
        directory: Directory,
        quotes_root: Callable[[ChannelKey], Awaitable[bool]],
        listens: Callable[[IncomingMessage], Awaitable[bool]],
        is_triggered: Callable[[ChannelKey, str | None, str], Awaitable[bool]],
        may_go_on: Callable[[ChannelKey, str, datetime], bool],
    ) -> None:
        self._me = me
        self._web = web
        self._directory = directory
        self._quotes_root = quotes_root
        self._listens = listens
        self._is_triggered = is_triggered
        self._may_go_on = may_go_on
        self._mention = re.compile(rf"<@{re.escape(me.user)}(?:\|[^<>]*)?>[ \t]*[,:，：]?[ \t]*")

    async def parse(self, event: Event) -> IncomingMessage | None:
        """Build the message of an event; None if it does not address the bot.

        One mention arrives as `message` and as `app_mention`: both give the same message.
        """
        if not await self.is_to_bot(event):
            return None
        found = self._fields(event)
        assert found is not None
        channel, thread, ts, raw = found
        quotes_root = thread is not None and await self._quotes_root(ChannelKey(PLATFORM, channel, thread))
        root = thread if quotes_root else None
        return await self._message(event, channel, thread, ts, raw, root)

    async def parse_continuation(self, event: Event) -> IncomingMessage | None:
        """Build the message of an event that does not address the bot, if it may be more of a question."""
        found = self._fields(event)
        if found is None or _mentions_another(found[3]):
            return None
        channel, thread, ts, raw = found
        place, sent_at = ChannelKey(PLATFORM, channel, thread), datetime.fromtimestamp(float(ts), UTC)
        if not self._may_go_on(place, text_of(event, "user"), sent_at):
            return None
        return await self._message(event, channel, thread, ts, raw)

    async def is_to_bot(self, event: Event) -> bool:
        """Return whether a user's message addresses the bot."""
        found = self._fields(event)
        if found is None:
            return False
        channel, thread, ts, raw = found
        is_direct, is_reply = channel.startswith("D"), event.get("parent_user_id") == self._me.user
        if is_direct or self._mention.search(raw):
            return True
        if _is_for_another(raw):
            return False
        return is_reply or await self._listens(self._unaddressed(event, channel, thread, ts, raw))

    def _unaddressed(self, event: Event, channel: str, thread: str | None, ts: str, raw: str) -> IncomingMessage:
        """Build a message without what is looked up at Slack: most are not for the bot."""
        return IncomingMessage(
            id=ts,
            channel=ChannelKey(PLATFORM, channel, thread),
            author=Author(PLATFORM, text_of(event, "user"), ""),
            text=unescaped(raw),
            sent_at=datetime.fromtimestamp(float(ts), UTC),
            server=self._me.team,
        )

    async def calls(self, channel: str, event: object) -> bool:
        """Return whether a message mentions the bot, or begins with a trigger."""
        if not isinstance(event, Mapping):
            return False
        raw, thread = text_of(event, "text"), text_of(event, "thread_ts") or None
        if self._mention.search(raw):
            return True
        return await self._is_triggered(ChannelKey(PLATFORM, channel, thread), self._me.team, unescaped(raw))

    async def parse_edit(self, event: Event) -> IncomingMessage | None:
        """Build the message of an edit, whether it addresses the bot or not."""
        found = self._fields(event)
        return None if found is None else await self._message(event, *found)

    def is_from_app(self, event: Event) -> bool:
        """Return whether it is a message of another app."""
        is_bots = event.get("bot_id") is not None or text_of(event, "subtype") == "bot_message"
        return is_bots and not self.is_own(event)

    def is_own(self, event: Event) -> bool:
        """Return whether it is one of the bot's own messages."""
        return self._is_own(text_of(event, "user"), text_of(event, "bot_id"))

    async def quotable_text(self, message: Event) -> str:
        """Return the text of a message as quotations have it."""
        return await self._plain(words(message))

    async def parse_command(self, command: Mapping[str, Any]) -> IncomingMessage:
        """Build the message of a slash command; its id is made of the user and the trigger id.

        Raises:
            ValueError: The user, channel or trigger is missing.
        """
        user, channel, trigger = (id_of(command, name) for name in ("user_id", "channel_id", "trigger_id"))
        if not (user and channel and trigger):
            raise ValueError("a slash command without user, channel or trigger")
        text = normalize_command(text_of(command, "command"), text_of(command, "text"))
        return await self._build(
            f"/{user}/{trigger}", user, channel, None, text, datetime.now(UTC), id_of(command, "team_id")
        )

    async def locale_of(self, user: str) -> str | None:
        """Return the locale of a user; None if it is not known in time."""
        return (await self._directory.find(user))[1]

    async def parse_use(self, user: str, channel: str, team: str) -> IncomingMessage:
        """Build a message of a person who uses a form, without a text.

        Raises:
            ValueError: The user or channel is missing.
        """
        if not (user and channel):
            raise ValueError("a form without user or channel")
        return await self._build(f"/{user}/", user, channel, None, "", datetime.now(UTC), team)

    def _fields(self, event: Event) -> tuple[str, str | None, str, str] | None:
        """Return channel, thread, timestamp and text of a user's message; None for other events."""
        channel, ts, user = id_of(event, "channel"), text_of(event, "ts"), id_of(event, "user")
        is_message = text_of(event, "subtype") in _MESSAGES and not event.get("bot_id")
        if not (is_message and channel and is_timestamp(ts) and user and user != self._me.user):
            return None
        thread = text_of(event, "thread_ts")
        raw = text_of(event, "text") or block_words(event.get("blocks"))
        return channel, thread if is_timestamp(thread) and thread != ts else None, ts, raw

    async def _message(
        self, event: Event, channel: str, thread: str | None, ts: str, raw: str, root: str | None = None
    ) -> IncomingMessage:
        """Build a message; with `root` it quotes the first message of its thread."""
        user = text_of(event, "user")
        text, shared, first, _ = await asyncio.gather(
            self._plain(raw),
            self._shared(event, channel),
            self._first_message(channel, root),
            self._directory.find(user),  # cached for `_build`
        )
        is_addressed = channel.startswith("D") or self._mention.search(raw) is not None
        # A mention outside a thread starts one; a command there concerns the whole channel.
        if thread is None and not channel.startswith("D") and parse(text, is_addressed=is_addressed) is None:
            thread = ts
        sent_at = datetime.fromtimestamp(float(ts), UTC)
        message = await self._build(ts, user, channel, thread, text, sent_at, self._me.team)
        message = replace(message, files=files_of(event), is_addressed=is_addressed)
        quotations = [each for each in (first, shared) if each is not None and (each.text or each.files)]
        if not quotations:
            return message
        last = quotations[-1]
        return replace(
            message,
            quoted="\n\n".join(each.text for each in quotations if each.text) or None,
            files=(*message.files, *(file for each in quotations for file in each.files)),
            quoted_id=next((each.id for each in quotations if each.id), None),
            quotes_bot=last.is_bots if len(quotations) == 1 else False,
            is_forward=first is None and not text,
        )

    async def _build(
        self, id: str, user: str, channel: str, thread: str | None, text: str, sent_at: datetime, server: str
    ) -> IncomingMessage:
        author, locale = await self._directory.find(user)
        return IncomingMessage(
            id=id,
            channel=ChannelKey(PLATFORM, channel, thread),
            author=author,
            text=text,
            sent_at=sent_at,
            server=server or self._me.team,
            is_direct=channel.startswith("D"),
            locale=locale,
        )

    async def _first_message(self, channel: str, thread: str | None) -> Quotation | None:
        if thread is None:
            return None
        call = self._web.conversations_replies(channel=channel, ts=thread, limit=1)
        response = await try_call(call, _LOOKUP_SECONDS)
        messages = None if response is None else fields(response).get("messages")
        first = messages[0] if isinstance(messages, list) and messages else None
        if not isinstance(first, dict) or is_tombstone(first) or text_of(first, "subtype") == _CHAT_TITLE:
            return None
        is_own = self._is_own(text_of(first, "user"), text_of(first, "bot_id"))
        return quotation(await self.quotable_text(first), thread, files_of(first), is_bots=is_own)

    async def _shared(self, event: Event, channel: str) -> Quotation | None:
        """Return the messages and previews that a message shares."""
        attachments = event.get("attachments")
        shared = [each for each in attachments if isinstance(each, dict)] if isinstance(attachments, list) else []
        shared = [each for each in shared if each.get("is_share") or each.get("is_msg_unfurl") or "from_url" in each]
        if not shared:
            return None
        text = await self._plain("\n\n".join(filter(None, map(attachment_words, shared))))
        here = [text_of(each, "ts") for each in shared if text_of(each, "channel_id") == channel]
        is_own = all(self._is_own(text_of(each, "author_id"), text_of(each, "bot_id")) for each in shared)
        files = [file for each in shared for file in files_of(each)]
        return quotation(text, next(filter(is_timestamp, here), None), files, is_bots=is_own)

    def _is_own(self, user: str, bot: str) -> bool:
        return user == self._me.user or (bot != "" and bot == self._me.bot)

    async def _plain(self, raw: str) -> str:
        """Replace Slack's markup for users, channels and links; remove mentions of the bot."""
        raw = self._mention.sub("", raw)
        names = await self._directory.names(raw)
        return unescaped(MARKED.sub(lambda mark: plain_mark(mark[1], names), raw)).strip()


def _is_for_another(raw: str) -> bool:
    """Return whether a message in a thread has no words, or mentions another person than the bot, or a group.

    Applies to messages that do not mention the bot.
    """
    return not raw.strip() or _mentions_another(raw)


def _mentions_another(raw: str) -> bool:
    return any(mark.startswith(("@", "!subteam", "!here", "!channel", "!everyone")) for mark in MARKED.findall(raw))


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


def fields(response: AsyncSlackResponse) -> Event:
    """Return the fields of a response."""
    return response.data if isinstance(response.data, dict) else {}


def text_of(event: Event, key: str) -> str:
    """Return a text field; "" where it has another type."""
    value = event.get(key)
    return bounded(value) if isinstance(value, str) else ""


def id_of(event: Event, key: str) -> str:
    """Return an id field; "" where it is not an id: ids are logged, texts are not."""
    value = text_of(event, key)
    return value if _ID.fullmatch(value) else ""


def is_tombstone(message: Event) -> bool:
    """Return whether this is what Slack keeps of a deleted message with replies."""
    return text_of(message, "subtype") == "tombstone"


def is_timestamp(text: str) -> bool:
    """Return whether this is the id of a message.

    >>> is_timestamp("1718000000.000100"), is_timestamp("/U01/13345224609.738474920.8088930838d88f008e0")
    (True, False)
    """
    return _TIMESTAMP.fullmatch(text) is not None
