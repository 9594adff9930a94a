"""When a platform may be called: a lane per channel, shared by all the replies that grow there."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

from bot.domain import ChannelKey
from bot.errors import RateLimited
from bot.util.clock import Clock

T = TypeVar("T")

# Lanes kept before those at rest are dropped: a lane weighs about a kilobyte.
_LANES = 1024


def by_channel(channel: ChannelKey) -> Hashable:
    """The lane of a platform that counts a channel's threads together."""
    return channel.platform, channel.channel


@dataclass(slots=True)
class _Lane:
    edits: asyncio.Lock = field(default_factory=asyncio.Lock)  # who waits for the interval
    call: asyncio.Lock = field(default_factory=asyncio.Lock)  # the one call under way
    next_edit: float = -math.inf
    paused_until: float = -math.inf

    def rests(self, now: float) -> bool:
        return not (self.edits.locked() or self.call.locked() or max(self.next_edit, self.paused_until) > now)


class Pacer:
    """Spaces the calls of one platform, a channel at a time; an adapter has one.

    One call at a time is under way in a channel, so that nobody calls before they know
    whether the last one was told to wait.  Callers come in turn.
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
        """Do it as soon as the channel bears it; an urgent call waits for no interval.

        Nor does it put off an edit that waits: where a reply goes on in another message,
        text that two messages have to show would be older than two intervals.

        Raises:
            RateLimited: As `do` raised it; the channel is then paused for all.
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
                    continue  # another call was made while this one waited for it
                now = self.clock.now()
                if lane.next_edit <= now:
                    lane.next_edit = now + self._interval(channel)
                try:
                    return await do()
                except RateLimited as limited:
                    self.pause(channel, limited.seconds)
                    raise

    def pause(self, channel: ChannelKey, seconds: float) -> None:
        """Let nobody call there for so long: for a call that was told to wait when its caller had gone."""
        lane = self._lane(channel)
        lane.paused_until = max(lane.paused_until, self.clock.now() + seconds)

    def _lane(self, channel: ChannelKey) -> _Lane:
        key = self._lane_of(channel)
        if key not in self._lanes and len(self._lanes) >= _LANES:
            now = self.clock.now()
            self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.rests(now)}
        return self._lanes.setdefault(key, _Lane())
