"""R5: SIGTERM, at any moment of the bot's life, and twice; also SIGINT.

The bot is a process of its own.  It must end with 0 within 8 s, whatever it is at and
whoever does not answer it, and at a second signal within 1 s; started again it goes on
in the messages in which it stopped, and each answer is there once, and whole.
"""

import asyncio
import random
import re
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.chaos.figure import Row, Scale
from tests.chaos.processes import PLATFORMS, BotProcess, logged_errors, replies, run_bot, until
from tests.harness.platform import Fault
from tests.harness.platform_bench import PROFILES

NAME = "R5"

IN_TIME = 8.0  # what stops containers waits 10 s before it kills
AT_ONCE = 1.0
# Two cores bear so many processes that mostly wait.
AT_A_TIME = 4
SLOW = "tests.chaos.slow_bot"


@dataclass
class Scene:
    """One life that is ended by a signal, on a platform of its own."""

    name: str
    chance: random.Random
    platform: Any
    questions: list[str] = field(default_factory=list)

    async def ask(self, words: int, channel: str = "general") -> None:
        number = f"q{len(self.questions)}e"
        self.questions.append(number)
        await self.platform.say(f"{number} {'and so on ' * words}{number}", channel=channel)

    async def answer_grows(self) -> None:
        """Wait until something of an answer, and not all of it, can be read."""
        await until(lambda: any(re.search(r"q\d+e\s*and", said) for said in self.said()))

    def said(self) -> list[str]:
        return [reply for channel in ("general", *_CHANNELS) for reply in replies(self.platform, channel)]

    @property
    def is_answered(self) -> bool:
        return all("\n".join(self.said()).count(number) >= 2 for number in self.questions)

    @property
    def faults(self) -> list[str]:
        """The questions without an answer, or with more than one, or with one of which a part is missing."""
        holding = {number: [reply for reply in self.said() if number in reply] for number in self.questions}
        return [number for number, found in holding.items() if [reply.count(number) for reply in found] != [2]]


