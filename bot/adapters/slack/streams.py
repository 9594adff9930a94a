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
from bot.adapters.slack.metadata import reply_metadata
from bot.adapters.slack.parse import BotIdentity, Event, fields, is_timestamp, text_of
from bot.adapters.slack.refused_streams import RefusedStreams
from bot.adapters.slack.sessions import SlackSessions, is_passing
from bot.delivery.markdown.format import Rendered
from bot.delivery.messenger import nonce
from bot.domain import ChannelKey, Exchange
from bot.errors import AppendLimited, PlatformError, PlatformUnavailable, RateLimited
from bot.util.clock import Clock
from bot.util.recent import RecentDict

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# chat.appendStream is in tier 4, 100 calls a minute and more, chat.startStream and chat.stopStream in
# tier 2, 20 and more; a few are left, as of the edits.
_APPENDS_PER_MINUTE = 92
_STREAMS_PER_MINUTE = 18
_MINUTE = 60.0
# Seconds after which a stream has ended, whatever happened.
_FORGOTTEN = 600.0
# Characters of a question that are kept for its thread's title, and the questions that are kept.
_TITLE = 300
_TITLES = 1000
# Characters before the end in which a "<" may still become a mention, which is neutralised when it is complete.
_MARK = 12

# A thread and the id of a message in it: ids are unique in a channel only.
_Place = tuple[ChannelKey, str]


@dataclass(slots=True)
class _Stream:
    """An open stream; `appended` is its text, unless a response was lost."""

    metadata: dict[str, Any]
    began: float
    appended: str = ""
    is_lost: bool = False  # a call for it may have been executed
    is_in_doubt: bool = False  # a call for it was answered with a rate limit, by Slack or by a proxy


