"""R17: one user who floods the bot with questions beside fifty others.

The real store, limits, conversations and serving engine with a model whose steps take the
time of a manual clock: a step waits until all users have acted, so the counts do not depend
on the machine.  Users ask, read and think; the spammer asks twice a second for long
answers.  The others' waits are compared with the same minutes without the spammer.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from bot.config.schema import ConversationSection, LimitsSection
from bot.domain import (
    Author,
    ChannelKey,
    ChatMessage,
    ChatRequest,
    Delta,
    EngineEvent,
    EngineInfo,
    EngineLoad,
    Exchange,
    Finished,
    Tokens,
)
from bot.engine.serving.base import Batch
from bot.engine.serving.engine import ServingEngine
from tests.chaos.figure import Row, Scale
from tests.harness.harness import Harness, make_harness
from tests.harness.messages import a_message
from tests.harness.scripted_model import ScriptedModel, loaded

NAME = "R17"

PEOPLE = 50
CHANNELS = [ChannelKey("discord", f"c{number}") for number in range(25)]
SLOTS = 8
# Seconds, as measured with int4 weights on a GPU: a decode step of eight sequences takes 50 ms.
DECODE, PREFILL = 0.05, 0.1
LENGTH, LONG = 60, 200  # tokens of an answer, of the others and of the spammer
THINKING = 20.0

Where = Callable[[int], ChannelKey]


@dataclass(eq=False)
class Question:
    """A question and its progress."""

    text: str
    exchange: Exchange | None = None
    is_done: bool = False


@dataclass
class Waits:
    """Seconds to the first text of answered questions."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0

    def p(self, percent: int) -> float:
        return sorted(self.seconds)[(len(self.seconds) - 1) * percent // 100]


class TrackedEngine:
    """The serving engine, and the questions it holds."""

    def __init__(self, engine: ServingEngine) -> None:
        self._engine = engine
        self.inside: set[str] = set()

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def load(self) -> EngineLoad:
        return self._engine.load

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return self._engine.count_tokens(messages)

    def tokenize(self, text: str) -> Tokens:
        return self._engine.tokenize(text)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        text = request.messages[-1].content
        self.inside.add(text)
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    self.inside.discard(text)
                yield event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The caller of `waits_of` closes the inner engine."""


class World:
    """All users, and the time that passes for them."""

    def __init__(self, harness: Harness, engine: TrackedEngine, seconds: float) -> None:
        self.harness = harness
        self.clock = harness.clock
        self._engine = engine
        self._end = seconds
        self._questions: set[Question] = set()
        self._numbers = iter(range(1_000_000))

    async def person(self, number: int, chance: random.Random, waits: Waits) -> None:
        author, channel = Author("discord", f"u{number}", f"Person {number}"), CHANNELS[number % len(CHANNELS)]
        while True:
            await self.clock.sleep(chance.expovariate(1 / THINKING))
            if self.clock.now() >= self._end:
                return
            await self.ask(author, channel, LENGTH, waits)

    async def spammer(self, where: Where, waits: Waits) -> None:
        author = Author("discord", "spammer", "Spammer")
        async with asyncio.TaskGroup() as tasks:
            number = 0
            while self.clock.now() < self._end:
                tasks.create_task(self.ask(author, where(number), LONG, waits))
                number += 1
                await self.clock.sleep(0.5)

    async def ask(self, author: Author, channel: ChannelKey, length: int, waits: Waits) -> None:
        asked = self.clock.now()
        question = Question(f"{next(self._numbers)} ".ljust(length - 1, "."))
        self._questions.add(question)
        exchange = question.exchange = await self.harness.accept(
            a_message(question.text, channel=channel, author=author)
        )
        is_answered = False
        async with self.harness.intake.answers.stream(exchange) as events:
            async for event in events:
                if isinstance(event, Delta) and not is_answered:
                    is_answered = True
                    waits.seconds.append(self.clock.now() - asked)
        waits.refused += not is_answered
        await self.harness.exchanges.complete(exchange)
        self._questions.discard(question)

    async def pass_time(self, seconds: float) -> None:
        """Advance the clock, and let all users act meanwhile."""
        end = self.clock.now() + seconds
        await self._rest()
        while (wake := self.clock.next_wake) is not None and wake <= end:
            await self.clock.advance(wake - self.clock.now())
            await self._rest()
        await self.clock.advance(end - self.clock.now())

    async def pass_idle_time(self, everybody: "asyncio.Future[None]") -> None:
        """Advance the clock while the model is idle, until all users are done."""
        while not everybody.done():
            await asyncio.sleep(0.0002)
            if not self._engine.load.running and self._all_rest():
                wake = self.clock.next_wake
                if wake is not None:
                    await self.clock.advance(wake - self.clock.now())

    async def _rest(self) -> None:
        await self.clock.settle()
        while not self._all_rest():
            # Database threads are working: the event loop has no event for their end.
            await asyncio.to_thread(time.sleep, 0.0002)

    def _all_rest(self) -> bool:
        return all(map(self._rests, self._questions))

    def _rests(self, question: Question) -> bool:
        """Return whether the engine holds the question, or it waits for its position in the channel."""
        if question.exchange is None:
            return False
        line = self.harness.exchanges.queues.in_channel(question.exchange.message.channel)
        return question.text in self._engine.inside or question.exchange in line[1:]


async def waits_of(seconds: float, seed: int, where: Where | None) -> tuple[Waits, Waits]:
    """Run all users for `seconds`; return the waits of the others and of the spammer."""
    home = asyncio.get_running_loop()
    model = ScriptedModel(slots=SLOTS, context_length=1024)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        async with ServingEngine(lambda progress: loaded(model), max_waiting=64) as serving:
            engine = TrackedEngine(serving)
            limits = LimitsSection(answer_seconds=100_000)
            talk = ConversationSection(name_speakers=False, history_turns=0)
            async with make_harness(Path(folder), engine, conversation=talk, limits=limits) as harness:  # type: ignore[arg-type]  # an Engine
                world = World(harness, engine, seconds)

                def before(batch: Batch) -> None:
                    cost = PREFILL if batch.is_prefill else DECODE
                    asyncio.run_coroutine_threadsafe(world.pass_time(cost), home).result(timeout=600)

                model.before = before
                others, one = Waits(), Waits()
                chances = [random.Random(f"{seed} {number}") for number in range(PEOPLE)]
                talking = [world.person(number, chance, others) for number, chance in enumerate(chances)]
                if where is not None:
                    talking.append(world.spammer(where, one))
                everybody = asyncio.ensure_future(_all(talking))
                await world.pass_idle_time(everybody)
                await everybody
    return others, one


async def _all(talking: Sequence[object]) -> None:
    await asyncio.gather(*talking)  # type: ignore[call-overload]  # coroutines


PLACES: dict[str, Where] = {
    "own channel": lambda number: ChannelKey("discord", "spam"),
    "ten channels": lambda number: ChannelKey("discord", f"spam{number % 10}"),
    "threads": lambda number: ChannelKey("discord", "spam", str(number)),
    "everywhere": lambda number: CHANNELS[number % len(CHANNELS)],
}


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    seconds = 120.0 if scale == "full" else 10.0
    alone, _ = await waits_of(seconds, seed, None)
    for place, where in PLACES.items() if scale == "full" else [("everywhere", PLACES["everywhere"])]:
        others, one = await waits_of(seconds, seed, where)
        result = (
            f"p95 wait of {PEOPLE} others {others.p(95):.2f} s, without the one {alone.p(95):.2f} s "
            f"(p50 {others.p(50):.2f} s and {alone.p(50):.2f} s, {len(others.seconds)} and {len(alone.seconds)} answers); "
            f"refused: {others.refused} of theirs, {one.refused} of the one's {one.refused + len(one.seconds)}"
        )
        # The short form has too few waits for a percentile.
        is_fair = scale == "short" or others.p(95) <= 2 * alone.p(95)
        yield Row(place, result, is_fair and one.refused > 0 and not others.refused)
