"""Liveness and readiness of the components."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bot.domain import EngineInfo, EngineLoad, ModelStatus, RunningBot, Upkeep
from bot.errors import StoreError
from bot.util.clock import Clock

# Seconds that a store check is cached: probes may come every second, and a check writes to the disk.
CHECK_LASTS = 5.0
# Seconds until a store check counts as failed: Kubernetes gives up after 1 s by default, a locked database takes 5 s.
CHECK_SECONDS = 0.8


class AdapterState(Protocol):
    @property
    def is_connected(self) -> bool: ...

    @property
    def fault(self) -> str | None: ...

    @property
    def is_standby(self) -> bool: ...


class StoreState(Protocol):
    @property
    def upkeep(self) -> Upkeep: ...

    async def check(self) -> None: ...


class EngineState(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    @property
    def load(self) -> EngineLoad: ...


@dataclass(frozen=True, slots=True)
class Readiness:
    """One component, and the reason if it is not ready; `is_needed` is false for a platform beside one that serves.

    With `is_standby` another bot serves the platform, and this one is ready to take over.
    """

    component: str
    reason: str | None
    is_needed: bool = True
    is_standby: bool = False

    @property
    def word(self) -> str:
        """The component's state in /readyz."""
        return self.reason or ("standby" if self.is_standby else "ok")


@dataclass
class Components:
    """The components opened so far; filled in by `app.run`."""

    store: StoreState | None = None
    engine: EngineState | None = None
    adapters: Mapping[str, AdapterState] = field(default_factory=dict)
    is_stopping: bool = False
    standby: Readiness | None = None  # while another bot serves the database
    models: Callable[[], Sequence[ModelStatus]] = tuple  # where there may be several
    bots: Sequence[RunningBot] = ()  # where several share the database, as it was read last

    @property
    def is_serving(self) -> bool:
        """Whether this bot serves a platform, or none has to wait for another bot."""
        is_standby = [adapter.is_standby for adapter in self.adapters.values()]
        return self.standby is None and not (is_standby and all(is_standby))


def engine_fault(load: EngineLoad | None, stalled_seconds: float) -> str | None:
    """Return the reason if the engine cannot answer; `load` is None while the model loads.

    >>> engine_fault(EngineLoad(running=1, waiting=0, since_progress=75.0), stalled_seconds=60)
    'no step has ended for 75 s'
    """
    if load is None:
        return "loading"
    if load.is_changing:
        return "changing the model"
    if load.down is not None:
        return load.down
    if load.fault is not None:
        return load.fault
    if load.since_progress >= stalled_seconds:
        return f"no step has ended for {load.since_progress:.0f} s"
    return None


class Health:
    """Checks the components; the store at most every `CHECK_LASTS` seconds."""

    def __init__(
        self, components: Components, stalled_seconds: float, clock: Clock, *, requires_all_platforms: bool = False
    ) -> None:
        self._components = components
        self._stalled_seconds = stalled_seconds
        self._requires_all_platforms = requires_all_platforms
        self._clock = clock
        self._checking = asyncio.Lock()
        self._checked_at: float | None = None
        self._store_fault: str | None = None

    async def readiness(self) -> list[Readiness]:
        """Return the state of every component; the program is ready when none that is needed has a reason."""
        components = self._components
        if components.standby is not None:
            return [components.standby]
        is_served = any(adapter.is_connected for adapter in components.adapters.values())
        needs_all = self._requires_all_platforms or not is_served
        load = None if components.engine is None else components.engine.load
        return [
            Readiness("program", "stopping" if components.is_stopping else None),
            Readiness("store", await self._find_store_fault()),
            Readiness("engine", self.fault_of(load)),
            *(
                Readiness(name, adapter.fault, needs_all, adapter.is_standby)
                for name, adapter in components.adapters.items()
            ),
        ]

    def fault_of(self, load: EngineLoad | None) -> str | None:
        """Return the reason if the model with this load cannot answer."""
        return engine_fault(load, self._stalled_seconds)

    async def _find_store_fault(self) -> str | None:
        store = self._components.store
        if store is None:
            return "opening"
        async with self._checking:
            if self._checked_at is None or self._clock.now() - self._checked_at >= CHECK_LASTS:
                self._store_fault = await _check(store)
                self._checked_at = self._clock.now()
            return self._store_fault


async def _check(store: StoreState) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await store.check()
    except TimeoutError:
        return f"it did not take a write within {CHECK_SECONDS:g} s"
    except StoreError as error:
        return str(error)
    return None
