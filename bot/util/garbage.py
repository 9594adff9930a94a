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
# Seconds between two looks for a moment without work, and until a full collection comes in any case.
_INTERVAL = 30.0
_LONGEST = 600.0
# Number of survivors at which they are frozen, how often at most, and seconds between two counts.
_MANY = 2000
_MOST_OFTEN = 20
_COUNTS = 1.0


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


async def collect_when_idle(is_idle: Callable[[], bool], clock: Clock) -> None:
    """Collect all garbage when there is no work, or after ten minutes without a pause; run until cancelled.

    A full collection visits every object that is not frozen: with 400 replies in progress it takes 40 ms.  Younger
    generations are collected as usual.
    """
    before = gc.get_threshold()
    gc.set_threshold(before[0], _MIDDLE, _NEVER)
    try:
        last = clock.now()
        while True:
            await clock.sleep(_INTERVAL)
            if is_idle() or clock.now() - last >= _LONGEST:
                gc.collect()
                last = clock.now()
    finally:
        gc.set_threshold(*before)


async def freeze_survivors(clock: Clock) -> None:
    """Keep out of later collections what the first questions leave, two thousand objects at a time.

    Compiled statements and connections stay: with those of a busy bot, 23,000 objects, a collection took 27 ms.  It ends
    after twenty times, since a frozen object that becomes garbage in a cycle stays until `collect_frozen`.
    """
    for _ in range(_MOST_OFTEN):
        while len(gc.get_objects(generation=2)) < _MANY:
            await clock.sleep(_COUNTS)
        gc.collect()
        gc.freeze()


def collect_frozen() -> None:
    """Collect all garbage, frozen or not: a model that is replaced may be part of it.

    With half a million objects of imported libraries it takes 0.3 s.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
