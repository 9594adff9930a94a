"""R1: the whole bot on a loopback platform, killed at random points while people talk to it.

Each life of the bot is a process of its own, as `bot run` starts it; people speak before,
during and after it, and it is killed (-9) at a random moment.  The last life is left alone
until all is answered.  Then each question must have one answer, whole.
"""

import asyncio
import os
import random
import signal
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from bot.config import AdapterSection, variable
from tests.adapters.platform import LoopbackPlatform
from tests.adapters.servers.discord import DiscordPlatform
from tests.adapters.servers.slack import SlackServer
from tests.adapters.servers.telegram import TelegramPlatform
from tests.reliability.figure import Row, Scale

NAME = "R1"

ROOT = Path(__file__).parents[2]
PLATFORMS: dict[str, Callable[[], LoopbackPlatform]] = {
    "discord": DiscordPlatform,
    "telegram": TelegramPlatform,
    "slack": SlackServer,
}
CONNECTED: dict[str, Callable[[Any], bool]] = {
    "discord": lambda platform: platform.is_connected,
    "telegram": lambda platform: platform.polls > 1,
    "slack": lambda platform: platform.sockets > 0,
}
CHANNELS = ("general", "random", "运维")
# Intervals so short that a life of a second has many calls in it.
QUICK = {"edit_seconds": "0.05", "edit_interval": "0.05", "edit_interval_group": "0.05"}
PATIENCE = 40.0


@dataclass
class Toll:
    """What the kills cost."""

    questions: dict[str, str] = field(default_factory=dict)  # the channel of each
    lives: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    orphans: int = 0
    integrity: str = ""

    def __str__(self) -> str:
        counts = {"lost": self.lost, "answered twice": self.twice, "torn": self.torn}
        told = [f"{kind} {len(numbers)} {' '.join(numbers)}".rstrip() for kind, numbers in counts.items()]
        told += [f"left-over placeholders {self.orphans}", f"integrity {self.integrity}"]
        return f"kills {self.lives}, questions {len(self.questions)}: {', '.join(told)}"

    @property
    def is_passed(self) -> bool:
        return not (self.lost or self.twice or self.torn) and self.integrity == "ok"


def environment(settings: AdapterSection, name: str, folder: Path) -> dict[str, str]:
    """The settings as an operator gives them; nothing else of this process's."""
    given = {key: value for key, value in os.environ.items() if not key.startswith("BOT_")}
    given |= {
        "PYTHONPATH": str(ROOT),
        "BOT_ENGINE__BACKEND": "echo",
        "BOT_STORAGE__URL": f"sqlite+aiosqlite:///{folder / 'bot.db'}",
        "BOT_OPERATIONS__PORT": "0",
        "BOT_LIMITS__REQUESTS_PER_MINUTE": "0",
        "BOT_LIMITS__REQUESTS_PER_MINUTE_CHANNEL": "0",
        "BOT_CONVERSATION__HISTORY_TURNS": "0",
        # The servers' clocks stand still, somewhere in the past.
        "BOT_CONVERSATION__CATCH_UP_MINUTES": "10000000",
    }
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        if value is None:
            continue
        text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        given[variable(("adapters", name, key))] = QUICK.get(key, text)
    return given


@asynccontextmanager
async def a_life(settings: AdapterSection, name: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The bot as a process, which is killed at the end if it still lives."""
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bot",
            "run",
            cwd=folder,
            env=environment(settings, name, folder),
            stderr=log,
            stdout=log,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
            await process.wait()


async def toll_of(name: str, kills: int, seed: int) -> Toll:
    """Kill the bot so often, and count."""
    chance = random.Random(seed)
    toll = Toll()

    async def ask(platform: LoopbackPlatform, channel: str) -> None:
        number = f"q{len(toll.questions)}e"
        toll.questions[number] = channel
        await platform.say(f"{number} {'and so on 你好 ' * chance.randrange(1, 40)}{number}", channel=channel)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with PLATFORMS[name]() as platform:
            settings: Any = platform.settings()  # type: ignore[attr-defined]  # each loopback platform has them
            # A bot that was never there before has nothing to catch up from.
            async with a_life(settings, name, folder):
                await platform.until(lambda: CONNECTED[name](platform), PATIENCE)
                for channel in CHANNELS:
                    await ask(platform, channel)
                await platform.until(lambda: _answered(platform, toll), PATIENCE)
            for _ in range(kills):
                toll.lives += 1
                await ask(platform, chance.choice(CHANNELS))
                async with a_life(settings, name, folder):
                    # Some die while they start, some connect, some answer.
                    await asyncio.sleep(chance.uniform(0.5, 4.0))
                    for _ in range(3):
                        await ask(platform, chance.choice(CHANNELS))
                        await asyncio.sleep(chance.uniform(0.0, 0.3))
            async with a_life(settings, name, folder):
                with suppress(TimeoutError):  # what is not answered by then is counted as lost
                    await platform.until(lambda: _answered(platform, toll), PATIENCE)
                await asyncio.sleep(1.0)  # an answer too many would come now
            _count(platform, toll)
        database = sqlite3.connect(folder / "bot.db")
        toll.integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
        database.close()
    return toll


def _replies(platform: LoopbackPlatform, channel: str) -> list[str]:
    own = [seen.visible for seen in platform.seen(channel) if seen.author == "bot"]
    threads = getattr(platform, "threads", None)
    if threads is not None:
        own += [
            seen.visible
            for thread in threads(channel)
            for seen in platform.seen(channel, thread)
            if seen.author == "bot"
        ]
    return own


def _answered(platform: LoopbackPlatform, toll: Toll) -> bool:
    shown = {channel: "\n".join(_replies(platform, channel)) for channel in CHANNELS}
    return all(shown[channel].count(number) >= 2 for number, channel in toll.questions.items())


def _count(platform: LoopbackPlatform, toll: Toll) -> None:
    for channel in CHANNELS:
        replies = _replies(platform, channel)
        toll.orphans += sum(reply.strip() == "…" for reply in replies)
        for number, asked_in in toll.questions.items():
            if asked_in != channel:
                continue
            # The answer repeats the question, which begins and ends with its number.
            holding = [reply for reply in replies if number in reply]
            if not holding:
                toll.lost.append(number)
            elif len(holding) > 1:
                toll.twice.append(number)
            elif holding[0].count(number) != 2:
                toll.torn.append(number)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PLATFORMS:
        toll = await toll_of(name, 200 if scale == "full" else 3, seed)
        yield Row(name, str(toll), toll.is_passed)
