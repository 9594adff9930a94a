"""The bot's replies in a Slack conversation, found by the nonces in their metadata."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count, takewhile
from typing import Any

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.malformed import skip_malformed
from bot.adapters.slack.client import is_shown, pages
from bot.adapters.slack.errors import TRANSIENT
from bot.adapters.slack.messenger import thread_of
from bot.adapters.slack.metadata import payload_in, reply_metadata
from bot.adapters.slack.parse import PLATFORM, Event, is_timestamp, is_tombstone
from bot.adapters.slack.streams import SlackStreams
from bot.chat.standing import OwnMessage, Standing, StandingReply, is_delay_notice
from bot.delivery.messenger import nonce
from bot.domain import Action, Exchange, IncomingMessage
from bot.errors import LoginRefused, PlatformError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_ACTIONS = {action.value: action for action in Action}
# The newest messages of a channel among which questions without a thread are looked for, in a few calls.
_NEWEST = 1000


class SlackReplies:
    """Existing replies in the workspace, as far as histories were read."""

    def __init__(self, api: AsyncWebClient, streams: SlackStreams) -> None:
        self._api = api
        self._streams = streams
        self._nameless: dict[tuple[str, str], dict[str, OwnMessage]] = {}  # streams, by channel and thread
        self._own: dict[tuple[str, object], OwnMessage] = {}  # by channel and nonce
        self._first: dict[tuple[str, str], OwnMessage] = {}  # by channel and question; the newest copy
        self._further: dict[tuple[str, str], dict[str, OwnMessage]] = {}  # by channel and first message
        self._edits: dict[tuple[str, str], datetime | None] = {}  # of each message that was read
        self._read: dict[tuple[str, str | None], float] = {}  # by channel and thread, from when on
        self._looked_at: set[str] = set()  # channels whose newest messages were read
        self._lonely: set[tuple[str, str]] = set()  # channels' messages without a thread
        self._connected_at: datetime | None = None

    def remember(self, channel: str, thread: str | None, since: float, messages: Iterable[Event]) -> None:
        """Note what the history of a channel, or of a thread, shows since then."""
        self._read[channel, thread] = min(since, self._read.get((channel, thread), since))
        for message in messages:
            with skip_malformed(PLATFORM, kind="history"):
                edited = message.get("edited")
                if thread is None and not (message.get("reply_count") or message.get("thread_ts")):
                    self._lonely.add((channel, message["ts"]))
                if not is_tombstone(message):
                    self._edits[channel, message["ts"]] = None if edited is None else _time(edited["ts"])
                if payload := payload_in(message):
                    own = self._own[channel, payload["nonce"]] = _own(message)
                    answers, continues = payload.get("answers"), payload.get("continues")
                    if answers and not is_delay_notice(own.text):
                        self._first[channel, answers] = max(own, self._first.get((channel, answers), own), key=_age)
                    if continues:
                        self._further.setdefault((channel, continues), {})[own.id] = own
                elif thread is not None and self._streams.is_nameless(message):
                    self._nameless.setdefault((channel, thread), {})[message["ts"]] = _own(message)

    def begin(self, connected_at: datetime | None) -> None:
        """Drop all that was read before this connection."""
        self._connected_at = connected_at
        self._own.clear()
        self._first.clear()
        self._further.clear()
        self._nameless.clear()
        self._edits.clear()
        self._read.clear()
        self._looked_at.clear()
        self._lonely.clear()

    def reply_to(self, question: IncomingMessage) -> StandingReply | None:
        """Return the reply to a question whose conversation was read."""
        channel = question.channel.channel
        first = self._first.get((channel, question.id)) or self._own.get((channel, nonce(question, 0)))
        if first is None:
            return None
        further = dict(self._further.get((channel, first.id), {}))
        # Messages of older versions name only their nonce.
        old = (self._own.get((channel, nonce(question, part))) for part in count(1))
        further |= {message.id: message for message in takewhile(bool, old) if message}
        messages = [first, *sorted(further.values(), key=_age)]
        return StandingReply(messages, self._edits.get((channel, question.id)))

    async def find(self, owed: Sequence[Exchange]) -> Standing:
        """Return what the channels of these exchanges show of them.

        Raises:
            PlatformUnavailable, RateLimited: A conversation could not be read.
        """
        deleted = frozenset([exchange.id for exchange in owed if await self._is_deleted(exchange.message)])
        owed = [exchange for exchange in owed if exchange.id not in deleted]
        unread: dict[tuple[str, str | None], str] = {}
        for message in (exchange.message for exchange in owed):
            channel = message.channel.channel
            place = channel, thread_of(message.channel, message.id)
            if is_timestamp(message.id) and self._read.get(place, math.inf) >= float(message.id):
                unread[place] = min(unread.get(place, message.id), message.id, key=float)
        for (channel, thread), first in unread.items():
            try:
                # The first question itself is read too.
                since = float(first) - 1e-6
                if thread == first and await self._is_lonely(channel, first, since):
                    continue
                found = [
                    each async for page in pages(self._api, channel, thread, oldest=f"{since:.6f}") for each in page
                ]
                self.remember(channel, thread, since, found)
            except (*TRANSIENT, LoginRefused):
                raise
            except PlatformError as error:
                log.info("slack: replies not looked for", channel=channel, error=str(error))
        replies = {exchange.id: self.reply_to(exchange.message) for exchange in owed}
        for exchange in owed:
            if replies[exchange.id] is None and not exchange.parts:
                replies[exchange.id] = await self._nameless_reply(exchange.message)
        return Standing({id: reply for id, reply in replies.items() if reply is not None}, deleted)

    async def _nameless_reply(self, question: IncomingMessage) -> StandingReply | None:
        """Return a stream below the question whose id was not stored: an earlier run was killed before it could."""
        channel, thread = question.channel, thread_of(question.channel, question.id)
        found = self._nameless.get((channel.channel, thread or ""), {})
        metadata = reply_metadata(nonce(question, 0), answers=question.id)
        for ts in sorted(found, key=float):
            is_later = is_timestamp(question.id) and float(ts) > float(question.id)
            if is_later and await self._streams.claim(channel, ts, metadata):
                return StandingReply([found[ts]], self._edits.get((channel.channel, question.id)))
        return None

    async def _is_deleted(self, message: IncomingMessage) -> bool:
        """Return whether a message of before this connection, which its history did not show, is not in it now either.

        Slack redelivers a message after its deletion, whose own event may be lost.
        """
        channel, thread = message.channel.channel, message.channel.thread
        was_read = (channel, None) in self._read or (channel, thread) in self._read
        is_older = self._connected_at is not None and message.sent_at < self._connected_at
        if not (was_read and is_older and is_timestamp(message.id)) or (channel, message.id) in self._edits:
            return False
        try:
            return not await is_shown(self._api, channel, thread, message.id)
        except (*TRANSIENT, LoginRefused):
            raise
        except PlatformError as error:
            log.info("slack: message not looked for", channel=channel, error=str(error))
            return False

    async def _is_lonely(self, channel: str, question: str, since: float) -> bool:
        """Return whether the channel shows that a message has no thread: one call tells it for hundreds."""
        if channel not in self._looked_at:
            found: list[Event] = []
            async for page in pages(self._api, channel, None, oldest=f"{since:.6f}"):
                found += page
                if len(found) >= _NEWEST:
                    break
            self._looked_at.add(channel)
            self.remember(channel, None, min([float(each["ts"]) for each in found], default=since), found)
        return (channel, question) in self._lonely


def _age(message: OwnMessage) -> float:
    return float(message.id)


def _own(message: Mapping[str, Any]) -> OwnMessage:
    blocks = [*(message.get("blocks") or [])]
    texts = [block["text"] for block in blocks if block.get("type") == "markdown"]
    blocks += [block for each in message.get("attachments") or [] for block in each.get("blocks") or []]
    buttons = [button for block in blocks if block.get("type") == "actions" for button in block["elements"]]
    actions = frozenset(_ACTIONS[each["action_id"]] for each in buttons if each.get("action_id") in _ACTIONS)
    changed = (message.get("edited") or message)["ts"]
    text = "\n".join(texts) if texts else html.unescape(message.get("text") or "")
    return OwnMessage(message["ts"], text, _time(changed), actions)


def _time(timestamp: str) -> datetime:
    return datetime.fromtimestamp(float(timestamp), UTC)
