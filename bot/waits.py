"""How the program waits: for the first of two things, for the end of a call, and longer after each failure."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from bot.errors import BotError, RateLimited

# More of them make no difference: the longest wait is reached by then.
_DOUBLINGS = 16


async def first_of(one: Awaitable[object], other: Awaitable[object]) -> None:
    """Wait until one of the two is done, and cancel the other; what they raise is not told."""
    both = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def to_its_end(work: Coroutine[Any, Any, object]) -> None:
    """Let what has begun end before we are cancelled.

    Cut off in the middle of a call, we would not know whether the platform has our message.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


def _as_it_is() -> float:
    return 1.0


class Backoff:
    """The seconds to wait after each failure: `first`, and twice as long each time, up to `longest`.

    With `chance`, which returns numbers from 0 to 1, each wait is between half of that and
    the whole: those that fail together shall not come back together.

    >>> wait = Backoff(1.0, 10.0)
    >>> [wait.after_failure() for _ in range(6)]
    [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    """

    def __init__(self, first: float, longest: float, chance: Callable[[], float] = _as_it_is) -> None:
        self._first = first
        self._longest = longest
        self._chance = chance
        self._failures = 0  # one after the other

    def after_failure(self) -> float:
        # Doubled for months, the number would be too large for a float.
        seconds = min(self._first * 2.0 ** min(self._failures, _DOUBLINGS), self._longest)
        self._failures += 1
        return seconds * (1 + self._chance()) / 2

    def after(self, error: BotError) -> float:
        """As long as the platform said, where it did: that is no failure."""
        return error.seconds if isinstance(error, RateLimited) else self.after_failure()

    def succeeded(self) -> None:
        self._failures = 0
