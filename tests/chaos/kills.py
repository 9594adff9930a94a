"""R1: the whole bot on a loopback platform, killed at random points while people talk to it.

Each life of the bot is a process of its own, as `bot run` starts it; people speak before,
during and after it, and it is killed (-9) at a random moment: while it starts, while it
connects, while it answers.  The last life is left alone until all is answered.  Then each
question must have one answer, whole.
"""

import asyncio
import random
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.figure import Row, Scale
from tests.chaos.processes import PLATFORMS, TIMEOUT, logged_errors, replies, run_bot, until
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import PROFILES

NAME = "R1"

CHANNELS = ("general", "random", "运维")
# A start takes about 2 s, an answer half a second.
STARTING = 2.0
ANSWERING = 1.0
# Every so many lives end while they start.
STILLBORN = 3


@dataclass
class Toll:
    """What the kills cost."""

    questions: dict[str, str] = field(default_factory=dict)  # the channel of each
    kills: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    orphans: int = 0
    errors: list[str] = field(default_factory=list)
    integrity: str = ""

    def __str__(self) -> str:
        counts = {"lost": self.lost, "answered twice": self.twice, "torn": self.torn, "errors logged": self.errors}
        told = [f"{kind} {len(found)} {' '.join(found[:5])}".rstrip() for kind, found in counts.items()]
        told += [f"left-over placeholders {self.orphans}", f"integrity {self.integrity}"]
        return f"kills {self.kills}, questions {len(self.questions)}: {', '.join(told)}"

    @property
    def is_kept(self) -> bool:
        return not (self.lost or self.twice or self.torn or self.errors) and self.integrity == "ok"


async def toll_of(name: str, kills: int, seed: int) -> Toll:
    """Kill the bot so often, and count."""
    chance = random.Random(f"{seed} {name}")
    toll = Toll()

    async def ask(platform: LoopbackPlatform, channel: str) -> None:
        number = f"q{len(toll.questions)}e"
        toll.questions[number] = channel
        await platform.say(f"{number} {'and so on 你好 ' * chance.randrange(1, 40)}{number}", channel=channel)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with PROFILES[name].open() as platform:
            platforms = {name: platform}
            # A bot that was never there before has nothing to catch up from.
            async with run_bot(platforms, folder) as bot:
                await bot.connected()
                for channel in CHANNELS:
                    await ask(platform, channel)
                await until(lambda: _are_answered(platform, toll))
            for kill in range(kills):
                toll.kills += 1
                await ask(platform, chance.choice(CHANNELS))
                async with run_bot(platforms, folder) as bot:
                    if kill % STILLBORN == 0:
                        await asyncio.sleep(chance.uniform(0.1, STARTING))
                        continue
                    await bot.connected()
                    for _ in range(3):
                        await ask(platform, chance.choice(CHANNELS))
                        await asyncio.sleep(chance.uniform(0.0, ANSWERING / 3))
            async with run_bot(platforms, folder):
                with suppress(TimeoutError):  # what is not answered by then is counted as lost
                    await until(lambda: _are_answered(platform, toll), 2 * TIMEOUT)
                await asyncio.sleep(1.0)  # an answer too many would come now
            _count(platform, toll)
        toll.errors = logged_errors(folder)
        database = sqlite3.connect(folder / "bot.db")
        toll.integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
        database.close()
    return toll


def _are_answered(platform: LoopbackPlatform, toll: Toll) -> bool:
    # The answer repeats the question, which begins and ends with its number.
    shown = {channel: "\n".join(replies(platform, channel)) for channel in CHANNELS}
    return all(shown[channel].count(number) >= 2 for number, channel in toll.questions.items())


def _count(platform: LoopbackPlatform, toll: Toll) -> None:
    shown = {channel: replies(platform, channel) for channel in CHANNELS}
    toll.orphans = sum(reply.strip() == "…" for found in shown.values() for reply in found)
    for number, channel in toll.questions.items():
        holding = [reply for reply in shown[channel] if number in reply]
        if not holding:
            toll.lost.append(number)
        elif len(holding) > 1:
            toll.twice.append(number)
        elif holding[0].count(number) != 2:
            toll.torn.append(number)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    kills = 200 if scale == "full" else 2
    async with asyncio.TaskGroup() as tasks:
        tolls = {name: tasks.create_task(toll_of(name, kills, seed)) for name in PLATFORMS}
    for name, toll in tolls.items():
        yield Row(name, str(toll.result()), toll.result().is_kept)
