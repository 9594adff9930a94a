"""R32: the bot, killed while it fetches and reads files and while the parts of a long paste come in.

Each question either has a file, whose bytes stop for a moment after the first one, or comes in two messages as an app
cuts it.  After the last kill each must have exactly one complete answer, with the text of the file or a line that it could
not be read, or with all parts.
"""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.figure import Row, Scale
from tests.chaos.processes import PLATFORMS, TIMEOUT, logged_errors, replies, run_bot, until
from tests.harness.platform_bench import PROFILES
from tests.reading import makers

NAME = "R32"

CHANNEL = "general"
KILLS = 100  # on all platforms together
# Seconds within which a bot is killed after it was asked, and for which a file stops at most.
ASKED = 2.5
STOPPED = 1.5
# Seconds for duplicate answers.
_AFTER = 2.0
# Characters of a message that an app has cut.
_PIECE = {"discord": 1900, "telegram": 3900, "slack": 3800}
_UNREAD = "I could not read"  # and the name of the file


@dataclass
class Result:
    """Questions, with the two marks that the answer to each must have, and errors after all kills."""

    questions: dict[int, tuple[str, str]] = field(default_factory=dict)
    kills: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    unread: int = 0
    fetches: int = 0
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = {"lost": self.lost, "answered twice": self.twice, "torn": self.torn, "errors logged": self.errors}
        parts = [f"{kind} {len(found)} {' '.join(found[:5])}".rstrip() for kind, found in counts.items()]
        asked = f"kills {self.kills}, questions {len(self.questions)}, files asked for {self.fetches} times"
        return f"{asked}: {', '.join(parts)}, with a line instead of the file {self.unread}"

    @property
    def is_kept(self) -> bool:
        return not (self.lost or self.twice or self.torn or self.errors)


class Asker:
    """Asks questions with files and in several messages."""

    def __init__(self, platform: Any, chance: random.Random, result: Result) -> None:
        self._platform = platform
        self._chance = chance
        self._result = result

    async def ask(self) -> None:
        number = len(self._result.questions)
        if self._chance.random() < 0.5:
            await self._ask_with_file(number)
        else:
            await self._ask_in_parts(number)

    async def _ask_with_file(self, number: int) -> None:
        marks = self._result.questions[number] = f"t{number}x", f"q{number}x"
        makes: list[Callable[[str], bytes]] = [makers.document, makers.pdf, makers.slides, _text]
        make = self._chance.choice(makes)
        self._platform.shelf.is_open.clear()
        asyncio.get_running_loop().call_later(self._chance.uniform(0, STOPPED), self._platform.shelf.is_open.set)
        file = self._platform.file(_name(number), make(f"{marks[0]} has the text"))
        attached: dict[str, dict[str, Any]] = {
            "discord": {"attachments": [file]},
            "telegram": {"attached": file},
            "slack": {"files": [file]},
        }
        await self._platform.say(f"{marks[1]} what does it say?", channel=CHANNEL, **attached[self._platform.name])

    async def _ask_in_parts(self, number: int) -> None:
        marks = self._result.questions[number] = f"a{number}x", f"b{number}x"
        filler = "words " * (_PIECE[self._platform.name] // 6)
        await self._platform.say(f"{marks[0]} {filler}".strip(), channel=CHANNEL)
        await asyncio.sleep(self._chance.uniform(0, 0.3))
        await self._platform.say(f"and {marks[1]}", channel=CHANNEL, mention=False)


def _name(number: int) -> str:
    return f"f{number}x.bin"


def _text(words: str) -> bytes:
    return words.encode()


async def kill_repeatedly(name: str, kills: int, seed: int) -> Result:
    """Kill the bot `kills` times, then check the answers."""
    chance = random.Random(f"{seed} {name}")
    result = Result()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with PROFILES[name].open() as platform:
            platforms, asker = {name: platform}, Asker(platform, chance, result)
            async with run_bot(platforms, folder) as bot:
                await bot.connected()
                await asker.ask()  # a backfill needs a known message
                await until(lambda: _are_answered(platform, result))
            for _ in range(kills):
                result.kills += 1
                async with run_bot(platforms, folder) as bot:
                    await bot.connected()
                    await asker.ask()
                    await asyncio.sleep(chance.uniform(0.0, ASKED))
            async with run_bot(platforms, folder):
                with suppress(TimeoutError):  # unanswered questions are counted as lost
                    await until(lambda: _are_answered(platform, result), TIMEOUT / 2)
                await asyncio.sleep(_AFTER)
            _count(platform, result)
        result.errors = logged_errors(folder)
    return result


def _are_answered(platform: Any, result: Result) -> bool:
    shown = _shown(platform)
    return all(last in shown for _, last in result.questions.values())


def _shown(platform: Any) -> str:
    return "".join("".join(replies(platform, CHANNEL)).split())


def _count(platform: Any, result: Result) -> None:
    result.fetches = len(platform.shelf.asked)
    shown = _shown(platform)
    for number, (first, last) in result.questions.items():
        if last not in shown:
            result.lost.append(last)
        elif shown.count(last) > 1:
            result.twice.append(last)
        elif first not in shown and f"{''.join(_UNREAD.split())}{_name(number)}" in shown:
            result.unread += 1
        elif first not in shown:
            result.torn.append(last)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    kills = -(-KILLS // len(PLATFORMS)) if scale == "full" else 1
    async with asyncio.TaskGroup() as tasks:
        results = {name: tasks.create_task(kill_repeatedly(name, kills, seed)) for name in PLATFORMS}
    for name, result in results.items():
        yield Row(name, str(result.result()), result.result().is_kept)
