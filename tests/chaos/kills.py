"""R1: the whole bot on a loopback platform, killed at random points while users write.

Each run is a separate process, started like `bot run` and killed (-9) at a random moment:
while it starts, connects or answers.  Users write before, during and after it.  The last
run is not killed.  Then each question must have exactly one complete answer.  The short form
repeats this where each answer opens a thread.  The row `telegram-rich` has answers in rich messages; in
`discord-ask` and `discord-guest` each question is a command, where the bot is a member and where it is none.
A command that no run acknowledges need not be answered: Discord says so to its author at once.
"""

import asyncio
import random
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.figure import Row, Scale
from tests.chaos.processes import PLATFORMS, TIMEOUT, logged_errors, replies, run_bot, until
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import FORMS, PROFILES
from tests.harness.servers.slack import SlackServer

NAME = "R1"

CHANNELS = ("general", "random", "运维")
# Platforms on which an answer has no thread unless one is opened for it.
_OPENING_THREADS = ("discord", "telegram")
# A start takes about 2 s, an answer half a second.
STARTING = 2.0
ANSWERING = 1.0
# Every third run is killed while it starts.
EARLY_KILLS = 3


@dataclass
class KillResult:
    """Questions and errors after all kills."""

    questions: dict[str, str] = field(default_factory=dict)  # the channel of each
    kills: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    orphans: int = 0
    sentences: set[str] = field(default_factory=set)  # shown without the number of a question
    unheard: int = 0  # not acknowledged and not answered, where people are told so
    errors: list[str] = field(default_factory=list)
    integrity: str = ""

    def __str__(self) -> str:
        counts = {"lost": self.lost, "answered twice": self.twice, "torn": self.torn, "errors logged": self.errors}
        parts = [f"{kind} {len(found)} {' '.join(found[:5])}".rstrip() for kind, found in counts.items()]
        parts += [f"left-over placeholders {self.orphans}", f"integrity {self.integrity}"]
        if self.lost:
            parts.append(f"the bot said instead {sorted(self.sentences)[:5]}")
        unheard = f" ({self.unheard} not taken)" if self.unheard else ""
        return f"kills {self.kills}, questions {len(self.questions)}{unheard}: {', '.join(parts)}"

    @property
    def is_kept(self) -> bool:
        return not (self.lost or self.twice or self.torn or self.orphans or self.errors) and self.integrity == "ok"


async def kill_repeatedly(name: str, kills: int, seed: int, *, opens_threads: bool = False) -> KillResult:
    """Kill the bot `kills` times, then check the answers, each in a thread with `opens_threads`."""
    chance = random.Random(f"{seed} {name}")
    result = KillResult()

    async def ask(platform: LoopbackPlatform, channel: str) -> None:
        number = f"q{len(result.questions)}e"
        result.questions[number] = channel
        words = "and so on 你好 $x^2$ " if name == "telegram-rich" else "and so on 你好 "  # the engine echoes a formula
        await platform.say(f"{number} {words * chance.randrange(1, 40)}{number}", channel=channel)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with (PROFILES | FORMS)[name].open() as platform:
            platforms = {platform.name: platform}
            # A command is taken a second after it was used while the missed messages are read.
            answering = 4 * ANSWERING if hasattr(platform, "unheard") else ANSWERING
            if opens_threads:
                (folder / "config.toml").write_text(f'[platforms.{name}]\nanswer = "thread"\n', encoding="utf-8")
                _allow_threads(platform)
            # A backfill needs a known message in each channel.
            async with run_bot(platforms, folder) as bot:
                await bot.connected()
                for channel in CHANNELS:
                    await ask(platform, channel)
                await until(lambda: not _unheard(platform, result) and are_answered(platform, result))
            for kill in range(kills):
                result.kills += 1
                await ask(platform, chance.choice(CHANNELS))
                async with run_bot(platforms, folder) as bot:
                    if kill % EARLY_KILLS == 0:
                        await asyncio.sleep(chance.uniform(0.1, STARTING))
                        continue
                    await bot.connected()
                    for _ in range(3):
                        await ask(platform, chance.choice(CHANNELS))
                        await asyncio.sleep(chance.uniform(0.0, answering / 3))
            async with run_bot(platforms, folder):
                with suppress(TimeoutError):  # unanswered questions are counted as lost
                    await until(lambda: are_answered(platform, result), 2 * TIMEOUT)
                await asyncio.sleep(1.0)  # for duplicate answers
            count_answers(platform, result)
        result.errors = logged_errors(folder)
        database = sqlite3.connect(folder / "bot.db")
        result.integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
        database.close()
    return result


def _allow_threads(platform: Any) -> None:
    for channel in CHANNELS if platform.name == "telegram" else ():
        platform.group(channel).is_forum = True


def _shown(platform: Any, channel: str) -> list[str]:
    """Return the bot's messages in a channel, and in the threads that it has opened there."""
    threads = () if platform.name == "slack" else platform.threads(channel)
    in_threads = [seen.visible for name in threads for seen in platform.seen(channel, name) if seen.author == "bot"]
    return [*replies(platform, channel), *in_threads]


def are_answered(platform: LoopbackPlatform, result: KillResult) -> bool:
    """Return whether each question has an answer, or several."""
    # The answer repeats the question, which begins and ends with its number.
    shown = {channel: "\n".join(_shown(platform, channel)) for channel in CHANNELS}
    unheard = _unheard(platform, result)
    owed = {number: channel for number, channel in result.questions.items() if number not in unheard}
    return all(shown[channel].count(number) >= 2 for number, channel in owed.items())


def _unheard(platform: Any, result: KillResult) -> set[str]:
    """Return the questions that no bot has acknowledged: Discord says so to their authors, and no answer is owed."""
    texts = getattr(platform, "unheard", ())
    return {number for number in result.questions if any(text.startswith(f"{number} ") for text in texts)}


def count_answers(platform: LoopbackPlatform, result: KillResult) -> None:
    """Compare what the platform shows with the questions."""
    shown = {channel: _shown(platform, channel) for channel in CHANNELS}
    everything = [reply for found in shown.values() for reply in found]
    result.orphans = sum(reply.strip() in {"…", ""} for reply in everything)
    if isinstance(platform, SlackServer):
        result.orphans += len(platform.agents.left_open)
    result.sentences = {reply for reply in everything if not any(number in reply for number in result.questions)}
    unheard = _unheard(platform, result)
    for number, channel in result.questions.items():
        holding = [reply for reply in shown[channel] if number in reply]
        if not holding:
            if number in unheard:
                result.unheard += 1
            else:
                result.lost.append(number)
        elif len(holding) > 1:
            result.twice.append(number)
        elif holding[0].count(number) != 2:
            result.torn.append(number)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    kills = 200 if scale == "full" else 2
    async with asyncio.TaskGroup() as tasks:
        names = [*PLATFORMS, "telegram-rich", "slack-streams", "discord-ask", "discord-guest"]
        results = {name: tasks.create_task(kill_repeatedly(name, kills, seed)) for name in names}
        for name in _OPENING_THREADS if scale == "short" else ():
            killed = kill_repeatedly(name, kills, seed, opens_threads=True)
            results[f"{name}, in threads"] = tasks.create_task(killed)
    for name, result in results.items():
        yield Row(name, str(result.result()), result.result().is_kept)
