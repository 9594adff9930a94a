"""R14: a model step that never ends.

The real engine, store and operations server.  The model hangs in a random step, with one
request or several in its batch, whose users wait or leave.  Before that, the engine is idle
for some time, and runs a step that is slow but not stuck.
"""

import asyncio
import random
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry

from bot.config.http import OperationsSection
from bot.engine.serving.base import Batch
from bot.engine.serving.engine import ServingEngine
from bot.observability.health import Components, Health
from bot.observability.http import create_app, serve_operations
from bot.storage.sql import SqlStore
from bot.util.clock import MonotonicClock
from tests.chaos.figure import Row, Scale
from tests.harness.probe import HealthProbe
from tests.harness.scripted_model import ScriptedModel, ask, events, loaded, text_of

NAME = "R14"

TEXT = "an answer of some length"
# Seconds between two health checks.
LOOK = 0.01
# A state not reported after this multiple of the configured age counts as never reported.
NEVER = 300.0
RECOVERY = 1.0


class Wedge:
    """Blocks the model in one step until it is released, or slows that step down."""

    def __init__(self) -> None:
        self._steps_left: int | None = None
        self._slow: float | None = None
        self._released = threading.Event()
        self.stuck = threading.Event()

    def block(self, before_step: int, slow: float | None = None) -> None:
        """Block after `before_step` more steps, for `slow` seconds or until `release`."""
        self.stuck.clear()
        self._released.clear()
        self._slow, self._steps_left = slow, before_step

    def release(self) -> None:
        self._released.set()

    def __call__(self, batch: Batch) -> None:
        if self._steps_left is None:
            return
        if self._steps_left:
            self._steps_left -= 1
            return
        self._steps_left = None
        self.stuck.set()
        self._released.wait(self._slow)


@dataclass
class Tally:
    age: float
    wedged: int = 0
    told: list[float] = field(default_factory=list)  # seconds until /readyz returned 503
    recovered: list[float] = field(default_factory=list)
    too_soon: int = 0
    silent: int = 0
    forgotten: int = 0  # still stuck, but ready again because its users had left
    alive: int = 0
    not_alive: int = 0
    looks_at_health: int = 0
    torn: int = 0

    def __str__(self) -> str:
        told = f"{min(self.told):.2f} to {max(self.told):.2f} s" if self.told else "never"
        recovered = f"{max(self.recovered):.2f} s" if self.recovered else "never"
        return (
            f"wedged {self.wedged:,}, /readyz says 503 after {told} (age {self.age:g} s), never {self.silent}, forgotten {self.forgotten}, "
            f"too soon {self.too_soon} of {self.looks_at_health:,} looks while idle or slow, "
            f"/livez 200 {self.alive:,} of {self.alive + self.not_alive:,}, ready again within {recovered}, "
            f"answers torn {self.torn}"
        )

    @property
    def is_kept(self) -> bool:
        return not (
            self.too_soon or self.silent or self.forgotten or self.not_alive or self.torn
        ) and self.wedged == len(self.recovered)

    @property
    def is_in_time(self) -> bool:
        return max(self.told, default=0) <= 2 * self.age and max(self.recovered, default=0) <= RECOVERY


@dataclass(frozen=True)
class Scene:
    """A running engine, its wedge, and the health probe."""

    engine: ServingEngine
    wedge: Wedge
    probe: HealthProbe
    tally: Tally

    async def is_ready(self) -> bool:
        """Read both health endpoints once."""
        is_alive = (await self.probe.get("/livez"))[0] == 200
        self.tally.alive += is_alive
        self.tally.not_alive += not is_alive
        status, parts = await self.probe.ready()
        assert status == 200 or {part for part, fault in parts.items() if fault != "ok"} == {"engine"}, parts
        return status == 200

    async def remain_ready(self, until: asyncio.Task[Any]) -> None:
        """Check until the task is done; 503 before the configured age counts as too soon."""
        began = time.monotonic()
        while not until.done():
            is_ready = await self.is_ready()
            self.tally.looks_at_health += 1
            # On a busy machine the slow step may really be too slow.
            self.tally.too_soon += not is_ready and time.monotonic() - began < self.tally.age
            await asyncio.sleep(LOOK)
        await until

    async def seconds_until(self, is_ready: bool, limit: float) -> float | None:
        began = time.monotonic()
        while time.monotonic() - began < limit:
            if await self.is_ready() is is_ready:
                return time.monotonic() - began
            await asyncio.sleep(LOOK)
        return None

    async def hang(self, dice: random.Random) -> None:
        """Hang once: wait for 503, release, wait for 200."""
        began = time.monotonic()
        self.wedge.block(before_step=dice.randrange(len(TEXT)))
        asking = [asyncio.create_task(events(self.engine, ask(TEXT))) for _ in range(dice.randint(1, 6))]
        await asyncio.to_thread(self.wedge.stuck.wait)
        self.tally.wedged += 1
        told = await self.seconds_until(False, NEVER * self.tally.age)
        self.tally.silent += told is None
        self.tally.too_soon += time.monotonic() - began < self.tally.age
        self.tally.told += [] if told is None else [told]
        leaving = [task for task in asking if dice.random() < 0.5]
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        self.tally.forgotten += await self.is_ready()
        self.wedge.release()
        recovered = await self.seconds_until(True, NEVER * self.tally.age)
        self.tally.recovered += [] if recovered is None else [recovered]
        answers = await asyncio.gather(*(task for task in asking if task not in leaving))
        self.tally.torn += sum(text_of(answer) != TEXT for answer in answers)


@asynccontextmanager
async def open_scene(age: float) -> AsyncIterator[Scene]:
    model, wedge = ScriptedModel(), Wedge()
    model.before = wedge
    engine = ServingEngine(lambda progress: loaded(model), max_waiting=8)
    clock = MonotonicClock()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite+aiosqlite:///{Path(folder) / 'bot.db'}"
        async with SqlStore(url) as store, engine:
            app = create_app(Health(Components(store, engine), age, clock), CollectorRegistry())
            async with serve_operations(OperationsSection(port=0), app) as port, aiohttp.ClientSession() as http:
                yield Scene(engine, wedge, HealthProbe(http, port), Tally(age))


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    wedges, age = (20, 2.0) if scale == "full" else (2, 0.4)
    dice = random.Random(seed)
    async with open_scene(age) as scene:
        await scene.remain_ready(asyncio.create_task(asyncio.sleep(2.5 * age)))
        scene.wedge.block(before_step=0, slow=0.6 * age)
        answer = asyncio.create_task(events(scene.engine, ask(TEXT)))
        await scene.remain_ready(answer)
        for _ in range(wedges):
            await scene.hang(dice)
        yield Row("engine", str(scene.tally), scene.tally.is_kept, scene.tally.is_in_time)
