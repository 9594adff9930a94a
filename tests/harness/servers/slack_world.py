"""Messages of the loopback Slack, and the rules for writing them."""

import html
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from bot.domain import Action
from tests.harness.platform import Seen, visible_text

BOT = "UBOT"
JSON = dict[str, Any]

# Subtype of the message that begins a chat with an agent; clients show the chat's title in its place.
CHAT = "assistant_app_thread"

_PING = re.compile(r"<(?:![a-z]+|@[A-Z0-9]+)[^<>]*>", re.IGNORECASE)
_BLOCK_LIMIT, _UPDATE_LIMIT, _POST_LIMIT = 12_000, 4_000, 40_000


class SlackRefusal(Exception):
    """An error response; a violation is a call that no client should make."""

    def __init__(self, code: str, *, is_violation: bool = False) -> None:
        self.code = code
        self.is_violation = is_violation
        super().__init__(code)


@dataclass(slots=True)
class Message:
    """A message; with `for_user`, only that user sees it."""

    ts: str
    channel: str
    user: str
    text: str
    thread: str | None = None
    blocks: list[JSON] = field(default_factory=list)
    attachments: list[JSON] = field(default_factory=list)
    metadata: JSON | None = None
    subtype: str = ""
    edited: str | None = None  # the time of the last edit
    bot: str = ""  # the id of the app that sent it
    files: list[JSON] = field(default_factory=list)
    for_user: str | None = None
    streaming: str = ""  # the state of a stream: in_progress, completed, stopped

    @property
    def root(self) -> str:
        return self.thread or self.ts

    @property
    def markdown(self) -> str:
        found = [block["text"] for block in self.blocks if block["type"] == "markdown"]
        return "\n".join(found) if found else html.unescape(self.text)

    @property
    def actions(self) -> frozenset[Action]:
        blocks = [*self.blocks, *(block for each in self.attachments for block in each.get("blocks", []))]
        buttons = [element for block in blocks if block["type"] == "actions" for element in block["elements"]]
        return frozenset(Action(button["action_id"]) for button in buttons)

    def event(self) -> JSON:
        event: JSON = {"type": "message", "ts": self.ts, "channel": self.channel, "user": self.user, "text": self.text}
        event["blocks"] = self.blocks
        if self.user == BOT:
            event["bot_id"] = "B01"
        elif self.bot:
            event["bot_id"] = self.bot
        event |= {name: value for name in ("attachments", "files") if (value := getattr(self, name))}
        if self.thread is not None:
            event["thread_ts"] = self.thread
        if self.subtype:
            event["subtype"] = self.subtype
        if self.streaming:
            event["streaming_state"] = self.streaming
        if self.edited is not None:
            event["edited"] = {"user": self.user, "ts": self.edited}
        return event


