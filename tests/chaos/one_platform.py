"""R25: one of three platforms flooding, down or refused, beside two that are well.

All three are served by one bot process with the echo engine.  Users of the two others ask all
the time; their waits are compared with those before the trouble in the same process.  Then
the platform recovers, and the question asked there during its trouble is answered.
"""

import asyncio
import itertools
import math
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from bot.domain import Action
from tests.chaos.faults import percentile
from tests.chaos.figure import Row, Scale
from tests.chaos.processes import PLATFORMS, TIMEOUT, BotProcess, logged_errors, remove_messages, run_bot, until
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import PROFILES
from tests.harness.probe import HealthProbe
from tests.harness.servers.discord_gateway import TOKEN

NAME = "R25"

# Of each trouble; `make reliability ARGS="one_platform --seconds 600"` changes it.
SECONDS = 60.0
_SHORT_SECONDS = 3.0
_ROOMS = 3  # per platform
# Messages that a room keeps, of which the last half is never dropped.
_KEPT = 40
# Seconds between an answer and the next question: the bot is to have half a core left for the trouble, or its lack would be measured.
_PAUSE = 1.0
_FLOOD_PAUSE = 0.05  # seconds between two messages of the flood, of which every fourth is to the bot
_FLOOD_ROOMS = 10
_MOST_TIMES, _MOST_MORE = 1.2, 0.1  # p95 compared with before, and seconds


@dataclass
class Asker:
    """Users of one platform: questions, waits, and what went wrong."""

    platform: LoopbackPlatform
    numbers: Iterator[int] = field(default_factory=itertools.count)
    waits: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    async def ask(self, room: str) -> None:
        """Ask, and wait for the whole answer."""
        number = f"{self.platform.name[0]}{next(self.numbers)}e"
        began = time.monotonic()
        await self.platform.say(f"{number} {'and so on ' * 12}{number}", channel=room)
        try:
            await until(lambda: self._is_answered(room, number), TIMEOUT)
        except TimeoutError:
            self.faults.append(f"{self.platform.name} {number}: no answer")
            return
        self.waits.append(time.monotonic() - began)
        holding = [seen for seen in self._replies(room) if number in seen.visible]
        if len(holding) != 1 or holding[0].visible.count(number) != 2:
            self.faults.append(f"{self.platform.name} {number}: {len(holding)} answers")
        _trim(self.platform, room)

    async def keep_asking(self, seconds: float) -> list[float]:
        """Ask in several rooms for this many seconds, in each at least once; return the waits."""
        end = time.monotonic() + seconds
        return await self._ask_while(lambda asked: time.monotonic() < end)

    async def ask_often(self, times: int) -> list[float]:
        """Ask in several rooms, in each so often; return the waits."""
        return await self._ask_while(lambda asked: asked < times)

    async def _ask_while(self, is_more: Callable[[int], bool]) -> list[float]:
        self.waits = []

        async def one(room: str) -> None:
            await self.ask(room)
            asked = 1
            while is_more(asked):
                await asyncio.sleep(_PAUSE)
                await self.ask(room)
                asked += 1

        await asyncio.gather(*(one(f"room{room}") for room in range(_ROOMS)))
        return self.waits

    def _is_answered(self, room: str, number: str) -> bool:
        return any(number in seen.visible and Action.RETRY in seen.actions for seen in self._replies(room))

    def _replies(self, room: str) -> list[Any]:
        return [seen for seen in self.platform.seen(room) if seen.author == "bot"]