Act = Callable[[Scene, BotProcess], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    """What the bot is at when the signal comes; `then` says how it must end."""

    act: Act
    environment: Mapping[str, str] = field(default_factory=dict)
    module: str = "bot"
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    code: int = 0
    within: float = IN_TIME


_CHANNELS = tuple(f"room{number}" for number in range(10))
_TOKENS = {"SLOW_TOKENS": "0.05"}
_MODEL = {"BOT_ENGINE__BACKEND": "chatglm"}


async def _generating(scene: Scene, bot: BotProcess) -> None:
    await bot.connected()
    await scene.ask(150)  # takes about 20 s
    await scene.answer_grows()
    await asyncio.sleep(scene.chance.uniform(0.0, 0.5))


async def _ending(scene: Scene, bot: BotProcess) -> None:
    await bot.connected()
    await scene.ask(20)  # takes about 3 s, and ends in time
    await scene.answer_grows()


async def _starting(scene: Scene, bot: BotProcess) -> None:
    # Before that Python itself has not begun.
    await asyncio.sleep(scene.chance.uniform(0.3, 2.0))


async def _loading(scene: Scene, bot: BotProcess) -> None:
    await scene.ask(5)
    await asyncio.sleep(scene.chance.uniform(1.5, 4.0))


async def _idle(scene: Scene, bot: BotProcess) -> None:
    await bot.connected()


async def _hanging(scene: Scene, bot: BotProcess) -> None:
    await _generating(scene, bot)
    calls = asyncio.Event()

    async def keep_waiting(request: web.Request) -> web.Response | None:
        calls.set()
        await asyncio.Event().wait()
        return None

    scene.platform.gate.guard = keep_waiting
    await calls.wait()


async def _refused(scene: Scene, bot: BotProcess) -> None:
    await _generating(scene, bot)
    refused = asyncio.Event()

    def wait(number: int, name: str) -> Fault:
        refused.set()
        return Fault("429", 9.0)

    scene.platform.script = wait
    await refused.wait()
    await asyncio.sleep(0.1)


async def _queued(scene: Scene, bot: BotProcess) -> None:
    await bot.connected()
    for number in range(20):
        await scene.ask(100, _CHANNELS[number % len(_CHANNELS)])
    await scene.answer_grows()


async def _by_the_model(scene: Scene, bot: BotProcess) -> None:
    await bot.connected()
    for channel in _CHANNELS:
        await scene.platform.say("what can you do for us here?", channel=channel)
    await until(lambda: any(len(said) > 5 for said in scene.said()))


async def _wedged(scene: Scene, bot: BotProcess) -> None:
    await bot.connected()
    await scene.platform.say("hello", channel="general")
    await until(lambda: bool(scene.said()))


_TWICE, _INTERRUPT = (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,)
CASES = {
    "starting": Case(_starting),
    "loading the model": Case(_loading, _MODEL),
    "waiting for the model": Case(_loading, {"SLOW_LOADING": "60"}, SLOW),
    "idle": Case(_idle),
    "answer ends in time": Case(_ending, _TOKENS, SLOW),
    "generating": Case(_generating, _TOKENS, SLOW),
    "20 queued": Case(_queued, _TOKENS, SLOW),
    "the demo model": Case(_by_the_model, _MODEL),
    "stuck in a step": Case(_wedged, {**_MODEL, "SLOW_STEP": "60"}, SLOW),
    "platform hangs": Case(_hanging, _TOKENS, SLOW),
    "waiting for 429": Case(_refused, _TOKENS, SLOW),
    "second SIGTERM": Case(_generating, _TOKENS, SLOW, _TWICE, 128 + signal.SIGTERM, AT_ONCE),
    "SIGINT": Case(_generating, _TOKENS, SLOW, _INTERRUPT, 130),
    "second SIGINT": Case(_generating, _TOKENS, SLOW, _INTERRUPT * 2, 130, AT_ONCE),
}
SHORT = {"discord": "second SIGTERM", "telegram": "answer ends in time", "slack": "second SIGTERM"}


@dataclass(frozen=True, slots=True)
class Outcome:
    case: str
    seconds: float
    code: int | None
    faults: list[str]
    errors: list[str]

    @property
    def is_kept(self) -> bool:
        return self.code == CASES[self.case].code and not self.faults

    @property
    def is_in_time(self) -> bool:
        return self.seconds <= CASES[self.case].within


async def outcome_of(name: str, called: str, seed: int) -> Outcome:
    """End a life in the middle of this, and begin another one that does what was left."""
    case = CASES[called]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with PROFILES[name].open() as platform:
            scene = Scene(name, random.Random(f"{seed} {name} {called}"), platform)
            if case.act is _loading:
                # What is said before it listens is read by who was there before.
                async with run_bot({name: platform}, folder) as bot:
                    await bot.connected()
                    await scene.ask(1)
                    await until(lambda: scene.is_answered)
            async with run_bot({name: platform}, folder, case.environment, case.module) as bot:
                await case.act(scene, bot)
                *earlier, last = case.signals
                for number in earlier:
                    bot.process.send_signal(number)
                    await asyncio.sleep(0.5)
                began = time.monotonic()
                bot.process.send_signal(last)
                code = await bot.ended(20.0)
                seconds = time.monotonic() - began
            scene.platform.gate.guard = None
            scene.platform.script = lambda number, name: None
            async with run_bot({name: platform}, folder) as bot:
                with suppress(TimeoutError):  # counted below
                    await until(lambda: scene.is_answered)
                await bot.connected()
                await asyncio.sleep(0.5)  # an answer too many would come now
            return Outcome(called, seconds, code, scene.faults, logged_errors(folder))


def _told(outcomes: list[Outcome]) -> str:
    told = []
    for case in dict.fromkeys(each.case for each in outcomes):
        these = [each for each in outcomes if each.case == case]
        longest = max(each.seconds for each in these)
        told.append(f"{case} {longest:.1f} s")
        told += [f"(ended with {each.code}!)" for each in these if each.code != CASES[case].code]
        told += [f"({len(each.faults)} answers wrong!)" for each in these if each.faults]
        told += ["(too late!)"] * (longest > CASES[case].within)
    return f"{len(outcomes)} lives ended, the slowest of each kind: {', '.join(told).replace(', (', ' (')}"


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    # What a shell starts in the background ignores SIGINT, and so would the bots.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gate = asyncio.Semaphore(AT_A_TIME)

    async def outcome(name: str, case: str, number: int) -> Outcome:
        async with gate:
            return await outcome_of(name, case, seed + number)

    def cases(name: str) -> list[str]:
        return list(CASES) if scale == "full" else [SHORT[name]]

    async with asyncio.TaskGroup() as tasks:
        begun = {
            name: [tasks.create_task(outcome(name, case, number)) for number, case in enumerate(cases(name))]
            for name in PLATFORMS
        }
    for name, done in begun.items():
        outcomes = [task.result() for task in done]
        is_kept = all(each.is_kept for each in outcomes)
        yield Row(name, _told(outcomes), is_kept, all(each.is_in_time for each in outcomes))