class Workspace:
    """Users, channels and messages; a user or channel is created by its first use."""

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.pings: list[str] = []  # mentions in the bot's messages that would notify users
        self.locales: dict[str, str] = {}  # by user name
        self.admins: set[str] = set()  # names of the workspace's admins
        self.private: dict[str, set[str]] = {}  # name of a private channel: names of its members
        self.creators: dict[str, str] = {}  # name of a channel: name of the person who created it
        self.refuses_markdown = False  # with letters, so that a placeholder is accepted
        self._people: dict[str, str] = {}
        self._channels: dict[str, str] = {}
        self._last = 0

    def now(self) -> str:
        """Return a new, unique timestamp."""
        self._last = max(self._last + 1, time.time_ns() // 1000)
        return f"{self._last // 10**6}.{self._last % 10**6:06}"

    def user(self, name: str) -> str:
        return self._people.setdefault(name, f"U{len(self._people) + 1:03}")

    def channel(self, name: str) -> str:
        return self._channels.setdefault(name, f"C{len(self._channels) + 1:03}")

    def direct(self, person: str) -> str:
        return self._channels.setdefault(person, f"D{len(self._channels) + 1:03}")

    @property
    def people(self) -> set[str]:
        return set(self._people.values())

    def find(self, channel: str) -> str | None:
        return self._channels.get(channel)

    def channel_name(self, channel: str) -> str:
        name = next((name for name, id in self._channels.items() if id == channel), None)
        if name is None:
            raise SlackRefusal("channel_not_found")
        return name

    def person(self, user: str) -> JSON:
        name = next((name for name, id in self._people.items() if id == user), None)
        if name is None:
            raise SlackRefusal("user_not_found")
        profile = {"display_name": name, "real_name": name}
        return {
            "id": user,
            "name": name.lower(),
            "is_bot": name.endswith("Bot"),
            "is_admin": name in self.admins,
            "locale": self.locales.get(name, "en-US"),
            "profile": profile,
        }

    def post(self, channel: str, user: str, **values: Any) -> Message:
        message = Message(self.now(), channel, user, **values)
        self.messages[message.ts] = message
        return message

    def replies(self, root: str) -> list[Message]:
        return [message for message in self.messages.values() if message.thread == root]

    def seen(self, channel: str, thread: str | None) -> list[Seen]:
        """Return messages in reading order: a thread follows its first message."""
        here = [each for each in self.messages.values() if each.channel == channel and each.subtype != CHAT]
        if thread is not None:
            here = [message for message in here if message.root == thread]
        here.sort(key=lambda message: (float(message.root), float(message.ts)))
        return [self._shown(message) for message in here]

    def bot_posts(self, arguments: JSON) -> Message:
        channel, thread = self.place(arguments["channel"]), arguments.get("thread_ts")
        if thread is not None and thread not in self.messages:
            raise SlackRefusal("thread_not_found")
        content = self._content(arguments, _POST_LIMIT)
        return self.post(channel, BOT, thread=thread, metadata=arguments.get("metadata"), **content)

    def bot_updates(self, arguments: JSON) -> None:
        message = self.own(arguments)
        message.edited = self.now()
        if arguments.get("metadata"):
            message.metadata = arguments["metadata"]
        for name, value in self._content(arguments, _UPDATE_LIMIT).items():
            setattr(message, name, value)

    def own(self, arguments: JSON) -> Message:
        """Return the bot's message that a call refers to."""
        message = self.messages.get(arguments["ts"])
        if message is None or message.channel != self.place(arguments["channel"]):
            raise SlackRefusal("message_not_found")
        if message.user != BOT:
            raise SlackRefusal("cant_update_message", is_violation=True)
        return message

    def whisper(self, channel: str, user: str, arguments: JSON) -> str:
        thread = arguments.get("thread_ts")
        content = self._content(arguments, _POST_LIMIT)
        return self.post(self.place(channel), BOT, thread=thread, for_user=user, **content).ts

    def history(self, arguments: JSON) -> JSON:
        channel = self.place(arguments["channel"])
        roots = [each for each in self.messages.values() if each.channel == channel and each.thread is None]
        roots.sort(key=lambda message: float(message.ts), reverse=True)
        return self._page(roots, arguments)

    def thread(self, arguments: JSON) -> JSON:
        root = self.messages.get(arguments["ts"])
        if root is None:
            raise SlackRefusal("thread_not_found")
        return self._page([root, *self.replies(root.ts)], arguments, always=root)

    def _page(self, messages: list[Message], arguments: JSON, always: Message | None = None) -> JSON:
        oldest, latest = float(arguments.get("oldest") or 0), float(arguments.get("latest") or "inf")
        is_inclusive = str(arguments.get("inclusive")).lower() in {"1", "true"}
        ends = {oldest, latest} if is_inclusive else set()
        messages = [
            each for each in messages if each is always or oldest < float(each.ts) < latest or float(each.ts) in ends
        ]
        messages = [each for each in messages if each.for_user is None]
        # Slack may return fewer than requested; a few times three, so that clients must paginate.
        begin, limit = int(arguments.get("cursor") or 0), int(arguments.get("limit") or 100)
        limit = min(limit, 3) if begin < 9 else limit
        told = []
        for message in messages[begin : begin + limit]:
            event = message.event()
            del event["channel"]  # Slack omits it here
            if message.metadata and str(arguments.get("include_all_metadata")).lower() in {"1", "true"}:
                event["metadata"] = message.metadata
            if replies := [each for each in self.replies(message.ts) if each.for_user is None]:
                event |= {"thread_ts": message.ts, "reply_count": len(replies), "latest_reply": replies[-1].ts}
            told.append(event)
        more = begin + limit < len(messages)
        return {"messages": told, "response_metadata": {"next_cursor": str(begin + limit) if more else ""}}

    def place(self, channel: str) -> str:
        if channel not in self._channels.values():
            raise SlackRefusal("channel_not_found")
        return channel

    def _content(self, arguments: JSON, limit: int) -> JSON:
        """Return the content that a call sets, or raise Slack's error."""
        text, blocks, attachments = (arguments.get(name) for name in ("text", "blocks", "attachments"))
        blocks = json.loads(blocks) if isinstance(blocks, str) else blocks or []
        attachments = json.loads(attachments) if isinstance(attachments, str) else attachments or []
        markdown = [block["text"] for block in blocks if block["type"] == "markdown"]
        if not text and not blocks:
            raise SlackRefusal("no_text", is_violation=True)
        if text and len(text) > limit:
            raise SlackRefusal("msg_too_long", is_violation=True)
        if sum(map(len, markdown)) > _BLOCK_LIMIT:
            raise SlackRefusal("msg_blocks_too_long", is_violation=True)
        if any(not words.strip() for words in markdown):
            raise SlackRefusal("invalid_blocks", is_violation=True)
        if self.refuses_markdown and any(re.search(r"\w", words) for words in markdown):
            raise SlackRefusal("invalid_blocks")
        for words in [*markdown, text or ""]:
            self.note_pings(words)
        return {"text": text or "", "blocks": blocks, "attachments": attachments}

    def note_pings(self, words: str) -> None:
        self.pings += _PING.findall(words)

    def _shown(self, message: Message) -> Seen:
        names = {id: name for name, id in self._people.items()} | {BOT: "bot"}
        markdown = message.markdown if message.user == BOT else message.text.replace(f"<@{BOT}>", "@bot")
        words = visible_text(markdown).replace("\u2060", "")
        return Seen(message.ts, names.get(message.user, message.user), markdown, words, message.actions, message.thread)