def _trim(platform: LoopbackPlatform, room: str) -> None:
    """Drop old messages: reading them again and again would take the driver's time, and be measured as waiting."""
    shown = [seen.id for seen in platform.seen(room)]
    if len(shown) > _KEPT:
        remove_messages(platform, set(shown[: -_KEPT // 2]))


async def flooding(platform: Any, is_over: asyncio.Event) -> None:
    """Write twenty messages a second, every fourth to the bot."""
    for number in itertools.count():
        if is_over.is_set():
            return
        room = f"flood{number % _FLOOD_ROOMS}"
        await platform.say(f"flood {number}", channel=room, mention=number % 4 == 0)
        _trim(platform, room)
        await asyncio.sleep(_FLOOD_PAUSE)


async def down(platform: Any, is_over: asyncio.Event) -> None:
    """Reset half of the calls, and answer the others never."""
    numbers = itertools.count()

    async def drop(request: web.Request) -> web.Response | None:
        if next(numbers) % 2 and request.transport is not None:
            request.transport.abort()
            return web.Response()
        await is_over.wait()
        return web.Response(status=502)

    platform.is_unreachable = True  # Discord's gateway
    await _trouble(platform, drop, is_over)


async def refused(platform: Any, is_over: asyncio.Event) -> None:
    """Refuse the token."""

    async def refuse(request: web.Request) -> web.Response | None:
        match platform.name:
            case "discord":
                return web.json_response({"message": "401: Unauthorized", "code": 0}, status=401)
            case "telegram":
                body = {"ok": False, "error_code": 401, "description": "Unauthorized"}
                return web.json_response(body, status=401)
        return web.json_response({"ok": False, "error": "invalid_auth"})

    platform.known_token = "another"  # Discord's gateway
    await _trouble(platform, refuse, is_over)


async def _trouble(
    platform: Any, guard: Callable[[web.Request], Awaitable[web.Response | None]], is_over: asyncio.Event
) -> None:
    platform.gate.guard = guard
    await platform.disconnect(resumable=False)
    await is_over.wait()
    platform.gate.guard = None
    platform.is_unreachable, platform.known_token = False, TOKEN


TROUBLES: dict[str, Callable[[Any, asyncio.Event], Awaitable[None]]] = {
    "flooding": flooding,
    "down": down,
    "refused": refused,
}


async def rows_of(victim: str, troubles: list[str], seconds: float, scale: Scale) -> AsyncIterator[Row]:
    """Serve all platforms, and cause these troubles on one of them, one after another."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with (
            PROFILES["discord"].open() as discord,
            PROFILES["telegram"].open() as telegram,
            PROFILES["slack"].open() as slack,
        ):
            platforms: dict[str, Any] = {"discord": discord, "telegram": telegram, "slack": slack}
            askers = {name: Asker(platform) for name, platform in platforms.items()}
            others = [asker for name, asker in askers.items() if name != victim]
            async with run_bot(platforms, folder) as bot:
                await bot.connected()
                await asyncio.gather(*(asker.ask("room0") for asker in askers.values()))
                # Slack's budget of edits, 46 a minute, is unused at first: compare times in which it is used up.
                await asyncio.gather(*(asker.keep_asking(seconds) for asker in others))
                found = await asyncio.gather(*(_p95(asker, seconds) for asker in others))
                alone = dict(zip((asker.platform.name for asker in others), found, strict=True))
                for trouble in troubles:
                    yield await _row(bot, trouble, victim, platforms[victim], askers, alone, seconds, scale)
        if errors := [line for line in logged_errors(folder) if "event loop" in line]:
            yield Row(victim, f"slow callbacks {len(errors)}; {errors[0][:300]}", is_kept=False)


async def _row(
    bot: BotProcess,
    trouble: str,
    victim: str,
    platform: Any,
    askers: dict[str, Asker],
    alone: dict[str, float],
    seconds: float,
    scale: Scale,
) -> Row:
    others = [asker for name, asker in askers.items() if name != victim]
    is_over = asyncio.Event()
    causing = asyncio.ensure_future(TROUBLES[trouble](platform, is_over))
    asking = [asyncio.ensure_future(_p95(asker, seconds)) for asker in others]
    beside = dict(zip(alone, [await each for each in asking], strict=True))
    named = {victim} if trouble != "flooding" else set()
    seen = await _readiness(bot, named, TIMEOUT if scale == "short" else 0.0)
    is_over.set()
    await causing
    is_running = bot.process.returncode is None
    is_back = is_running and (trouble == "refused" or await _recovers(askers[victim]))
    faults = [fault for asker in others for fault in asker.faults]
    waits = ", ".join(
        f"{name} {1000 * beside[name]:.0f} ms, before {1000 * alone[name]:.0f} ms ({beside[name] / alone[name]:.2f} times)"
        for name in alone
    )
    told = f"{trouble} for {seconds:.0f} s: p95 of the others' waits: {waits}; "
    told += f"lost or twice {len(faults)}, /readyz names {' '.join(sorted(seen)) or 'none'}, "
    told += "still running" if is_running else "THE BOT ENDED"
    told += "" if trouble == "refused" else ", recovered" if is_back else ", NOT RECOVERED"
    told += "".join(f"; {fault}" for fault in faults[:3])
    is_fast = all(beside[name] <= max(_MOST_TIMES * alone[name], alone[name] + _MOST_MORE) for name in alone)
    return Row(victim, told, not faults and is_running and is_back and seen == named, scale == "short" or is_fast)


async def _p95(asker: Asker, seconds: float) -> float:
    return percentile(await asker.keep_asking(seconds) or [math.inf], 95)  # no answer at all is a fault that is told


async def _recovers(asker: Asker) -> bool:
    faults = len(asker.faults)
    with suppress(TimeoutError):
        async with asyncio.timeout(120.0):
            await asker.ask("room0")
            return len(asker.faults) == faults
    return False


async def _readiness(bot: BotProcess, expected: set[str], patience: float) -> set[str]:
    """Return the platforms that /readyz calls not ready, once they are the expected ones or so many seconds passed."""
    port, end = await bot.operations_port(), time.monotonic() + patience
    async with aiohttp.ClientSession() as http:
        while True:
            try:
                _, parts = await HealthProbe(http, port).ready()
            except aiohttp.ClientError:
                return {"nothing: it does not answer"}
            seen = {name for name in PLATFORMS if parts.get(name, "ok") != "ok"}
            if seen == expected or time.monotonic() >= end:
                return seen
            await asyncio.sleep(0.1)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    if scale == "short":
        victim = random.Random(seed).choice(PLATFORMS)
        async for row in rows_of(victim, ["down"], _SHORT_SECONDS, scale):
            yield row
        return
    for victim in PLATFORMS:
        async for row in rows_of(victim, list(TROUBLES), SECONDS, scale):
            yield row
