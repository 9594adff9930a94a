"""R11: the connection that delivers events, dropped repeatedly while users write.

The gateway on Discord, the web socket on Slack, the poll on Telegram.  Every second drop
loses the events that follow it: Discord's session cannot be resumed, Slack does not
redeliver.  Users write before, during and after each drop, in channels, threads and DMs.
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
_TIMEOUT = 600.0  # seconds without progress


@dataclass(frozen=True, slots=True)
class Place:
    """A channel, a thread in it, or a direct channel."""

    channel: str
    thread: str | None = None
    is_direct: bool = False


@dataclass
class DropResult:
    """Messages sent, and the ones without exactly one answer."""

    drops: Counter[str] = field(default_factory=Counter)
    sent: dict[str, Place] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.drops.items()))
        counted = f"missed {len(self.missed)}, twice {len(self.twice)}, violations {len(self.violations)}"
        faults = [*self.missed, *self.twice, *self.violations][:3]
        text = f"drops {self.drops.total()} ({kinds}), messages {len(self.sent)}: {counted}"
        return text + "".join(f"; {fault}" for fault in faults)

    @property
    def is_kept(self) -> bool:
        return not (self.missed or self.twice or self.violations)


async def drop_connections(name: str, drops: int, seed: int) -> DropResult:
    """Drop the connection `drops` times, then count the answers."""
    result, chance = DropResult(), random.Random(seed)

    def answer(request: ChatRequest) -> str:
        return f"answer to {asked(request)}."

    engine = ScriptedEngine(default=answer, context_length=1_000_000, max_batch_size=64, max_waiting=10_000)
    async with open_bench(name, engine, FastClock(FACTOR), around=today) as bench:
        places = await _known_places(bench, result)
        for number in range(drops):
            await _drop(bench, places, result, chance, is_resumable=number % 2 == 0)
        unfinished = {bench.exchanges.finished(question) for question in result.sent}
        while unfinished:
            done, unfinished = await asyncio.wait(unfinished, timeout=_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break  # without progress the rest is counted as missed
        _count(bench, result)
        # Slack redelivers events that arrive during a backfill, here for 3 s only; missed ones are
        # counted above.
        result.violations = [each for each in bench.platform.violations if "never acknowledged" not in each]
    return result


@asynccontextmanager
async def today(platform: Any) -> AsyncIterator[None]:
    """Set the current time, so that questions do not expire, and scale Slack's redelivery."""
    match platform.name:
        case "telegram":
            platform.now = datetime.now(UTC)
        case "slack":
            platform.retries = (0.0, 60.0 / FACTOR, 300.0 / FACTOR)
    yield


async def _known_places(bench: Bench, result: DropResult) -> list[Place]:
    """Mention the bot once in each place, since a backfill reads known places only."""
    places = [Place("general"), Place("random"), Place("Mei", is_direct=True), Place("Ann", is_direct=True)]
    roots = [await _say(bench, place, result) for place in places]
    # On Slack a thread's id is its first message; elsewhere it has a name.
    name = roots[0] if bench.platform.name == "slack" else "a thread"
    places.append(Place("general", thread=name))
    await _say(bench, places[-1], result)
    finished = [bench.exchanges.finished(question) for question in result.sent]
    async with asyncio.timeout(_TIMEOUT):
        await asyncio.gather(*finished)
    return places


async def _drop(
    bench: Bench, places: list[Place], result: DropResult, chance: random.Random, *, is_resumable: bool
) -> None:
    async def write(most: int) -> None:
        for _ in range(chance.randrange(most + 1)):
            await _say(bench, chance.choice(places), result)

    platform, connected = bench.platform, bench.profile.is_connected
    before = connections(platform)
    await write(2)
    # Let the bot reach a random point: received, stored, answering.
    for _ in range(chance.randrange(40)):
        await asyncio.sleep(0)
    dropping = asyncio.create_task(platform.disconnect(resumable=is_resumable))
    await write(2)
    await dropping
    result.drops["resumable" if is_resumable else "not resumable"] += 1
    await write(2)
    if chance.random() < 0.8:  # else the next drop comes during the reconnect
        with suppress(TimeoutError):
            await platform.until(lambda: connections(platform) > before and connected(platform), _TIMEOUT)
        await write(1)


def connections(platform: Any) -> int:
    """Return a number that grows with each connection."""
    match platform.name:
        case "discord":
            return len(platform.identified) + int(platform.resumed)
        case "slack":
            return int(platform.links)
        case _:
            return int(platform.polls)


async def _say(bench: Bench, place: Place, result: DropResult) -> str:
    question = f"q{len(result.sent)}e"
    result.sent[question] = place
    if place.is_direct:
        return await bench.platform.say(question, author=place.channel, direct=True)
    # In a thread only the first message needs a mention.
    is_known = any(place == other for sent, other in result.sent.items() if sent != question)
    return await bench.platform.say(
        question, channel=place.channel, thread=place.thread, mention=place.thread is None or not is_known
    )


def _count(bench: Bench, result: DropResult) -> None:
    replies: dict[str, str] = {}
    for place in dict.fromkeys(result.sent.values()):
        for seen in bench.platform.seen(place.channel, place.thread):
            if seen.author == "bot":
                replies[seen.id] = seen.markdown
    answers = Counter(text for text in replies.values())
    for question, place in result.sent.items():
        count = sum(times for text, times in answers.items() if f"answer to {question}." in text)
        if count == 0:
            result.missed.append(f"{question} in {place}")
        elif count > 1:
            result.twice.append(f"{question} in {place}")


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        result = await drop_connections(name, 100 if scale == "full" else 6, seed)
        yield Row(name, str(result), result.is_kept)
