"""Garbage collection that takes no time from a start, nor from replies in progress."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bot.util.clock import Clock

# Collections of the youngest generation between two of the middle one, which visits all that they left: half of
# the usual number halves its time, and each object is visited as often.
_MIDDLE = 5
# Collections of the middle generation between two full ones: never by themselves.
_NEVER = 10**9
# Seconds between two looks for a moment without work.
_INTERVAL = 30.0
# Seconds until a full collection comes beside few replies in progress, and beside many: it visits all that they hold,
# which takes 40 ms with 400.
_FEW = 40
_BESIDE_FEW = 120.0
_BESIDE_MANY = 600.0


@contextmanager
def without_collection() -> Iterator[None]:
    """Import modules without collecting garbage: they keep what they create.

    A start of the demo model took a fifth of its CPU time for visiting it again and again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            # Into the oldest generation: a collection of the youngest one would visit all once more.
            gc.freeze()
            gc.unfreeze()
        if was_enabled:
            gc.enable()


async def collect_when_quiet(in_flight: Callable[[], int], clock: Clock) -> None:
    """Collect all garbage when no reply is in progress, after two minutes beside few, after ten beside many.

    Younger generations are collected as usual.  Runs until cancelled.
    """
    before = gc.get_threshold()
    gc.set_threshold(before[0], _MIDDLE, _NEVER)
    try:
        last = clock.now()
        while True:
            await clock.sleep(_INTERVAL)
            number, waited = in_flight(), clock.now() - last
            if number == 0 or waited >= (_BESIDE_FEW if number <= _FEW else _BESIDE_MANY):
                gc.collect()
                last = clock.now()
    finally:
        gc.set_threshold(*before)
