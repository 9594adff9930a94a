"""Writing down what cannot be taken back: again and again, until the database takes it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from bot.clock import Clock
from bot.errors import StoreError
from bot.waits import Backoff

T = TypeVar("T")

# Seconds between tries: the first, and the longest.
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def kept(write: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """Do it until it succeeds; only being cancelled ends it earlier.

    For what people have seen already: an answer that stands in a channel and is not in
    the database would be given a second time.
    """
    wait = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
    while True:
        try:
            return await write()
        except StoreError as error:
            seconds = wait.after_failure()
            log.warning("the database takes nothing now; trying again", seconds=seconds, error=str(error))
        await clock.sleep(seconds)
