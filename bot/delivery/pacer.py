"""Pace the calls to a platform: one lane per channel, shared by all replies in it."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from bot.domain import ChannelKey
from bot.errors import RateLimited
from bot.util.clock import Clock
from bot.util.retry import Backoff, retry_after

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Number of lanes above which idle ones are dropped; a lane takes about a kilobyte.
_LANES = 1024
# Seconds after refusals that name no wait, or next to none: the first delay and the longest.
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0
# Seconds: shorter waits are normal, and not logged.
_LOGGED_WAIT = 10.0
# The part of a budget that growing replies may use; the rest is kept for last edits.
_GROWING = 0.8
# The part of that share that may be used at once; the rest is evenly spaced over the minute.
_BURST = 0.25
_MINUTE = 60.0
# Calls kept per reply in progress: its last one, and one for what is asked meanwhile.
_RESERVED = 2
# Seconds until a budget whose calls are all reserved is looked at again.
_LOOK_AGAIN = 1.0


def by_channel(channel: ChannelKey) -> Hashable:
    """Return the lane of a channel, its threads included."""
    return channel.platform, channel.channel


@dataclass(slots=True)
class _Lane:
    edits: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while waiting for the interval
    call: asyncio.Lock = field(default_factory=asyncio.Lock)  # held during the one call in flight
    budget: "Budget | None" = None  # of this channel alone
    next_edit: float = -math.inf
    paused_until: float = -math.inf
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_WAIT, _LONGEST_WAIT))

    def is_forgettable(self, now: float) -> bool:
        return self.is_idle(now) and (self.budget is None or self.budget.is_idle)

    def is_idle(self, now: float) -> bool:
        return not (self.edits.locked() or self.call.locked() or max(self.next_edit, self.paused_until) > now)


class Budget:
    """Edits a minute that all channels of a platform share, where it counts them together.

    After a burst, the edits of growing replies are evenly spaced, so that none stands still for
    the rest of a minute.

    With `counts_sends` it is the budget of one channel, where messages count too: growing replies
    leave calls for the ends of all in progress.
    """

    def __init__(self, per_minute: int, clock: Clock, *, counts_sends: bool = False) -> None:
        self.counts_sends = counts_sends
        self._reserved = 0
        self._per_minute = per_minute
        self._share = per_minute * _GROWING
        self._spacing = _MINUTE / (self._share * (1 - _BURST))
        self._even = -math.inf  # when the next growing edit is due if all were evenly spaced
        self._clock = clock
        self._edits: deque[float] = deque()
        self._growing = asyncio.Lock()  # held while waiting: growing replies are served in order
        self._finished = asyncio.Lock()
        self._paused_until = -math.inf

    async def take_growing(self) -> None:
        """Wait until a growing reply may be edited, and count the edit."""
        async with self._growing:
            await self._take(self._next_growing)
            self._even = max(self._even, self._clock.now()) + self._spacing

    async def take_last(self) -> None:
        """Wait until a complete reply may be edited, and count the edit."""
        async with self._finished:
            await self._take(self._next_last)

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Keep calls for the end of a reply, until it is complete."""
        reserved = _RESERVED if self.counts_sends else 0
        self._reserved += reserved
        try:
            yield
        finally:
            self._reserved -= reserved

    @property
    def is_idle(self) -> bool:
        return not (self._used() or self._reserved)

    @property
    def is_used_up(self) -> bool:
        """Whether a growing reply could not be edited now."""
        return max(self._next_growing(), self._paused_until) > self._clock.now()

    def pause(self, seconds: float) -> None:
        """Allow no edit for `seconds`, after one was rate limited."""
        self._paused_until = max(self._paused_until, self._clock.now() + retry_after(seconds, 0.0))

    async def _take(self, due: Callable[[], float]) -> None:
        while (wait := max(due(), self._paused_until) - self._clock.now()) > 0:
            await self._clock.sleep(wait)
        self._edits.append(self._clock.now())

    def _next_growing(self) -> float:
        if self.counts_sends:  # the interval of the channel spaces its edits
            is_free = self._used() + self._reserved <= self._per_minute
            return -math.inf if is_free else self._clock.now() + _LOOK_AGAIN
        if self._used() >= self._share:
            return self._edits[0] + _MINUTE
        return self._even - (self._share * _BURST - 1) * self._spacing

    def _next_last(self) -> float:
        return self._edits[0] + _MINUTE if self._used() >= self._per_minute else -math.inf

    def _used(self) -> int:
        while self._edits and self._edits[0] <= self._clock.now() - _MINUTE:
            self._edits.popleft()
        return len(self._edits)


class Pacer:
    """Spaces the calls of one platform by channel; an adapter has one.

    A channel has one call in flight at a time, so that the next caller knows whether the
    last one was rate limited.  Callers are served in order.  `edits_per_minute` limits the
    edits of all channels together, `appends_per_minute` the appends to messages that are streams,
    `calls_per_minute` messages and edits of each channel.
    """

    def __init__(
        self,
        interval: Callable[[ChannelKey], float],
        clock: Clock,
        lane: Callable[[ChannelKey], Hashable] = by_channel,
        edits_per_minute: int | None = None,
        appends_per_minute: int | None = None,
        calls_per_minute: Callable[[ChannelKey], int | None] = lambda channel: None,
    ) -> None:
        self.clock = clock
        self._calls_per_minute = calls_per_minute
        self.budget = None if edits_per_minute is None else Budget(edits_per_minute, clock)
        self.appends = None if appends_per_minute is None else Budget(appends_per_minute, clock)
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
                    result = await do()
                except RateLimited as limited:
                    self.pause(channel, lane.backoff.after(limited))
                    raise
                lane.backoff.succeeded()
                return result

    def pause(self, channel: ChannelKey, seconds: float) -> None:
        """Pause the channel for at most an hour, also for a 429 whose caller was cancelled."""
        lane, now = self._lane(channel), self.clock.now()
        seconds = retry_after(seconds, _LONGEST_WAIT)
        if now + seconds > max(lane.paused_until, now) + _LOGGED_WAIT:
            log.warning("rate limited", channel=str(channel), seconds=round(seconds))
        lane.paused_until = max(lane.paused_until, now + seconds)

    def paused_until(self, channel: ChannelKey) -> float:
        """Return until when the platform has asked to wait in the channel; minus infinity if it has not."""
        return self._lane(channel).paused_until

    def budget_of(self, channel: ChannelKey) -> Budget | None:
        """Return the budget of the channel, else the one of the platform."""
        return self._lane(channel).budget or self.budget

    def is_busy(self, channel: ChannelKey) -> bool:
        """Return whether a call now would have to wait: for the channel, or for the budget of edits."""
        budget = self.budget_of(channel)
        is_used_up = budget is not None and budget.is_used_up
        return is_used_up or not self._lane(channel).is_idle(self.clock.now())

    def _lane(self, channel: ChannelKey) -> _Lane:
        key = self._lane_of(channel)
        if key not in self._lanes and len(self._lanes) >= _LANES:
            now = self.clock.now()
            self._lanes = {key: lane for key, lane in self._lanes.items() if not lane.is_forgettable(now)}
        if key not in self._lanes:
            per_minute = self._calls_per_minute(channel)
            budget = None if per_minute is None else Budget(per_minute, self.clock, counts_sends=True)
            self._lanes[key] = _Lane(budget=budget)
        return self._lanes[key]
