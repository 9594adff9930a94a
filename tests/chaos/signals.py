"""R5: SIGTERM in any state of the bot, once and twice; also SIGINT.

The bot is a separate process.  It must exit with 0 within 8 s, in any state and even if the
platform does not respond, and within 1 s after a second signal.  After a restart it
continues in the same messages, and each answer is complete and there once.
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

IN_TIME = 8.0  # container runtimes kill after 10 s
AT_ONCE = 1.0
# Concurrent processes, which mostly wait.
CONCURRENT = 4
SLOW = "tests.chaos.slow_bot"


@dataclass
class SignalScene:
    """A platform and its questions, for a bot that a signal ends."""

    name: str
    chance: random.Random
    platform: Any
    questions: list[str] = field(default_factory=list)

    async def ask(self, words: int, channel: str = "general") -> None:
        number = f"q{len(self.questions)}e"
        self.questions.append(number)
        await self.platform.say(f"{number} {'and so on ' * words}{number}", channel=channel)

    async def answer_grows(self) -> None:
        """Wait until an answer is partly visible."""
        await until(lambda: any(re.search(r"q\d+e\s*and", reply) for reply in self.replies()))

    def replies(self) -> list[str]:
        return [reply for channel in ("general", *_CHANNELS) for reply in replies(self.platform, channel)]

    @property
    def is_answered(self) -> bool:
        return all("\n".join(self.replies()).count(number) >= 2 for number in self.questions)

    @property
    def faults(self) -> list[str]:
        """Return the questions without exactly one complete answer."""
        holding = {number: [reply for reply in self.replies() if number in reply] for number in self.questions}
        return [number for number, found in holding.items() if [reply.count(number) for reply in found] != [2]]


Act = Callable[[SignalScene, BotProcess], Awaitable[None]]


@dataclass(frozen=True)
class SignalCase:
    """The bot's state when the signal arrives, and how it must end."""

    act: Act
    environment: Mapping[str, str] = field(default_factory=dict)
    module: str = "bot"
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    code: int = 0
    within: float = IN_TIME


_CHANNELS = tuple(f"room{number}" for number in range(10))
_TOKENS = {"SLOW_TOKENS": "0.05"}
_MODEL = {"BOT_ENGINE__BACKEND": "chatglm"}


async def _generating(scene: SignalScene, bot: BotProcess) -> None:
    await bot.connected()
    await scene.ask(150)  # takes about 20 s
    await scene.answer_grows()
    await asyncio.sleep(scene.chance.uniform(0.0, 0.5))


async def _ending(scene: SignalScene, bot: BotProcess) -> None:
    await bot.connected()
    await scene.ask(20)  # takes about 3 s, and ends in time
    await scene.answer_grows()


async def _starting(scene: SignalScene, bot: BotProcess) -> None:
    await _begun(bot)
    await asyncio.sleep(scene.chance.uniform(0.0, 1.7))


async def _begun(bot: BotProcess) -> None:
    """Wait until SIGTERM has a handler; before, Python itself has not started, which takes seconds on a busy machine."""
    await until(lambda: bot.process.returncode is not None or _handles(bot.process.pid, signal.SIGTERM))


def _handles(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for the signal; True where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return True
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)


async def _loading(scene: SignalScene, bot: BotProcess) -> None:
    await scene.ask(5)
    await _begun(bot)
    await asyncio.sleep(scene.chance.uniform(1.2, 3.7))


async def _idle(scene: SignalScene, bot: BotProcess) -> None:
    await bot.connected()


async def _hanging(scene: SignalScene, bot: BotProcess) -> None:
    await _generating(scene, bot)
    calls = asyncio.Event()

    async def keep_waiting(request: web.Request) -> web.Response | None:
        calls.set()
        await asyncio.Event().wait()
        return None

    scene.platform.gate.guard = keep_waiting
    await calls.wait()


async def _refused(scene: SignalScene, bot: BotProcess) -> None:
    await _generating(scene, bot)
    refused = asyncio.Event()

    def wait(number: int, name: str) -> Fault:
        refused.set()
        return Fault("429", 9.0)

    scene.platform.script = wait
    await refused.wait()
    await asyncio.sleep(0.1)


