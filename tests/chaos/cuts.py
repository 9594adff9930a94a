"""R8: the network between bot and platform, cut while answers stream.

A TCP proxy carries calls, gateway, web socket and polls.  After a random number of bytes
it resets every connection, blocks for a moment, or closes one direction.  Ten answers
stream at once and end after the ten cuts of their round, so each is hit ten times.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bot.domain import ChatRequest, Exchange, Status
from tests.adapters.lossless_runs import asked
from tests.chaos.figure import Row, Scale
from tests.chaos.tcp_proxy import CUTS, TcpProxy, open_tcp_proxy
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.fakes.engine import AnswerScript, Item
from tests.harness.platform_bench import PROFILES, Bench, open_bench, without_spaces
from tests.harness.servers.telegram import UNCHANGED

NAME = "R8"

# Speed of the bot's clock.
FACTOR = 20.0
CONCURRENT = 10
# Real seconds between two deltas.
_DELTA_SECONDS = 0.04
# Bytes between two cuts: from a part of a call to dozens of calls.
_FEWEST, _MOST = 50, 150_000
# Deltas of an answer after the last cut.
_MORE = 5
_TIMEOUT = 600.0


@dataclass
class CutResult:
    """Counts after all cuts."""

    answers: int = 0
    cuts: int = 0
    torn_calls: int = 0
    wrong: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    left_behind: int = 0
    violations: list[str] = field(default_factory=list)
    judged: set[str] = field(default_factory=set)  # message ids

    def __str__(self) -> str:
        text = f"cuts {self.cuts} ({self.torn_calls} within a call's bytes), right {self.right} of {self.answers}"
        text += f", twice {len(self.twice)}, left-over placeholders {self.left_behind}"
        return f"{text}, violations {len(self.violations)}" + "".join(
            f"; {fault}" for fault in [*self.wrong, *self.twice, *self.violations][:3]
        )

    @property
    def right(self) -> int:
        return self.answers - len(self.wrong)

    @property
    def is_kept(self) -> bool:
        return not (self.wrong or self.twice or self.violations)


@dataclass
class EndlessAnswers:
    """Answers that continue until `ends` is set; `texts` by question."""

    deltas: int  # the minimum
    ends: asyncio.Event = field(default_factory=asyncio.Event)
    texts: dict[str, str] = field(default_factory=dict)

    def answer(self, request: ChatRequest) -> AnswerScript:
        return self._items(asked(request))

    def _items(self, question: str) -> Iterator[Item]:
        ends, more, number = self.ends, _MORE, 0
        while number < self.deltas or more > 0:
            delta = f"{question}.{number} 一些文字 text, "
            self.texts[question] = self.texts.get(question, "") + delta
            yield delta
            pause = asyncio.Event()
            asyncio.get_running_loop().call_later(_DELTA_SECONDS, pause.set)
            yield pause
            number += 1
            more -= ends.is_set()


async def cut_connections(
    name: str, cuts: int, seed: int, *, deltas: int = 100, at_once: int = CONCURRENT
) -> CutResult:
    """Cut the connections `cuts` times while answers stream, then check the messages."""
    chance = random.Random(seed)
    result, stream = CutResult(), EndlessAnswers(deltas)
    engine = ScriptedEngine(default=stream.answer, context_length=1_000_000, max_batch_size=at_once)
    proxies: list[TcpProxy] = []

    @asynccontextmanager
    async def around(platform: object) -> AsyncIterator[None]:
        async with open_tcp_proxy(platform, seed) as proxy:
            proxies.append(proxy)
            yield

    async with open_bench(name, engine, FastClock(FACTOR), around=around) as bench:
        while result.cuts < cuts:
            await _round(bench, proxies[0], stream, chance, result, min(at_once, cuts - result.cuts))
        result.torn_calls = proxies[0].torn
        result.violations = [each for each in bench.platform.violations if each != UNCHANGED]
    return result


async def _round(
    bench: Bench, proxy: TcpProxy, stream: EndlessAnswers, chance: random.Random, result: CutResult, count: int
) -> None:
    """Stream `count` answers concurrently, each in its own channel, and cut as often.

    Every round uses the same channels: a first message in a new channel during an outage
    is a known gap that R8 does not measure.
    """
    stream.ends = asyncio.Event()
    questions = {f"q{result.answers + number}": f"room {number}" for number in range(count)}
    asking = [asyncio.create_task(_ask(bench, question, room)) for question, room in questions.items()]
    await bench.platform.until(lambda: all(question in stream.texts for question in questions), _TIMEOUT)
    for _ in range(count):
        await proxy.cut(chance.choice(CUTS), int(chance.triangular(_FEWEST, _MOST, _FEWEST)))
        result.cuts += 1
    stream.ends.set()
    for (question, room), answer in zip(questions.items(), asking, strict=True):
        result.answers += 1
        _judge(bench, question, room, await answer, stream.texts[question], result)


async def _ask(bench: Bench, question: str, room: str) -> Exchange | None:
    try:
        return await bench.ask(question, room, seconds=_TIMEOUT)
    except TimeoutError:
        return None


def _judge(bench: Bench, question: str, room: str, exchange: Exchange | None, said: str, result: CutResult) -> None:
    if exchange is None or exchange.status is not Status.DELIVERED:
        result.wrong.append(f"{question} was not delivered")
        return
    replies = [seen for seen in bench.replies(room) if seen.id not in result.judged]
    result.judged.update(seen.id for seen in replies)
    shown = {seen.id: seen.markdown for seen in replies}
    text = "".join(shown.get(part, "") for part in exchange.parts)
    if without_spaces(text) != without_spaces(said):
        result.wrong.append(f"{question} shows {len(text)} characters of {len(said)}")
    others = [seen for seen in replies if seen.id not in exchange.parts]
    result.left_behind += sum(seen.markdown == "…" for seen in others)
    if others:
        result.twice.append(f"{question} has {len(others)} messages too many")


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        result = await (
            cut_connections(name, 100, seed) if scale == "full" else cut_connections(name, 5, seed, deltas=30)
        )
        yield Row(name, str(result), result.is_kept)
