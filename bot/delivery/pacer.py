"""Pace the calls to a platform: one lane per channel, shared by all replies in it."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

from bot.domain import ChannelKey
from bot.errors import RateLimited
from bot.util.clock import Clock

T = TypeVar("T")

# Number of lanes above which idle ones are dropped; a lane takes about a kilobyte.
_LANES = 1024


def by_channel(channel: ChannelKey) -> Hashable:
    """Return the lane of a channel, its threads included."""
    return channel.platform, channel.channel


@dataclass(slots=True)
class _Lane:
    edits: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while waiting for the interval
    call: asyncio.Lock = field(default_factory=asyncio.Lock)  # held during the one call in flight
    next_edit: float = -math.inf
    paused_until: float = -math.inf

    def is_idle(self, now: float) -> bool:
        return not (self.edits.locked() or self.call.locked() or max(self.next_edit, self.paused_until) > now)


class Pacer:
    """Spaces the calls of one platform by channel; an adapter has one.

    A channel has one call in flight at a time, so that the next caller knows whether the
    last one was rate limited.  Callers are served in order.
    """

    def __init__(
        self,
        interval: Callable[[ChannelKey], float],
        clock: Clock,
        lane: Callable[[ChannelKey], Hashable] = by_channel,
    ) -> None:
        self.clock = clock
        self._interval = interval
        self._lane_of = lane
        self._lanes: dict[Hashable, _Lane] = {}

    async def call(self, channel: ChannelKey, do: Callable[[], Awaitable[T]], *, urgent: bool = False) -> T:
        """Await `do()` as soon as the channel allows it; an urgent call skips the interval.

        An urgent call does not delay a waiting edit: where a reply goes on in another message,
        text that spans both would be older than two intervals.

        Raises:
            RateLimited: Raised by `do`; the channel is then paused for all callers.
        """
        lane = self._lane(channel)
        if urgent:
            return await self._when_due(lane, channel, do, lambda: lane.paused_until)
        async with lane.edits:
            return await self._when_due(lane, channel, do, lambda: max(lane.next_edit, lane.paused_until))

    async def _when_due(
        self, lane: _Lane, channel: ChannelKey, do: Callable[[], Awaitable[T]], due: Callable[[], float]
    ) -> T:
        while True:
            while (wait := due() - self.clock.now()) > 0:
                await self.clock.sleep(wait)
            async with lane.call:
                if due() > self.clock.now():
                    continue  # another call was made while this one waited for the lock
                now = self.clock.now()
                if lane.next_edit <= now:
                    lane.next_edit = now + self._interval(channel)
                try:
                    return await do()
                except RateLimited as limited:
                    self.pause(channel, limited.seconds)
                    raise

    def pause(self, channel: ChannelKey, seconds: float) -> None:
        """Pause the channel, for a 429 whose caller was cancelled."""
        lane = self._lane(channel)
        lane.paused_until = max(lane.paused_until, self.clock.now() + seconds)

    def _lane(self, channel: ChannelKey) -> _Lane:
        key = self._lane_of(channel)
        if key not in self._lanes and len(self._lanes) >= _LANES:
            now = self.clock.now()
            self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.is_idle(now)}
        return self._lanes.setdefault(key, _Lane())