class SlackStreams:
    """The streams that this run has opened, in threads of direct messages.

    Where Slack refuses them for good, `open` returns None for an hour; each reason is logged once.
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
        self._refused = RefusedStreams(clock)
        self._me = me
        self._clock = clock
        self._is_recorded = is_recorded
        self._open: dict[_Place, _Stream] = {}
        # Of all streams, also of ended and claimed ones, and of replies that an earlier run has begun.
        self._metadata: RecentDict[_Place, dict[str, Any]] = RecentDict()
        self._titles: RecentDict[_Place, str] = RecentDict(_TITLES)
        self._starts: deque[float] = deque()
        self._stops: deque[float] = deque()
        self._starting: Counter[ChannelKey] = Counter()  # starts without a response so far

    def expect(self, exchange: Exchange) -> None:
        message, parts = exchange.message, exchange.parts
        if not _has_streams(message.channel):
            return
        self._titles[message.channel, message.id] = message.text[:_TITLE]
        for number, id in enumerate(parts):
            if (message.channel, id) not in self._metadata:
                # An earlier run may have been killed while it was a stream, which has no metadata before its end.
                answers, continues = (None, parts[0]) if number else (message.id, None)
                metadata = reply_metadata(nonce(message, number), answers=answers, continues=continues)
                self._metadata[message.channel, id] = metadata
                self._sessions.note_begun(message.channel)

    def is_open(self, channel: ChannelKey, message_id: str) -> bool:
        return (channel, message_id) in self._open

    def metadata_of(self, channel: ChannelKey, message_id: str) -> dict[str, Any] | None:
        """Return the metadata of a message that is or was a stream: only its end, or an edit, can carry them."""
        return self._metadata.get((channel, message_id))

    async def open(self, channel: ChannelKey, question: str | None, metadata: dict[str, Any]) -> str | None:
        """Start a stream and return its id; None where the reply has to be a message that is edited.

        Raises:
            PlatformUnavailable: It may have been started.
        """
        if not _has_streams(channel) or self._refused.holds(channel.channel) or self._is_used_up():
            return None
        self._starts.append(self._clock.now())
        self._starting[channel] += 1
        try:
            if not await self._sessions.begin(channel, self._titles.get((channel, question or ""), "")):
                return None
            response = await self._web.chat_startStream(channel=channel.channel, thread_ts=str(channel.thread))
        except PlatformError as error:
            if is_passing(error):
                raise
            self._refused.note(channel.channel, error)
            return None
        finally:
            self._starting[channel] -= 1
            self._starting += Counter()  # drops zeros
        ts = text_of(fields(response), "ts")
        if not is_timestamp(ts):
            raise PlatformUnavailable("Slack does not name the stream that was started")
        self._open[channel, ts], self._metadata[channel, ts] = _Stream(metadata, self._clock.now()), metadata
        return ts

    async def end_session(self, channel: ChannelKey) -> None:
        """Take Slack's Stop control from a thread where no stream is open: its answers have a button.

        Raises:
            PlatformUnavailable, RateLimited: It is to be repeated.
        """
        if not self._is_streaming(channel):
            await self._sessions.end(channel)

    async def show(self, channel: ChannelKey, ts: str, text: Rendered, buttons: list[dict[str, Any]]) -> bool:
        """Bring a stream to this text; return False if it is none or had to end: the text is to be set then."""
        stream = self._open.get((channel, ts))
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
        """End a stream, also one of an earlier run, without another text; `end_session` follows.

        Raises:
            PlatformUnavailable, RateLimited: It may still be open.
        """
        try:
            await self._stop(channel, ts)
        except PlatformError as error:
            if is_passing(error):
                raise
            # Slack ends a stream after five minutes, and when its Stop control is used.
            log.info("slack: no stream to end", message=ts, error=str(error))
            self._open.pop((channel, ts), None)

    def is_nameless(self, message: Event) -> bool:
        """Return whether this message of a history is a stream of the bot that has not ended as intended."""
        is_own = text_of(message, "user") == self._me.user or text_of(message, "bot_id") == self._me.bot != ""
        is_stream = "streaming_state" in message or not (message.get("text") or message.get("blocks"))
        return is_own and is_stream and not message.get("metadata")

    async def claim(self, channel: ChannelKey, ts: str, metadata: dict[str, Any]) -> bool:
        """Take a nameless stream for the message with this metadata; return False if it belongs to another one.

        Its start was executed, but the response was lost, or the process killed.

        Raises:
            PlatformUnavailable: It may be a stream that is being started; ask again.
        """
        if (channel, ts) not in self._metadata and await self._is_recorded(channel, ts):
            return False
        if (channel, ts) not in self._metadata and self._starting[channel]:
            raise PlatformUnavailable("a stream of this thread is being started")
        self._sessions.note_begun(channel)
        return self._metadata.setdefault((channel, ts), metadata) == metadata

    async def _append(self, channel: ChannelKey, ts: str, stream: _Stream, text: Rendered) -> None:
        piece = _settled(text.text[len(stream.appended) : text.stable])
        if not piece:
            return
        stream.is_lost = True
        try:
            await self._web.chat_appendStream(channel=channel.channel, ts=ts, markdown_text=piece)
        except RateLimited as limited:
            stream.is_lost, stream.is_in_doubt = False, True
            raise AppendLimited(limited.seconds) from limited
        stream.appended, stream.is_lost = stream.appended + piece, False

    async def _finish(
        self, channel: ChannelKey, ts: str, stream: _Stream, text: Rendered, buttons: list[dict[str, Any]]
    ) -> None:
        stream.is_lost = True
        rest = text.text[len(stream.appended) :] or None
        try:
            await self._stop(channel, ts, markdown_text=rest, blocks=buttons or None, metadata=stream.metadata)
        except RateLimited:
            stream.is_lost = False  # a second call tells if the first one was executed
            raise

    async def _stop(self, channel: ChannelKey, ts: str, **content: Any) -> None:
        """End a stream; the thread's session goes on while another stream is open in it."""
        status = "processing" if self._is_streaming(channel, besides=ts) else None
        self._stops.append(self._clock.now())
        await self._web.chat_stopStream(channel=channel.channel, ts=ts, session_status=status, **content)
        self._open.pop((channel, ts), None)
        if status is None:
            self._sessions.note_ended(channel)

    def _is_streaming(self, channel: ChannelKey, besides: str = "") -> bool:
        """Return whether a stream of the thread is open, or being started."""
        return self._starting[channel] > 0 or any(key == channel and ts != besides for key, ts in self._open)

    def _is_used_up(self) -> bool:
        """Return whether another stream could exceed what Slack allows in a minute: its starts, or later its ends."""
        now = self._clock.now()
        # An answer that was deleted leaves its stream; Slack ends it.
        self._open = {place: stream for place, stream in self._open.items() if now - stream.began < _FORGOTTEN}
        for calls in (self._starts, self._stops):
            while calls and calls[0] <= now - _MINUTE:
                calls.popleft()
        ends = len(self._stops) + len(self._open) + self._starting.total()
        return max(len(self._starts), ends) >= _STREAMS_PER_MINUTE


def _has_streams(channel: ChannelKey) -> bool:
    """Return whether replies there are streams: elsewhere Slack shows one to a single person while it grows."""
    return channel.channel.startswith("D") and channel.thread is not None


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
