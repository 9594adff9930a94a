"""Whose turn it is: the exchanges of a channel one after the other, in the order of their rows."""

import asyncio
import bisect
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import count

from bot.domain import ChannelKey, EngineEvent, Exchange, QueueDepth


class Turn:
    """An exchange's place in the line of its channel; by its `number` those of all lines came one after the other."""

    def __init__(self, exchange: Exchange, number: int) -> None:
        self.exchange = exchange
        self.number = number
        self.is_stopped = False
        self.is_late = False
        self.left = asyncio.Event()
        self._moved = asyncio.Event()
        self._step: asyncio.Future[EngineEvent] | None = None

    def move(self) -> None:
        """Tell that the line moved up."""
        self._moved.set()

    async def movement(self) -> None:
        """Wait until the line moved up or the turn was stopped."""
        await self._moved.wait()
        self._moved.clear()

    def stop(self) -> None:
        self.is_stopped = True
        self._moved.set()
        if self._step is not None:
            self._step.cancel()

    def time_out(self) -> None:
        self.is_late = True
        self.stop()

    async def unless_stopped(self, events: AsyncGenerator[EngineEvent, None]) -> EngineEvent | None:
        """The next event, or None once the turn is stopped, however long that event takes."""
        if self.is_stopped:
            return None
        self._step = asyncio.ensure_future(anext(events))
        try:
            return await self._step
        except asyncio.CancelledError:
            # Two may cancel here: `stop` this step, or somebody the task that waits for it.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return None
        finally:
            self._step = None


class Lines:
    """A line for each channel where somebody waits; iterating yields the turns of all."""

    def __init__(self) -> None:
        self._lines: dict[ChannelKey, list[Turn]] = {}
        self._numbers = count()

    def __iter__(self) -> Iterator[Turn]:
        return (turn for line in self._lines.values() for turn in line)

    def of(self, channel: ChannelKey) -> Sequence[Turn]:
        return self._lines.get(channel, ())

    def join(self, exchange: Exchange) -> None:
        line = self._lines.setdefault(exchange.message.channel, [])
        bisect.insort(line, Turn(exchange, next(self._numbers)), key=lambda turn: turn.exchange.id)

    def leave(self, turn: Turn) -> None:
        channel = turn.exchange.message.channel
        line = self._lines[channel]
        line.remove(turn)
        turn.left.set()
        for other in line:
            other.move()
        if not line:
            del self._lines[channel]

    def position(self, turn: Turn) -> int:
        """How many stand before it; it may change whenever the turn's `movement` returns."""
        return self._lines[turn.exchange.message.channel].index(turn)

    def find(self, exchange: Exchange) -> Turn | None:
        return next((turn for turn in self.of(exchange.message.channel) if turn.exchange.id == exchange.id), None)

    def turn(self, exchange: Exchange) -> Turn:
        turn = self.find(exchange)
        assert turn is not None, "an exchange is expected before it is answered or dismissed"
        return turn

    def standing(self, exchange: Exchange) -> QueueDepth:
        """What came before this exchange and is not answered yet; a retry comes when it is asked for."""
        own, message = self.find(exchange), exchange.message
        others = [
            turn.exchange.message for turn in self if turn is not own and (own is None or turn.number < own.number)
        ]
        return QueueDepth(
            author=sum(other.author.key == message.author.key for other in others),
            channel=sum(
                (other.channel.platform, other.channel.channel) == (message.channel.platform, message.channel.channel)
                for other in others
            ),
        )
