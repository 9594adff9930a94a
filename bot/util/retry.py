"""Exponential backoff, and retries on the injected clock."""

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from bot.errors import BotError, LoginRefused, RateLimited, StoreError
from bot.util.aio import race
from bot.util.clock import Clock

T = TypeVar("T")

# The longest delay is reached long before; more doublings would overflow a float.
_MAX_DOUBLINGS = 16
# Seconds between store retries: the first delay and the longest.
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


# Seconds: longer delays that a platform names are not believed.
_LONGEST_RATE_LIMIT = 3600.0


def _no_jitter() -> float:
    return 1.0


class Backoff:
    """Delays in seconds after consecutive failures: `first`, doubled each time up to `longest`.

    `jitter` returns numbers from 0 to 1; a delay is then between half its value and
    the whole, so that clients that fail together do not return together.

    >>> backoff = Backoff(1.0, 10.0)
    >>> [backoff.after_failure() for _ in range(6)]
    [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    """

    def __init__(self, first: float, longest: float, jitter: Callable[[], float] = _no_jitter) -> None:
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self._failures = 0

    def after_failure(self) -> float:
        """Count a failure and return the delay before the next attempt."""
        seconds = min(self._first * 2.0 ** min(self._failures, _MAX_DOUBLINGS), self._longest)
        self._failures += 1
        return seconds * (1 + self._jitter()) / 2

    def after(self, error: BotError) -> float:
        """Return the delay after `error`: at least that of any failure, and what a rate limit names."""
        seconds = self.after_failure()
        return max(seconds, error.seconds) if isinstance(error, RateLimited) else seconds

    def succeeded(self) -> None:
        """Start over with the first delay."""
        self._failures = 0


def retry_after(value: object, default: float) -> float:
    """Return the seconds of a Retry-After header or field, between 0 and an hour; `default` if it names none.

    >>> [retry_after(value, 5.0) for value in ("2", 0.25, "1e300", "inf", "-1", "soon", None)]
    [2.0, 0.25, 3600.0, 3600.0, 0.0, 5.0, 5.0]
    """
    try:
        seconds = float(value) if isinstance(value, str | int | float) else math.nan
    except (OverflowError, ValueError):
        return default
    return default if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_RATE_LIMIT)


async def retry(
    attempt: Callable[[], Awaitable[T]],
    *errors: type[BotError],
    clock: Clock,
    backoff: Backoff,
    on_failure: Callable[[BotError, float], object],
    stopped: Callable[[], Awaitable[object]] | None = None,
) -> T:
    """Await `attempt()` until it succeeds, sleeping on `clock` after each of these errors.

    `on_failure` is called with the error and the seconds until the next attempt; it may raise the
    error instead.  A sleep ends early once `stopped()` returns.
    Other errors, LoginRefused and a cancellation end the retries.
    """
    while True:
        try:
            result = await attempt()
        except LoginRefused:
            raise
        except errors as error:
            seconds = backoff.after(error)
            on_failure(error, seconds)
        else:
            backoff.succeeded()
            return result
        if stopped is None:
            await clock.sleep(seconds)
        else:
            await race(clock.sleep(seconds), stopped())


def log_retry(event: str) -> Callable[[BotError, float], None]:
    """Return an `on_failure` for `retry` that logs a warning."""

    def report(error: BotError, seconds: float) -> None:
        log.warning(event, seconds=round(seconds, 1), error=str(error))

    return report


async def retry_until_stored(write: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """Retry a store write whose result users have already seen; only a cancellation ends it.

    An answer that is visible in a channel but missing in the database would be given twice.
    """
    backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
    return await retry(
        write, StoreError, clock=clock, backoff=backoff, on_failure=log_retry("store write failed, retrying")
    )
