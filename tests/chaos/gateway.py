"""R11: the connection that events come by, dropped again and again while people speak.

On Discord the gateway, half of the times so that it cannot be resumed; on Slack the web
socket, half of the times so that what is said meanwhile is not sent again; on Telegram the
poll.  People speak before, at and after each drop, in channels, threads and alone with
the bot.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bot.domain import ChatRequest
from tests.adapters.lossless_runs import asked
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.platform_bench import PROFILES, Bench, open_bench

NAME = "R11"

FACTOR = 100.0
_PATIENCE = 30.0
_SETTLING = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody speaks: a channel, a thread of it, or alone with the bot."""

    channel: str
    thread: str | None = None
    is_direct: bool = False


@dataclass
class Attendance:
    """What was said, and what was heard of it."""

    drops: Counter[str] = field(default_factory=Counter)
    said: dict[str, Place] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.drops.items()))
        counted = f"missed {len(self.missed)}, twice {len(self.twice)}, violations {len(self.violations)}"
        faults = [*self.missed, *self.twice, *self.violations][:3]
        told = f"drops {self.drops.total()} ({kinds}), messages {len(self.said)}: {counted}"
        return told + "".join(f"; {fault}" for fault in faults)

    @property
    def is_kept(self) -> bool:
        return not (self.missed or self.twice or self.violations)


async def attendance_of(name: str, drops: int, seed: int) -> Attendance:
    """Drop the connection so often, and count who was heard."""
    attendance, chance = Attendance(), random.Random(seed)

    def answer(request: ChatRequest) -> str:
        return f"answer to {asked(request)}."

    engine = ScriptedEngine(default=answer, context_length=1_000_000, max_batch_size=64, max_waiting=10_000)
    async with open_bench(name, engine, FastClock(FACTOR), around=_today) as bench:
        places = await _known_places(bench, attendance)
        for number in range(drops):
            await _drop(bench, places, attendance, chance, is_resumable=number % 2 == 0)
        settled = [bench.intake.settled(question) for question in attendance.said]
        with suppress(TimeoutError):  # what is not settled by then is counted as missed
            async with asyncio.timeout(_SETTLING):
                await asyncio.gather(*settled)
        _count(bench, attendance)
        # Slack sends what came while its channel was being read again, and here that ends after
        # 3 s; whether it was heard is counted above.
        attendance.violations = [each for each in bench.platform.violations if "never acknowledged" not in each]
    return attendance


@asynccontextmanager
async def _today(platform: Any) -> AsyncIterator[None]:
    """What is asked now is not too old to be answered, and Slack sends again when it does."""
    match platform.name:
        case "telegram":
            platform.now = datetime.now(UTC)
        case "slack":
            platform.retries = (0.0, 60.0 / FACTOR, 300.0 / FACTOR)
    yield


async def _known_places(bench: Bench, attendance: Attendance) -> list[Place]:
    """Speak to the bot once wherever people will: it knows where to look for what it missed."""
    places = [Place("general"), Place("random"), Place("Mei", is_direct=True), Place("Ann", is_direct=True)]
    roots = [await _say(bench, place, attendance) for place in places]
    # On Slack a thread hangs on a message; elsewhere it has a name.
    name = roots[0] if bench.platform.name == "slack" else "a thread"
    places.append(Place("general", thread=name))
    await _say(bench, places[-1], attendance)
    settled = [bench.intake.settled(question) for question in attendance.said]
    async with asyncio.timeout(_PATIENCE):
        await asyncio.gather(*settled)
    return places


async def _drop(
    bench: Bench, places: list[Place], attendance: Attendance, chance: random.Random, *, is_resumable: bool
) -> None:
    async def somebody_speaks(most: int) -> None:
        for _ in range(chance.randrange(most + 1)):
            await _say(bench, chance.choice(places), attendance)

    platform, connected = bench.platform, bench.profile.is_connected
    before = _connections(platform)
    await somebody_speaks(2)
    # The bot may be anywhere with what it heard: some of it is on its way, some is kept, some is answered.
    for _ in range(chance.randrange(40)):
        await asyncio.sleep(0)
    dropping = asyncio.create_task(platform.disconnect(resumable=is_resumable))
    await somebody_speaks(2)
    await dropping
    attendance.drops["resumable" if is_resumable else "not resumable"] += 1
    await somebody_speaks(2)
    if chance.random() < 0.8:  # or the next drop comes while this one is mended
        with suppress(TimeoutError):
            await platform.until(lambda: _connections(platform) > before and connected(platform), _PATIENCE)
        await somebody_speaks(1)


def _connections(platform: Any) -> int:
    """How many there were; it grows with each new one."""
    match platform.name:
        case "discord":
            return len(platform.identified) + int(platform.resumed)
        case "slack":
            return int(platform.links)
        case _:
            return int(platform.polls)


async def _say(bench: Bench, place: Place, attendance: Attendance) -> str:
    question = f"q{len(attendance.said)}e"
    attendance.said[question] = place
    if place.is_direct:
        return await bench.platform.say(question, author=place.channel, direct=True)
    # In a thread in which it was spoken to, the bot answers without being called; the first time it is.
    is_known = any(place == other for said, other in attendance.said.items() if said != question)
    return await bench.platform.say(
        question, channel=place.channel, thread=place.thread, mention=place.thread is None or not is_known
    )


def _count(bench: Bench, attendance: Attendance) -> None:
    replies: dict[str, str] = {}
    for place in dict.fromkeys(attendance.said.values()):
        for seen in bench.platform.seen(place.channel, place.thread):
            if seen.author == "bot":
                replies[seen.id] = seen.markdown
    answers = Counter(text for text in replies.values())
    for question, place in attendance.said.items():
        count = sum(times for text, times in answers.items() if f"answer to {question}." in text)
        if count == 0:
            attendance.missed.append(f"{question} in {place}")
        elif count > 1:
            attendance.twice.append(f"{question} in {place}")


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        attendance = await attendance_of(name, 100 if scale == "full" else 6, seed)
        yield Row(name, str(attendance), attendance.is_kept)
