"""Garbage is collected in full when nothing is in progress, and not during imports."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from itertools import pairwise

import pytest

from bot.util.garbage import collect_frozen, collect_when_idle, freeze_survivors, without_collection
from tests.harness.fakes import ManualClock


class Node:
    """An object in a reference cycle."""

    def __init__(self) -> None:
        self.itself = self


def old_cycle() -> weakref.ref[Node]:
    """Return a reference to garbage that only a full collection finds."""
    node = Node()
    gc.collect(1)  # survivors of the middle generation are old
    return weakref.ref(node)


async def test_old_garbage_waits_for_a_pause_or_ten_minutes() -> None:
    clock, is_idle, before = ManualClock(), False, gc.get_threshold()
    collecting = asyncio.create_task(collect_when_idle(lambda: is_idle, clock))
    await clock.settle()
    assert gc.get_threshold()[1] < before[1], "the middle generation is collected more often, and is shorter"
    garbage = old_cycle()
    await clock.advance(90.0)
    assert garbage() is not None
    is_idle = True
    await clock.advance(30.0)
    assert garbage() is None
    is_idle, garbage = False, old_cycle()
    await clock.advance(570.0)
    assert garbage() is not None
    await clock.advance(30.0)
    assert garbage() is None
    collecting.cancel()
    await clock.settle()
    assert gc.get_threshold() == before


@pytest.fixture
def unfrozen() -> Iterator[None]:
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


async def test_survivors_are_frozen_when_there_are_many_and_a_few_times_only(unfrozen: None) -> None:
    clock = ManualClock()
    freezing = asyncio.create_task(freeze_survivors(clock))
    await clock.advance(60.0)
    frozen = [gc.get_freeze_count()]
    kept = []
    for _ in range(22):
        kept.append([[number] for number in range(5000)])
        gc.collect(1)  # they are old now
        await clock.advance(1.0)
        frozen.append(gc.get_freeze_count())
    more = [after - before > 4000 for before, after in pairwise(frozen)]
    assert more == [True] * 20 + [False] * 2
    assert freezing.done()


def test_a_frozen_cycle_is_collected_when_it_has_to_be(unfrozen: None) -> None:
    garbage = old_cycle()
    gc.freeze()
    gc.collect()
    assert garbage() is not None
    collect_frozen()
    assert garbage() is None
    assert gc.get_freeze_count() > 0


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_nothing_is_collected_while_modules_are_imported() -> None:
    gc.unfreeze()
    gc.collect()
    before = collections()
    with without_collection():
        kept = [[number] for number in range(10 * gc.get_threshold()[0])]
    assert collections() == before
    assert gc.isenabled()
    assert any(kept is each for each in gc.get_objects(generation=2))
    assert gc.get_freeze_count() == 0


def test_objects_that_were_frozen_stay_so(request: pytest.FixtureRequest) -> None:
    gc.freeze()
    request.addfinalizer(gc.unfreeze)
    before = gc.get_freeze_count()
    with without_collection():
        pass
    assert gc.get_freeze_count() >= before > 0


def test_a_collector_that_was_off_stays_off(request: pytest.FixtureRequest) -> None:
    gc.disable()
    request.addfinalizer(gc.enable)
    with without_collection():
        pass
    assert not gc.isenabled()