async def _queued(scene: SignalScene, bot: BotProcess) -> None:
    await bot.connected()
    for number in range(20):
        await scene.ask(100, _CHANNELS[number % len(_CHANNELS)])
    await scene.answer_grows()


async def _by_the_model(scene: SignalScene, bot: BotProcess) -> None:
    await bot.connected()
    for channel in _CHANNELS:
        await scene.platform.say("what can you do for us here?", channel=channel)
    await until(lambda: any(len(reply) > 5 for reply in scene.replies()))


async def _wedged(scene: SignalScene, bot: BotProcess) -> None:
    await bot.connected()
    await scene.platform.say("hello", channel="general")
    await until(lambda: bool(scene.replies()))


_TWICE, _INTERRUPT = (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,)
CASES = {
    "starting": SignalCase(_starting),
    "loading the model": SignalCase(_loading, _MODEL),
    "waiting for the model": SignalCase(_loading, {"SLOW_LOADING": "60"}, SLOW),
    "idle": SignalCase(_idle),
    "answer ends in time": SignalCase(_ending, _TOKENS, SLOW),
    "generating": SignalCase(_generating, _TOKENS, SLOW),
    "20 queued": SignalCase(_queued, _TOKENS, SLOW),
    "the demo model": SignalCase(_by_the_model, _MODEL),
    "stuck in a step": SignalCase(_wedged, {**_MODEL, "SLOW_STEP": "60"}, SLOW),
    "platform hangs": SignalCase(_hanging, _TOKENS, SLOW),
    "waiting for 429": SignalCase(_refused, _TOKENS, SLOW),
    "second SIGTERM": SignalCase(_generating, _TOKENS, SLOW, _TWICE, 128 + signal.SIGTERM, AT_ONCE),
    "SIGINT": SignalCase(_generating, _TOKENS, SLOW, _INTERRUPT, 130),
    "second SIGINT": SignalCase(_generating, _TOKENS, SLOW, _INTERRUPT * 2, 130, AT_ONCE),
}
SHORT = {"discord": "second SIGTERM", "telegram": "answer ends in time", "slack": "second SIGTERM"}


@dataclass(frozen=True, slots=True)
class SignalOutcome:
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


async def end_by_signal(name: str, called: str, seed: int) -> SignalOutcome:
    """End a bot in this state by a signal, then check the answers of a new one."""
    case = CASES[called]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with PROFILES[name].open() as platform:
            scene = SignalScene(name, random.Random(f"{seed} {name} {called}"), platform)
            if case.act is _loading:
                # A backfill needs a known message.
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
                code = await bot.ended(120.0)
                seconds = time.monotonic() - began
            scene.platform.gate.guard = None
            scene.platform.script = lambda number, name: None
            async with run_bot({name: platform}, folder) as bot:
                with suppress(TimeoutError):  # counted below
                    await until(lambda: scene.is_answered)
                await bot.connected()
                await asyncio.sleep(0.5)  # for duplicate answers
            return SignalOutcome(called, seconds, code, scene.faults, logged_errors(folder))


def _describe(outcomes: list[SignalOutcome]) -> str:
    parts = []
    for case in dict.fromkeys(each.case for each in outcomes):
        these = [each for each in outcomes if each.case == case]
        longest = max(each.seconds for each in these)
        parts.append(f"{case} {longest:.1f} s")
        parts += [f"(ended with {each.code}!)" for each in these if each.code != CASES[case].code]
        parts += [f"({len(each.faults)} answers wrong!)" for each in these if each.faults]
        parts += ["(too late!)"] * (longest > CASES[case].within)
    return f"{len(outcomes)} processes ended, the slowest of each kind: {', '.join(parts).replace(', (', ' (')}"


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    # A shell lets background processes, and so the bots, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gate = asyncio.Semaphore(CONCURRENT)

    async def outcome(name: str, case: str, number: int) -> SignalOutcome:
        async with gate:
            return await end_by_signal(name, case, seed + number)

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
        yield Row(name, _describe(outcomes), is_kept, all(each.is_in_time for each in outcomes))
