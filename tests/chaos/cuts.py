"""R8: the network between bot and platform, cut while answers stream.

A proxy stands between the two, for calls, gateway, web socket and polls alike.  After a
random number of bytes it resets every connection, lets nothing pass for a moment, or
closes one direction.  Ten answers stream at once, and none ends before all the cuts of
its round are made: so each of them is hit in mid-stream, ten times.
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
from tests.harness.fakes.engine import Item, Script
from tests.harness.platform_bench import PROFILES, Bench, open_bench, without_spaces
from tests.harness.servers.telegram import UNCHANGED

NAME = "R8"

# How much faster than the platforms' own time the bot's is.
FACTOR = 20.0
AT_ONCE = 10
# Real seconds between two deltas.
_DELTA_SECONDS = 0.04
# Bytes between two cuts: from the middle of a call to some dozens of calls.
_FEWEST, _MOST = 50, 150_000
# Deltas of an answer after the last cut.
_MORE = 5
_PATIENCE = 60.0


@dataclass
class Losses:
    """What the cuts cost."""

    answers: int = 0
    cuts: int = 0
    torn_calls: int = 0
    wrong: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    left_behind: int = 0
    violations: list[str] = field(default_factory=list)
    judged: set[str] = field(default_factory=set)  # ids of messages

    def __str__(self) -> str:
        told = f"cuts {self.cuts} ({self.torn_calls} within a call's bytes), right {self.right} of {self.answers}"
        told += f", twice {len(self.twice)}, left-over placeholders {self.left_behind}"
        return f"{told}, violations {len(self.violations)}" + "".join(
            f"; {fault}" for fault in [*self.wrong, *self.twice, *self.violations][:3]
        )

    @property
    def right(self) -> int:
        return self.answers - len(self.wrong)

    @property
    def is_kept(self) -> bool:
        return not (self.wrong or self.twice or self.violations)


@dataclass
class Stream:
    """Answers that go on until they are let end; `said` is each one's text."""

    deltas: int  # at the least
    ends: asyncio.Event = field(default_factory=asyncio.Event)
    said: dict[str, str] = field(default_factory=dict)

    def answer(self, request: ChatRequest) -> Script:
        return self._items(asked(request))

    def _items(self, question: str) -> Iterator[Item]:
        ends, more, number = self.ends, _MORE, 0
        while number < self.deltas or more > 0:
            delta = f"{question}.{number} 一些文字 text, "
            self.said[question] = self.said.get(question, "") + delta
            yield delta
            pause = asyncio.Event()
            asyncio.get_running_loop().call_later(_DELTA_SECONDS, pause.set)
            yield pause
            number += 1
            more -= ends.is_set()


async def losses_of(name: str, cuts: int, seed: int, *, deltas: int = 100, at_once: int = AT_ONCE) -> Losses:
    """Cut so often, and look at what stands there in the end."""
    chance = random.Random(seed)
    losses, stream = Losses(), Stream(deltas)
    engine = ScriptedEngine(default=stream.answer, context_length=1_000_000, max_batch_size=at_once)
    wires: list[TcpProxy] = []

    @asynccontextmanager
    async def around(platform: object) -> AsyncIterator[None]:
        async with open_tcp_proxy(platform, seed) as wire:
            wires.append(wire)
            yield

    async with open_bench(name, engine, FastClock(FACTOR), around=around) as bench:
        while losses.cuts < cuts:
            await _round(bench, wires[0], stream, chance, losses, min(at_once, cuts - losses.cuts))
        losses.torn_calls = wires[0].torn
        losses.violations = [each for each in bench.platform.violations if each != UNCHANGED]
    return losses


async def _round(
    bench: Bench, wire: TcpProxy, stream: Stream, chance: random.Random, losses: Losses, count: int
) -> None:
    """As many answers as cuts, all at once, each in a channel of its own.

    The channels are those of every round: what is said for the first time in a place
    that has never known the bot, while it is cut off, is a known gap and no matter of R8.
    """
    stream.ends = asyncio.Event()
    questions = {f"q{losses.answers + number}": f"room {number}" for number in range(count)}
    asking = [asyncio.create_task(_ask(bench, question, room)) for question, room in questions.items()]
    await bench.platform.until(lambda: all(question in stream.said for question in questions), _PATIENCE)
    for _ in range(count):
        await wire.cut(chance.choice(CUTS), int(chance.triangular(_FEWEST, _MOST, _FEWEST)))
        losses.cuts += 1
    stream.ends.set()
    for (question, room), answer in zip(questions.items(), asking, strict=True):
        losses.answers += 1
        _judge(bench, question, room, await answer, stream.said[question], losses)


async def _ask(bench: Bench, question: str, room: str) -> Exchange | None:
    try:
        return await bench.ask(question, room, seconds=_PATIENCE)
    except TimeoutError:
        return None


def _judge(bench: Bench, question: str, room: str, exchange: Exchange | None, said: str, losses: Losses) -> None:
    if exchange is None or exchange.status is not Status.DELIVERED:
        losses.wrong.append(f"{question} was not delivered")
        return
    replies = [seen for seen in bench.replies(room) if seen.id not in losses.judged]
    losses.judged.update(seen.id for seen in replies)
    shown = {seen.id: seen.markdown for seen in replies}
    text = "".join(shown.get(part, "") for part in exchange.parts)
    if without_spaces(text) != without_spaces(said):
        losses.wrong.append(f"{question} shows {len(text)} characters of {len(said)}")
    others = [seen for seen in replies if seen.id not in exchange.parts]
    losses.left_behind += sum(seen.markdown == "…" for seen in others)
    # Telegram alone has no way to find a message whose id was lost on the way.
    if spoken := [seen for seen in others if seen.markdown != "…" or bench.platform.name != "telegram"]:
        losses.twice.append(f"{question} has {len(spoken)} messages too many")


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        losses = await (losses_of(name, 100, seed) if scale == "full" else losses_of(name, 5, seed, deltas=30))
        yield Row(name, str(losses), losses.is_kept)
