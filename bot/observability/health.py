"""What alive and ready mean: alive is an event loop that turns, ready is every part at its work."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from bot.engine.base import Engine, EngineLoad
from bot.errors import StoreError
from bot.storage.base import Store
from bot.util.clock import Clock

# Who asks every second shall not make the disk write every second.
CHECK_LASTS = 5.0
# What asks gives up after a second by default (Kubernetes), and a locked database takes 5 s to say so.
CHECK_SECONDS = 0.8


class Connected(Protocol):
    """What is asked of an adapter here."""

    @property
    def is_connected(self) -> bool: ...


@dataclass
class Components:
    """What the program consists of so far: whoever opens a part puts it here."""

    store: Store | None = None
    engine: Engine | None = None
    adapters: Mapping[str, Connected] = field(default_factory=dict)
    is_stopping: bool = False


@dataclass(frozen=True, slots=True)
class Readiness:
    """One part, and why it cannot do its work; None where it can."""

    part: str
    reason: str | None


def engine_fault(load: EngineLoad | None, stalled_seconds: float) -> str | None:
    """Why the model cannot answer; `load` is None while it loads.

    >>> engine_fault(EngineLoad(running=1, waiting=0, since_progress=75.0), stalled_seconds=60)
    'no step has ended for 75 s'
    """
    if load is None:
        return "loading"
    if load.is_changing:
        return "changing the model"
    if load.down is not None:
        return load.down
    if load.since_progress >= stalled_seconds:
        return f"no step has ended for {load.since_progress:.0f} s"
    return None


class Health:
    """Looks at the parts; the store is asked at most every `CHECK_LASTS` seconds."""

    def __init__(self, parts: Components, stalled_seconds: float, clock: Clock) -> None:
        self._parts = parts
        self._stalled_seconds = stalled_seconds
        self._clock = clock
        self._checking = asyncio.Lock()
        self._checked_at: float | None = None
        self._store_fault: str | None = None

    async def readiness(self) -> list[Readiness]:
        """Every part with what is wrong with it; the program is ready when nothing is."""
        parts = self._parts
        load = None if parts.engine is None else parts.engine.load
        found = [
            Readiness("program", "stopping" if parts.is_stopping else None),
            Readiness("store", await self._find_store_fault()),
            Readiness("engine", engine_fault(load, self._stalled_seconds)),
        ]
        for name, adapter in parts.adapters.items():
            found.append(Readiness(name, None if adapter.is_connected else "not connected"))
        return found

    async def _find_store_fault(self) -> str | None:
        store = self._parts.store
        if store is None:
            return "opening"
        async with self._checking:
            if self._checked_at is None or self._clock.now() - self._checked_at >= CHECK_LASTS:
                self._store_fault = await _fault_of(store)
                self._checked_at = self._clock.now()
            return self._store_fault


async def _fault_of(store: Store) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await store.check()
    except TimeoutError:
        return f"it did not take a write within {CHECK_SECONDS:g} s"
    except StoreError as error:
        return str(error)
    return None
