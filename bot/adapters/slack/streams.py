"""Slack's streams: messages to which a growing reply is appended, with Slack's own Stop control.

They need an app that is an agent (`features.agent_view` in its manifest), and a thread.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.slack.errors import code_of
from bot.adapters.slack.parse import BotIdentity, Event, fields, is_timestamp, text_of
from bot.adapters.slack.sessions import SlackSessions, is_passing
from bot.delivery.markdown.format import Rendered
from bot.domain import ChannelKey, Exchange
from bot.errors import (
    AccessDenied,
    ChannelGone,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
)
from bot.util.clock import Clock
from bot.util.recent import RecentDict

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# chat.appendStream is in tier 4, 100 calls a minute and more, chat.startStream and chat.stopStream in
# tier 2, 20 and more; a few are left, as of the edits.
_APPENDS_PER_MINUTE = 92
_STARTS_PER_MINUTE = 18
_MINUTE = 60.0
# Seconds after which a stream has ended, whatever happened.
_FORGOTTEN = 600.0
# Characters of a question that are kept for its thread's title.
_TITLE = 300
# Replies whose author is remembered.
_ASKED = 1000
# Characters before the end in which a "<" may still become a mention, which is neutralised when it is complete.
_MARK = 12

# Refusals that concern one channel, but for these codes; others concern the app.
_LOCAL = (AccessDenied, ChannelGone, MessageGone)
_OF_THE_TOKEN = frozenset({"missing_scope", "not_allowed_token_type"})


@dataclass(slots=True)
class _Stream:
    """An open stream; `appended` is its text, unless a response was lost."""

    thread: str
    metadata: dict[str, Any]
    began: float
    appended: str = ""
    is_lost: bool = False  # a call for it may have been executed
    is_in_doubt: bool = False  # a call for it was answered with a rate limit, by Slack or by a proxy
    status: str = ""


class SlackStreams:
    """The streams that this run has opened.

    Where Slack refuses them for good, `open` returns None from then on; each reason is logged once.
    """

    appends_per_minute = _APPENDS_PER_MINUTE

    def __init__(
        self,
        web: AsyncWebClient,
        me: BotIdentity,
        clock: Clock,
        is_recorded: Callable[[ChannelKey, str], Awaitable[bool]],
    ) -> None:
        self._web = web
        self._sessions = SlackSessions(web)
        self._me = me
        self._clock = clock
        self._is_recorded = is_recorded
        self._open: dict[str, _Stream] = {}
        self._opened: RecentDict[str, dict[str, Any]] = RecentDict()  # metadata of all, also of ended ones
        self._asked: RecentDict[tuple[str, str], tuple[str, str, str]] = RecentDict(_ASKED)
        self._refused: dict[str, str] = {}  # the reason, by channel; "" for all
        self._starts: deque[float] = deque()
        self._starting: Counter[tuple[str, str]] = Counter()  # starts without a response so far, by channel and thread

    def expect(self, exchange: Exchange) -> None:
        message = exchange.message
        asked = message.author.id, message.server or self._me.team, message.text[:_TITLE]
        for id in (message.id, *exchange.parts):
            self._asked[message.channel.channel, id] = asked

    def is_open(self, message_id: str) -> bool:
        return message_id in self._open

    def open_in(self, channel: ChannelKey) -> list[str]:
        """Return the open streams of a thread."""
        return [ts for ts, stream in self._open.items() if stream.thread == channel.thread]

    def metadata_of(self, message_id: str) -> dict[str, Any] | None:
        """Return the metadata of a stream of this run: only its end can carry them."""
        return self._opened.get(message_id)

    async def open(
        self, channel: ChannelKey, thread: str | None, begins: str | None, metadata: dict[str, Any]
    ) -> str | None:
        """Start a stream and return its id; None where the reply has to be a message that is edited.

        `begins` is the question, or the first message of the reply.

        Raises:
            PlatformUnavailable: It may have been started.
        """
        place = channel.channel
        asked = self._asked.get((place, begins or ""))
        if thread is None or asked is None or not {"", place}.isdisjoint(self._refused) or self._is_used_up():
            return None
        user, team, question = asked
        self._starts.append(self._clock.now())
        is_direct = place.startswith("D")
        self._starting[place, thread] += 1
        try:
            if not await self._sessions.begin(place, thread, question):
                return None
            response = await self._web.chat_startStream(
                channel=place,
                thread_ts=thread,
                recipient_user_id=None if is_direct else user,
                recipient_team_id=None if is_direct else team,
            )
        except PlatformError as error:
            if is_passing(error):
                raise
            self._refuse(place, error)
            return None
        else:
            ts = text_of(fields(response), "ts")
            if not is_timestamp(ts):
                raise PlatformUnavailable("Slack does not name the stream that was started")
            now = self._clock.now()
            # An answer that was deleted leaves its stream; Slack ends it.
            self._open = {each: stream for each, stream in self._open.items() if now - stream.began < _FORGOTTEN}
            self._open[ts], self._opened[ts] = _Stream(thread, metadata, now), metadata
        finally:
            self._starting[place, thread] -= 1
            self._starting += Counter()  # drops zeros
        if begins is not None:
            self._asked[place, ts] = asked
        return ts

    async def show(self, channel: ChannelKey, ts: str, text: Rendered, buttons: list[dict[str, Any]]) -> bool:
        """Bring a stream to this text; return False if it is none or had to end: the text is to be set then."""
        stream = self._open.get(ts)
        if stream is None:
            return False
        is_known = not stream.is_lost and bool(text.entities) and text.text.startswith(stream.appended)
        try:
            if is_known and text.stable is not None:
                await self._append(channel, ts, stream, text)
                return True
            if is_known and not stream.is_in_doubt:
                await self._finish(channel, ts, stream, text, buttons)
                return True
        except PlatformError as error:
            if is_passing(error):
                raise
            log.info("slack: stream ended", message=ts, error=str(error))
        await self.close(channel, ts)
        return False

    async def close(self, channel: ChannelKey, ts: str) -> None:
        """End a stream, also one of an earlier run, without another text.

        Raises:
            PlatformUnavailable, RateLimited: It may still be open.
        """
        try:
            await self._web.chat_stopStream(channel=channel.channel, ts=ts)
        except PlatformError as error:
            if is_passing(error):
                raise
            # Most often message_not_in_streaming_state: Slack ends a stream after five minutes.
            log.info("slack: no stream to end", message=ts, error=str(error))
        self._open.pop(ts, None)

    def is_nameless(self, message: Event) -> bool:
        """Return whether this message of a history is a stream of the bot that has not ended as intended."""
        is_own = text_of(message, "user") == self._me.user or text_of(message, "bot_id") == self._me.bot != ""
        is_stream = "streaming_state" in message or not (message.get("text") or message.get("blocks"))
        return is_own and is_stream and not message.get("metadata")

    async def claim(self, channel: ChannelKey, ts: str) -> bool:
        """Take a nameless stream for a reply; return False if it belongs, or may belong, to another one.

        Its start was executed, but the response was lost, or the process killed.
        """
        if ts in self._opened or await self._is_recorded(channel, ts) or ts in self._opened:
            return False
        if any(place == channel.channel for place, _ in self._starting):
            return False
        self._opened[ts] = {}
        return True

    async def _append(self, channel: ChannelKey, ts: str, stream: _Stream, text: Rendered) -> None:
        piece = _settled(text.text[len(stream.appended) : text.stable])
        if not piece:
            if not stream.appended and text.text != stream.status:
                await self._sessions.say(channel.channel, stream.thread, text.text)
                stream.status = text.text
            return
        stream.is_lost = True
        try:
            await self._web.chat_appendStream(channel=channel.channel, ts=ts, markdown_text=piece)
        except RateLimited:
            stream.is_lost, stream.is_in_doubt = False, True
            raise
        stream.appended, stream.is_lost = stream.appended + piece, False

    async def _finish(
        self, channel: ChannelKey, ts: str, stream: _Stream, text: Rendered, buttons: list[dict[str, Any]]
    ) -> None:
        stream.is_lost = True
        others = len(self.open_in(ChannelKey(channel.platform, channel.channel, stream.thread))) > 1
        try:
            await self._web.chat_stopStream(
                channel=channel.channel,
                ts=ts,
                markdown_text=text.text[len(stream.appended) :] or None,
                blocks=buttons or None,
                metadata=stream.metadata,
                session_status="processing" if others else None,
            )
        except RateLimited:
            stream.is_lost = False  # a second call tells if the first one was executed
            raise
        del self._open[ts]

    def _is_used_up(self) -> bool:
        while self._starts and self._starts[0] <= self._clock.now() - _MINUTE:
            self._starts.popleft()
        return len(self._starts) >= _STARTS_PER_MINUTE

    def _refuse(self, place: str, error: PlatformError) -> None:
        """Remember that streams are refused, for the channel or for all."""
        is_local = isinstance(error, _LOCAL) and code_of(error) not in _OF_THE_TOKEN
        place = place if is_local else ""
        if str(error) not in self._refused.values():
            log.info("slack: replies are edited, streams are refused", channel=place or "all", error=str(error))
        self._refused[place] = str(error)


def is_streaming(error: PlatformError) -> bool:
    """Return whether a message was not edited because it is a stream that has not ended."""
    return code_of(error) == "streaming_state_conflict"


def _settled(piece: str) -> str:
    """Return what may be appended now: it ends within a word, where Slack cannot lose a space between two appends.

    >>> _settled("one two "), _settled("你好"), _settled(" "), _settled("see <!cha")
    ('one tw', '你', '', 'se')
    """
    mark = piece.find("<", max(0, len(piece) - _MARK))
    piece = piece if mark < 0 else piece[: mark + 1]
    for end in range(len(piece) - 1, 0, -1):
        if not piece[end - 1].isspace() and not piece[end].isspace():
            return piece[:end]
    return ""
