"""The open event streams of the pages, and what each has yet to show."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from bot.domain import ChannelKey

# PageStreams per session: a browser opens six connections to a server, and needs some for its requests.
MOST_STREAMS = 4


class Stream:
    """One page: `is_stale` if rows have changed since, `changed` are the questions whose replies have grown."""

    def __init__(self, channel: ChannelKey) -> None:
        self.channel = channel
        self.is_stale = True
        self.changed: set[str] = set()
        self.is_replaced = False
        self.is_closed = False
        self._woken = asyncio.Event()
        self._woken.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for something to show; return False if there was nothing for so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True

    def wake(self) -> None:
        self._woken.set()


class PageStreams:
    """The streams of all sessions."""

    def __init__(self) -> None:
        self._by_user: dict[str, list[Stream]] = {}
        self._is_closed = False

    @contextmanager
    def open(self, channel: ChannelKey) -> Iterator[Stream]:
        """Open a stream of a conversation; of too many of one session, the oldest ends."""
        stream = Stream(channel)
        stream.is_closed = self._is_closed
        streams = self._by_user.setdefault(channel.channel, [])
        streams.append(stream)
        for oldest in streams[:-MOST_STREAMS]:
            oldest.is_replaced = True
            oldest.wake()
        try:
            yield stream
        finally:
            streams.remove(stream)
            if not streams and self._by_user.get(channel.channel) is streams:
                del self._by_user[channel.channel]

    @property
    def count(self) -> int:
        return sum(map(len, self._by_user.values()))

    def reload(self, channel: ChannelKey) -> None:
        """Let the session's streams read the rows again."""
        for stream in self._by_user.get(channel.channel, ()):
            stream.is_stale = True
            stream.wake()

    def show(self, channel: ChannelKey, question: str) -> None:
        """Let the streams of a conversation show how the reply to a question has grown."""
        for stream in self._by_user.get(channel.channel, ()):
            if stream.channel == channel:
                stream.changed.add(question)
                stream.wake()

    def close(self) -> None:
        """End all streams, and those that are opened from now on; their pages open others later."""
        self._is_closed = True
        for stream in [stream for streams in self._by_user.values() for stream in streams]:
            stream.is_closed = True
            stream.wake()
