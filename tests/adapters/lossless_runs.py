"""The runs of `make lossless`: deliveries while every fourth call fails, and latencies without faults."""

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
from tests.adapters.lossless_cases import AnswerCase
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.fakes.engine import AnswerScript, Item
from tests.harness.platform import Fault, LoopbackPlatform, Seen
from tests.harness.platform_bench import FORMS, PROFILES, Bench, Profile, open_bench, without_spaces
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer

# Whose text is watched at the same time.
GROWING_REPLIES = 5
# Speed of the bot's clock; Retry-After and intervals are scaled with it.
FACTOR = 50.0
# Conversations in flight at once while calls fail.
_IN_FLIGHT = 24
# Real seconds between two deltas of an answer.
_DELTA_SECONDS = 0.005

_KINDS: tuple[Literal["429", "500", "timeout", "lost"], ...] = ("429", "timeout", "500", "lost")
Progress = Callable[[int], None]


@dataclass(slots=True)
class InjectedFaults:
    """A FaultScript that fails every fourth call, with each kind of fault in turn."""

    chance: random.Random
    calls: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def __call__(self, number: int, name: str) -> Fault | None:
        self.calls += 1
        if number % 4 != 3:
            return None
        kind = _KINDS[number // 4 % len(_KINDS)]
        self.failed[kind] += 1
        # As in figure R9: from 1 to 30 seconds.
        return Fault(kind, self.chance.uniform(1, 30) if kind == "429" else 0.0)


@dataclass(slots=True)
class Delivered:
    """Results of all deliveries; `faults` are descriptions by case number."""

    injected: InjectedFaults
    cases: int
    characters: int = 0
    messages: int = 0
    left_behind: int = 0  # "…" whose id was lost
    streams: int = 0  # calls that start one
    faults: dict[int, list[str]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def without(self, kind: str) -> int:
        """Return the number of cases without this kind of fault."""
        return self.cases - sum(any(fault.startswith(kind) for fault in faults) for faults in self.faults.values())


# Prefixes of the descriptions.
NOT_EXACT, NOT_VISIBLE, NOT_BALANCED, NOT_LANDED, TWICE = (
    "characters:",
    "visible text:",
    "fences:",
    "last edit:",
    "said twice:",
)


@asynccontextmanager
async def _impatient(platform: LoopbackPlatform) -> AsyncIterator[None]:
    """Let the bot give up calls without an answer soon."""
    if isinstance(platform, DiscordPlatform):
        platform.call_seconds = 0.5
    yield


async def deliver(
    name: str, cases: Sequence[AnswerCase], seed: int, progress: Progress = lambda done: None
) -> Delivered:
    """Deliver each answer in a separate conversation while every fourth call fails."""
    profile = (PROFILES | FORMS)[name]
    if (most := profile.most_messages) is not None:
        cases = [case for case in cases if len(split(case.answer, profile.format)) <= most]
    answers = {question(case): case for case in cases}
    engine = ScriptedEngine(
        default=lambda request: flowing(answers[asked(request)].deltas),
        context_length=1_000_000,
        max_batch_size=_IN_FLIGHT,
        max_waiting=len(cases) + 1,
    )
    result = Delivered(InjectedFaults(random.Random(seed)), cases=len(cases))
    arrived: list[Arrived | None] = []
    began = time.monotonic()
    async with open_bench(name, engine, FastClock(FACTOR), around=_impatient) as bench:
        bench.platform.script = result.injected
        slots = asyncio.Semaphore(_IN_FLIGHT)

        async def one(case: AnswerCase) -> Arrived | None:
            async with slots:
                found = await _arrived(bench, case)
            arrived.append(found)
            progress(len(arrived))
            return found

        async with asyncio.TaskGroup() as tasks:
            deliveries = [tasks.create_task(one(case)) for case in cases]
        result.violations = list(bench.platform.violations)
        if isinstance(bench.platform, SlackServer):
            result.streams = bench.platform.calls.count("chat.startStream")
            result.violations += [f"left open: {each}" for each in bench.platform.agents.left_open]
    result.seconds = time.monotonic() - began
    # Compared only after all deliveries, since it would block the bot's event loop.
    for case, task in zip(cases, deliveries, strict=True):
        result.characters += len(case.answer)
        found = task.result()
        faults = list(_faults(name, case, found)) if found else [f"{NOT_LANDED} not delivered in time"]
        if faults:
            result.faults[case.number] = faults
        if found:
            result.messages += len(found.parts)
            result.left_behind += len(found.others)
    return result


@dataclass(frozen=True, slots=True)
class Arrived:
    """The messages of a reply, and the bot's other messages in its channel."""

    exchange: Exchange
    parts: list[Seen]
    others: list[Seen]


async def _arrived(bench: Bench, case: AnswerCase) -> Arrived | None:
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


def _faults(name: str, case: AnswerCase, found: Arrived) -> Iterator[str]:
    profile, parts = (PROFILES | FORMS)[name], found.parts
    pieces = split(case.answer, profile.format)
    if [_shown_text(profile, piece) for piece in pieces if _shown_text(profile, piece)] != _texts(profile, parts):
        # A streamed text may have been split earlier, before closing marks needed less room.
        pieces = cut_like(parts, case.answer, profile)
    if join(pieces) != case.answer:
        yield f"{NOT_EXACT} {len(parts)} messages that are not the answer, cut"
    seen_text = "".join(without_spaces(seen.visible) for seen in parts).replace(_JOINER, "")
    wanted_text = visible_text(case.answer).replace(_JOINER, "")
    seen_text, wanted_text = profile.compared(seen_text), profile.compared(wanted_text)
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
        if seen.markdown != "…" or not name.startswith(("telegram", "discord-guest")):
            yield f"{TWICE} {seen.markdown[:60]!r}"


def cut_like(parts: Sequence[Seen], answer: str, profile: Profile) -> list[Chunk]:
    """Split the answer where these messages end; return [] if they are not its pieces."""
    return next(_cuts(_texts(profile, parts), "", answer, profile, set()), [])


def _cuts(
    shown: Sequence[str], opening: str, rest: str, profile: Profile, tried: set[tuple[int, str]]
) -> Iterator[list[Chunk]]:
    if not shown:
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

    start = _shown_text(profile, Chunk(window[:_START], opening))
    if not all(one == other for one, other in zip(_letters(start), _letters(shown[0]), strict=False)):
        return
    ends = range(1, len(window) + 1)
    near = bisect.bisect_left(ends, len(shown[0]), key=lambda at: len(_shown_text(profile, piece(at))))
    fitting = [at for at in ends[max(0, near - _NEAR) : near + _NEAR] if _shown_text(profile, piece(at)) == shown[0]]
    # Whitespace and marks make several places equal; the splitter prefers the start of a line.
    for at in sorted(fitting, key=lambda at: (not index.is_line_start(len(opening) + at), -at)):
        following = index.opening_at(len(opening) + at, room=profile.format.limit // 2)
        for rest_of_chunks in _cuts(shown[1:], following, rest[at:], profile, tried):
            yield [piece(at), *rest_of_chunks]


def _letters(text: str) -> list[str]:
    # The first few identify a message; more could lie behind a long run of marks.
    return [character for character in text if character.isalnum()][:12]


# Characters of Markdown that contain that many letters, except in answers that are mostly marks.
_START = 400
# Distance from the expected end of a message within which the end is searched.
_NEAR = 100


def _shown_text(profile: Profile, piece: Chunk) -> str:
    """Return the text that the platform shows for a piece, "" if it has no visible text."""
    rendered = profile.format.render(piece.text)
    return _compared(profile, profile.written(rendered)) if rendered.text.strip() else ""


def _texts(profile: Profile, parts: Sequence[Seen]) -> list[str]:
    return [_compared(profile, seen.markdown) for seen in parts]


def _compared(profile: Profile, text: str) -> str:
    # Platforms with entities change whitespace.
    return text if profile.takes_markdown else without_spaces(text)


# Inserted behind "<" where Slack would read a mention.
_JOINER = "\u2060"


def _first_difference(a: str, b: str) -> str:
    at = next((at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    return f"at {at} {a[at : at + 20]!r}, not {b[at : at + 20]!r}"


def question(case: AnswerCase) -> str:
    return f"case {case.number}"


def asked(request: ChatRequest) -> str:
    """Return the question without its author's name."""
    return request.messages[-1].content.rpartition(": ")[2]


def flowing(deltas: Iterable[str], seconds: float = _DELTA_SECONDS) -> AnswerScript:
    """Return deltas with pauses between them, as from a model."""

    def items() -> Iterator[Item]:
        for delta in deltas:
            yield delta
            pause = asyncio.Event()
            asyncio.get_running_loop().call_later(seconds, pause.set)
            yield pause

    return items()


@dataclass(frozen=True, slots=True)
class Times:
    """Measured durations in real seconds."""

    values: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def placeholders(name: str, count: int = 100) -> Times:
    """Measure the time from a mention to the first message of the reply, each in an idle channel."""
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


async def ages(name: str, count: int = GROWING_REPLIES, deltas: int = 600, factor: float = 1.0) -> Times:
    """Measure the age of each delta of 20 characters when it becomes visible, in the bot's seconds.

    The answers are streamed concurrently, each in its own channel, at twenty deltas a second.
    """
    took: list[float] = []
    said: dict[str, list[float]] = {f"question {number}": [] for number in range(count)}

    def answer(request: ChatRequest) -> AnswerScript:
        times = said[asked(request)]

        def items() -> Iterator[Item]:
            for item in flowing([f"{number:05} 一些文字 text " for number in range(deltas)], 0.05 / factor):
                if isinstance(item, str):
                    times.append(time.monotonic())
                yield item

        return items()

    async with open_bench(name, ScriptedEngine(default=answer, context_length=1_000_000), FastClock(factor)) as bench:

        async def read(question: str) -> None:
            """Read the channel after each change."""
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
    """Results of many concurrent mentions: event loop lag before and meanwhile, and wrong answers."""

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
    """Mention the bot in all channels at once; bot and platform share one event loop."""
    tail = [f" 第{number}句 word" for number in range(sentences)]

    def answer(request: ChatRequest) -> AnswerScript:
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
    """Collect the event loop's lag in seconds, measured by repeated sleeps."""
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
