"""The runs of `make lossless`: answers while every fourth call is refused, and times where none is."""

import asyncio
import bisect
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from bot.delivery.markdown.blocks import BlockIndex, is_balanced, visible_text
from bot.delivery.markdown.split import Chunk, join, split
from bot.domain import Action, ChatRequest, Exchange, Status
from tests.adapters.lossless_cases import Case
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.fakes.engine import Item, Script
from tests.harness.platform import Fault, Seen
from tests.harness.platform_bench import PROFILES, Bench, Profile, open_bench, without_spaces

# How much faster than the platforms' own time; Retry-After and intervals are scaled with it.
FACTOR = 50.0
# Conversations under way at once while calls are refused.
_AT_ONCE = 24
# Real seconds between two deltas of an answer.
_DELTA_SECONDS = 0.005

_KINDS: tuple[Literal["429", "500", "timeout", "lost"], ...] = ("429", "timeout", "500", "lost")
Progress = Callable[[int], None]


@dataclass(slots=True)
class Refusals:
    """A Script that refuses every fourth call, each time in another way."""

    chance: random.Random
    calls: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def __call__(self, number: int, name: str) -> Fault | None:
        self.calls += 1
        if number % 4 != 3:
            return None
        kind = _KINDS[number // 4 % len(_KINDS)]
        self.refused[kind] += 1
        # R9 of the reliability figures: from 1 to 30 seconds.
        return Fault(kind, self.chance.uniform(1, 30) if kind == "429" else 0.0)


@dataclass(slots=True)
class Delivered:
    """What became of the answers; `faults` are sentences by the number of the case."""

    refusals: Refusals
    cases: int
    characters: int = 0
    messages: int = 0
    left_behind: int = 0  # "…" whose id we never heard
    faults: dict[int, list[str]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def without(self, kind: str) -> int:
        """How many cases do not have this fault."""
        return self.cases - sum(any(fault.startswith(kind) for fault in faults) for faults in self.faults.values())


# How each kind of fault begins.
NOT_EXACT, NOT_VISIBLE, NOT_BALANCED, NOT_LANDED, TWICE = (
    "characters:",
    "visible text:",
    "fences:",
    "last edit:",
    "said twice:",
)


async def deliver(name: str, cases: Sequence[Case], seed: int, progress: Progress = lambda done: None) -> Delivered:
    """Have each answer given in a conversation of its own while every fourth call is refused."""
    answers = {question(case): case for case in cases}
    engine = ScriptedEngine(
        default=lambda request: flowing(answers[asked(request)].deltas),
        context_length=1_000_000,
        max_batch_size=_AT_ONCE,
        max_waiting=len(cases) + 1,
    )
    result = Delivered(Refusals(random.Random(seed)), cases=len(cases))
    arrived: list[Arrived | None] = []
    began = time.monotonic()
    async with open_bench(name, engine, FastClock(FACTOR)) as bench:
        bench.platform.script = result.refusals
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(case: Case) -> Arrived | None:
            async with room:
                found = await _arrived(bench, case)
            arrived.append(found)
            progress(len(arrived))
            return found

        async with asyncio.TaskGroup() as tasks:
            under_way = [tasks.create_task(one(case)) for case in cases]
        result.violations = list(bench.platform.violations)
    result.seconds = time.monotonic() - began
    # Only now: reading takes its time, and the event loop is the bot's.
    for case, task in zip(cases, under_way, strict=True):
        result.characters += len(case.answer)
        found = task.result()
        faults = list(_faults(name, case, found)) if found else [f"{NOT_LANDED} it was not delivered in time"]
        if faults:
            result.faults[case.number] = faults
        if found:
            result.messages += len(found.parts)
            result.left_behind += len(found.others)
    return result


@dataclass(frozen=True, slots=True)
class Arrived:
    """The messages of a reply, and those of the bot's that belong to none."""

    exchange: Exchange
    parts: list[Seen]
    others: list[Seen]


async def _arrived(bench: Bench, case: Case) -> Arrived | None:
    is_direct = case.number % 3 == 2
    channel = f"Mei{case.number}" if is_direct else f"room{case.number}"
    try:
        exchange = await bench.ask(question(case), channel, direct=is_direct)
    except TimeoutError:
        return None
    replies = bench.replies(channel)
    shown = {seen.id: seen for seen in replies}
    parts = [shown[id] for id in exchange.parts if id in shown]
    return Arrived(exchange, parts, [seen for seen in replies if seen.id not in exchange.parts])


def _faults(name: str, case: Case, found: Arrived) -> Iterator[str]:
    profile, parts = PROFILES[name], found.parts
    pieces = split(case.answer, profile.format)
    if [_standing(profile, piece) for piece in pieces if _standing(profile, piece)] != _texts(profile, parts):
        # A text that grew may have been cut elsewhere, where a longer one takes less room.
        pieces = cut_like(parts, case.answer, profile)
    if join(pieces) != case.answer:
        yield f"{NOT_EXACT} {len(parts)} messages that are not the answer, cut"
    seen_text = "".join(without_spaces(seen.visible) for seen in parts).replace(_JOINER, "")
    wanted_text = visible_text(case.answer).replace(_JOINER, "")
    if seen_text != wanted_text:
        difference = _first_difference(seen_text, wanted_text)
        yield f"{NOT_VISIBLE} {len(seen_text)} characters where {len(wanted_text)} are meant: {difference}"
    sent = [piece.text for piece in pieces]
    for text in [*sent, *(seen.markdown for seen in parts if profile.takes_markdown)]:
        if not is_balanced(text):
            yield f"{NOT_BALANCED} {text[-60:]!r}"
    if found.exchange.status is not Status.DELIVERED or not parts:
        yield f"{NOT_LANDED} the exchange is {found.exchange.status}"
    if [seen.actions for seen in parts] != [frozenset()] * (len(parts) - 1) + [frozenset({Action.RETRY})]:
        yield f"{NOT_LANDED} the buttons are those of an answer that still grows"
    for seen in found.others:
        if seen.markdown != "…" or name != "telegram":
            yield f"{TWICE} {seen.markdown[:60]!r}"


def cut_like(parts: Sequence[Seen], answer: str, profile: Profile) -> list[Chunk]:
    """Cut the answer where these messages do; empty where they are not its pieces."""
    return next(_cuts(_texts(profile, parts), "", answer, profile, set()), [])


def _cuts(
    standing: Sequence[str], opening: str, rest: str, profile: Profile, tried: set[tuple[int, str]]
) -> Iterator[list[Chunk]]:
    if not standing:
        if not rest.strip():
            yield [Chunk(rest)] if rest else []
        return
    if (place := (len(rest.lstrip()), opening)) in tried:
        return
    tried.add(place)
    window = rest[: 2 * profile.format.limit]
    index = BlockIndex(opening + window)

    def piece(at: int) -> Chunk:
        return Chunk(window[:at], opening, index.closing_at(len(opening) + at))

    beginning = _standing(profile, Chunk(window[:_BEGINNING], opening))
    if not all(one == other for one, other in zip(_letters(beginning), _letters(standing[0]), strict=False)):
        return
    ends = range(1, len(window) + 1)
    near = bisect.bisect_left(ends, len(standing[0]), key=lambda at: len(_standing(profile, piece(at))))
    fitting = [at for at in ends[max(0, near - _NEAR) : near + _NEAR] if _standing(profile, piece(at)) == standing[0]]
    # Whitespace and marks make many places alike; a cut stands at the begin of a line where it can.
    for at in sorted(fitting, key=lambda at: (not index.is_line_start(len(opening) + at), -at)):
        following = index.opening_at(len(opening) + at, room=profile.format.limit // 2)
        for others in _cuts(standing[1:], following, rest[at:], profile, tried):
            yield [piece(at), *others]


def _letters(text: str) -> list[str]:
    """The first few: enough to know a message by, and few enough to leave marks aside that go on for long."""
    return [character for character in text if character.isalnum()][:12]


# Characters of Markdown that hold so many letters, but for answers that are nearly all marks.
_BEGINNING = 400
# How far from the place that a message's length tells its end is looked for.
_NEAR = 100


def _standing(profile: Profile, piece: Chunk) -> str:
    """What stands on the platform of a piece; nothing of one that nobody would see."""
    rendered = profile.format.render(piece.text)
    return _compared(profile, profile.written(rendered)) if rendered.text.strip() else ""


def _texts(profile: Profile, parts: Sequence[Seen]) -> list[str]:
    return [_compared(profile, seen.markdown) for seen in parts]


def _compared(profile: Profile, text: str) -> str:
    """To the character where the Markdown itself is sent; elsewhere whitespace is the platform's."""
    return text if profile.takes_markdown else without_spaces(text)


# Stands behind the "<" of what Slack would read as a ping: the one neutralisation that adds a sign.
_JOINER = "\u2060"


def _first_difference(a: str, b: str) -> str:
    at = next((at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    return f"at {at} {a[at : at + 20]!r}, not {b[at : at + 20]!r}"


def question(case: Case) -> str:
    return f"case {case.number}"


def asked(request: ChatRequest) -> str:
    """The question without the name of who asked it."""
    return request.messages[-1].content.rpartition(": ")[2]


def flowing(deltas: Iterable[str], seconds: float = _DELTA_SECONDS) -> Script:
    """Deltas with time between them, as a model's come."""

    def items() -> Iterator[Item]:
        for delta in deltas:
            yield delta
            pause = asyncio.Event()
            asyncio.get_running_loop().call_later(seconds, pause.set)
            yield pause

    return items()


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of real time, as they were measured."""

    values: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def placeholders(name: str, count: int = 100) -> Times:
    """From a mention to the first message of the reply, each time in a quiet channel."""
    took = []
    async with open_bench(name, ScriptedEngine(context_length=1_000_000), FastClock(FACTOR)) as bench:
        for number in range(count):
            channel = f"room{number}"
            began = time.monotonic()
            answering = asyncio.create_task(bench.ask(f"question {number}", channel))
            await bench.platform.until(lambda channel=channel: bool(bench.replies(channel)))  # type: ignore[misc]
            took.append(time.monotonic() - began)
            await answering
    return Times(tuple(took))


async def ages(name: str, count: int = 5, deltas: int = 600, factor: float = 1.0) -> Times:
    """How old each delta of 20 characters was when it could be read, in the bot's seconds.

    The answers flow at once, each in a channel of its own, twenty deltas in a second: at
    the platform's own intervals, for the calls take the same real time at any.
    """
    took: list[float] = []
    said: dict[str, list[float]] = {f"question {number}": [] for number in range(count)}

    def answer(request: ChatRequest) -> Script:
        times = said[asked(request)]

        def items() -> Iterator[Item]:
            for item in flowing([f"{number:05} 一些文字 text " for number in range(deltas)], 0.05 / factor):
                if isinstance(item, str):
                    times.append(time.monotonic())
                yield item

        return items()

    async with open_bench(name, ScriptedEngine(default=answer, context_length=1_000_000), FastClock(factor)) as bench:

        async def read(question: str) -> None:
            """Look at the channel whenever something has changed there."""
            times, channel, next_one = said[question], question.replace("question", "room"), 0

            def is_read() -> bool:
                nonlocal next_one
                numbers = _NUMBER.findall("".join(seen.markdown for seen in bench.replies(channel)[-2:]))
                while numbers and next_one <= int(numbers[-1]):
                    took.append(factor * (time.monotonic() - times[next_one]))
                    next_one += 1
                return next_one == deltas

            await bench.platform.until(is_read, 120)

        async with asyncio.TaskGroup() as tasks:
            for question in said:
                tasks.create_task(bench.ask(question, question.replace("question", "room")))
                tasks.create_task(read(question))
    return Times(tuple(took))


_NUMBER = re.compile(r"\b\d{5}\b")


@dataclass(frozen=True, slots=True)
class Load:
    """Many mentions at once: how late the event loop was, before and meanwhile, and who was not answered once."""

    mentions: int
    seconds: float
    idle: Times
    busy: Times
    faults: tuple[str, ...]


async def load(
    name: str,
    mentions: int = 200,
    channels: int = 50,
    *,
    sentences: int = 60,
    idle_seconds: float = 3.0,
    factor: float = 1.0,
) -> Load:
    """Ask in all channels at once, at the platform's own intervals; bot and platform share one event loop."""
    tail = [f" 第{number}句 word" for number in range(sentences)]

    def answer(request: ChatRequest) -> Script:
        return flowing([f"answer to {asked(request)}:", *tail], 0.05)

    engine = ScriptedEngine(default=answer, context_length=1_000_000, max_batch_size=channels, max_waiting=mentions)
    async with open_bench(name, engine, FastClock(factor)) as bench:
        async with lateness() as idle:
            await asyncio.sleep(idle_seconds)
        began = time.monotonic()
        async with lateness() as busy, asyncio.TaskGroup() as tasks:
            asking = [
                tasks.create_task(bench.ask(f"mention {number}", f"room{number % channels}"))
                for number in range(mentions)
            ]
        seconds = time.monotonic() - began
        shown = Counter(seen.markdown for channel in range(channels) for seen in bench.replies(f"room{channel}"))
        faults = [
            f"{task.result().message.text}: {task.result().status}"
            for task in asking
            if task.result().status is not Status.DELIVERED
        ]
        wanted = Counter("".join([f"answer to mention {number}:", *tail]) for number in range(mentions))
        faults += [
            f"said {count} times: {text[:40]!r}" for text, count in ((shown - wanted) | (wanted - shown)).items()
        ]
        return Load(mentions, seconds, Times(tuple(idle)), Times(tuple(busy)), (*faults, *bench.platform.violations))


@asynccontextmanager
async def lateness(every: float = 0.005) -> AsyncIterator[list[float]]:
    """How much later than it wished, in seconds, a task is woken that sleeps again and again."""
    late: list[float] = []

    async def watch() -> None:
        while True:
            due = time.monotonic() + every
            await asyncio.sleep(every)
            late.append(time.monotonic() - due)

    watching = asyncio.create_task(watch())
    try:
        yield late
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
