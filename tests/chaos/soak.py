"""R15: the whole bot for a long time, on all platforms at once: what it answers, and how much memory it comes to hold.

People ask, edit, delete, have answers made anew and use commands, some of them often and
many now and then; connections are cut.  What was asked and answered is taken off the
loopback servers soon afterwards, so that only the bot can grow.
"""

import asyncio
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bot.domain import Action
from tests.chaos.figure import Row, Scale
from tests.chaos.processes import PLATFORMS, TIMEOUT, logged_errors, memory, run_bot, until
from tests.harness.platform import LoopbackPlatform, Seen
from tests.harness.platform_bench import PROFILES

NAME = "R15"

MINUTES = {"full": 20.0, "short": 0.1}
# Seconds between two things that happen in a room: two cores bear this beside the servers.
PAUSE = {"full": 2.5, "short": 0.1}
# Seconds between two lost connections.
CUT = 47.0
CALM = 13.0  # seconds after which all are connected again
ROOMS, DIRECT = 8, 2  # of each platform; so many of them are conversations of two
MOST_GROWTH = 1.0  # MB in 1,000 messages
MOST_LOG = 64 << 20  # bytes

# What happens to a question once it is answered.
FATES = {"left alone": 60, "edited": 10, "made anew": 10, "deleted": 8, "command": 12}
# A context that holds the longest question, its answer, and some history.
SETTINGS = {
    "BOT_CONVERSATION__HISTORY_TURNS": "100",
    "BOT_CONVERSATION__ANSWER_TOKENS": "1024",
    "BOT_DISCORD__EDIT_SECONDS": "0.3",
    "BOT_TELEGRAM__EDIT_INTERVAL": "0.3",
    "BOT_TELEGRAM__EDIT_INTERVAL_GROUP": "0.3",
    "BOT_SLACK__EDIT_INTERVAL": "0.3",
}

_NUMBER = re.compile(r"q\d+e")


@dataclass
class Toll:
    """What was asked, and what came of it."""

    asked: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FATES, 0))
    cuts: int = 0
    is_calm: bool = True  # no connection is cut just now
    delicate: int = 0  # how many do what no platform tells again: edits, buttons, commands
    samples: list[tuple[int, int]] = field(default_factory=list)  # messages so far, bytes held
    longest_log: int = 0
    longest_wait: float = 0.0  # seconds for an answer; a connection may have had to be made anew

    @property
    def growth(self) -> float:
        """MB in 1,000 messages, by the straight line that fits best once a quarter of the time is over."""
        settled = self.samples[len(self.samples) // 4 :]
        middle = sum(asked for asked, _ in settled) / len(settled)
        level = sum(held for _, held in settled) / len(settled)
        spread = sum((asked - middle) ** 2 for asked, _ in settled)
        return sum((asked - middle) * (held - level) for asked, held in settled) / spread / 1000 if spread else 0.0


@dataclass
class Room:
    """A channel of one platform, where one thing happens after the other."""

    platform: LoopbackPlatform
    name: str
    is_direct: bool
    chance: random.Random
    toll: Toll
    old: set[str] = field(default_factory=set)  # the ids of what may be taken away next
    former: str = ""

    async def go_on(self) -> None:
        """Ask something, and see what becomes of it; then take away what was asked before."""
        number = self._number()
        author = self.name if self.is_direct else self._somebody()
        asked = await self.platform.say(self._question(number), author=author, channel=self.name, direct=self.is_direct)
        is_answered = await self._answered(number)
        fate = self.chance.choices(list(FATES), list(FATES.values()))[0]
        if (fate == "command" and self.is_direct) or not (is_answered and self.toll.is_calm):
            fate = "left alone"
        self.toll.kinds[fate] += 1
        self.toll.delicate += fate != "left alone"
        await self._suffer(fate, number, asked, author)
        self.toll.delicate -= fate != "left alone"

    async def _suffer(self, fate: str, number: str, asked: str, author: str) -> None:
        match fate:
            case "edited":
                number, replaced = self._number(), number
                self.toll.asked += 1
                await self.platform.edit(asked, self._question(number))
                await self._answered(number)
                # The second message of an answer that became shorter is taken back a moment later.
                if not await self._seen(lambda: not self._count(replaced)):
                    self.toll.twice.append(f"{self.platform.name} {replaced}")
            case "made anew":
                self.toll.asked += 1
                button = next(seen for seen in self._replies() if number in seen.visible and seen.actions)
                for seen in self._replies():
                    _make_stale(self.platform, seen.id)  # else nobody would see the same words come anew
                await self.platform.press(button.id, Action.RETRY, author=author)
                await self._answered(number)
            case "deleted":
                await self.platform.delete(asked)
            case "command":
                self.toll.asked += 1
                before = {seen.id for seen in self._replies()}
                await self.platform.command(
                    self.chance.choice(["clear", "help", "stop"]), author=author, channel=self.name
                )
                await self._seen(lambda: any(seen.id not in before and _is_whole(seen) for seen in self._replies()))
        self._tidy(number)

    async def _answered(self, number: str) -> bool:
        def is_there() -> bool:
            if self._count(number) < 2:
                return False
            return any(Action.RETRY in seen.actions for seen in self._replies() if number in seen.visible)

        began = time.monotonic()
        is_answered = await self._seen(is_there)
        self.toll.longest_wait = max(self.toll.longest_wait, time.monotonic() - began)
        if is_answered:
            return True
        shown = [seen.visible[:60] for seen in self._replies()]
        self.toll.lost.append(f"{self.platform.name} {self.name} {number}, where the bot says {shown[-2:]}")
        return False

    async def _seen(self, condition: Callable[[], bool]) -> bool:
        with suppress(TimeoutError):
            await until(condition, TIMEOUT)
        return condition()

    def _tidy(self, number: str) -> None:
        """Count what is said, and take away all but the last question and answer."""
        for known in {number, self.former} - {""}:
            if self._count(known) > 2:
                self.toll.twice.append(f"{self.platform.name} {known}")
        shown = {found for seen in self._replies() for found in _NUMBER.findall(seen.visible)}
        self.toll.twice += [f"{self.platform.name} {again}" for again in shown - {number, self.former}]
        _take_away(self.platform, self.old)
        self.old = {seen.id for seen in self.platform.seen(self.name)}
        self.former = number

    def _count(self, number: str) -> int:
        # The answer repeats the question, which begins and ends with its number.
        return sum(seen.visible.count(number) for seen in self._replies())

    def _replies(self) -> list[Seen]:
        return [seen for seen in self.platform.seen(self.name) if seen.author == "bot"]

    def _number(self) -> str:
        self.toll.asked += 1
        return f"q{self.toll.asked}e"

    def _question(self, number: str) -> str:
        # A long one takes two messages on Discord.
        words = 250 if self.chance.random() < 0.05 else self.chance.randrange(1, 40)
        return f"{number} {'and so on 你好 ' * words}{number}"

    def _somebody(self) -> str:
        return f"p{self.chance.randrange(200)}" if self.chance.random() < 0.2 else f"m{self.chance.randrange(50)}"


def _is_whole(seen: Seen) -> bool:
    return seen.visible.strip() not in ("", "…")


def _take_away(platform: Any, ids: set[str]) -> None:
    """Let a loopback server forget messages, as if they had never been."""
    messages: dict[Any, Any] = platform.workspace.messages if platform.name == "slack" else platform.messages
    for key in [key for key in messages if str(key[1] if isinstance(key, tuple) else key) in ids]:
        del messages[key]


def _make_stale(platform: Any, id: str) -> None:
    """Let a message look different, without the bot's being told."""
    match platform.name:
        case "discord":
            platform.messages[int(id)]["content"] = "stale"
        case "telegram":
            message = platform.find(id)
            message.text, message.entities = "stale", ()
        case _:
            message = platform.workspace.messages[id]
            message.blocks = [
                {**block, "text": "stale"} if block["type"] == "markdown" else block for block in message.blocks
            ]


async def _watch(pid: int, folder: Path, toll: Toll, seconds: float) -> None:
    """Note the memory and the length of the database's log, a hundred times and more."""
    while True:
        toll.samples.append((toll.asked, memory(pid)))
        with suppress(FileNotFoundError):
            toll.longest_log = max(toll.longest_log, (folder / "bot.db-wal").stat().st_size)
        await asyncio.sleep(min(5.0, seconds / 50))


async def _cut(platforms: list[LoopbackPlatform], toll: Toll) -> None:
    while True:
        await asyncio.sleep(CUT)
        toll.is_calm = False
        await until(lambda: not toll.delicate)
        await platforms[toll.cuts % len(platforms)].disconnect(resumable=toll.cuts % 2 == 0)
        toll.cuts += 1
        await asyncio.sleep(CALM)
        toll.is_calm = True


async def soaked(scale: Scale, seed: int, minutes: float | None = None) -> tuple[Toll, list[str]]:
    """Let people talk for so long; also the log's lines that tell of a fault."""
    toll = Toll()
    seconds = 60 * (minutes or MINUTES[scale])

    async def live(room: Room, until: float) -> None:
        clock = asyncio.get_running_loop()
        while (now := clock.time()) < until:
            await room.go_on()
            await asyncio.sleep(max(0.0, now + PAUSE[scale] - clock.time()))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with AsyncExitStack() as stack:
            platforms = {name: await stack.enter_async_context(PROFILES[name].open()) for name in PLATFORMS}
            bot = await stack.enter_async_context(run_bot(platforms, folder, SETTINGS))
            await bot.connected()
            over = asyncio.get_running_loop().time() + seconds
            beside = [
                asyncio.create_task(_watch(bot.process.pid, folder, toll, seconds)),
                asyncio.create_task(_cut(list(platforms.values()), toll)),
            ]
            try:
                async with asyncio.TaskGroup() as tasks:
                    for name, platform in platforms.items():
                        for number in range(ROOMS):
                            is_direct = number < DIRECT
                            called = f"d{number}" if is_direct else f"room{number}"
                            room = Room(platform, called, is_direct, random.Random(f"{seed} {name} {number}"), toll)
                            tasks.create_task(live(room, over))
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
            bot.process.terminate()
            code = await bot.ended(10.0)
        found = logged_errors(folder)
    return toll, found if code == 0 else [f"exit code {code}", *found]


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    toll, errors = await soaked(scale, seed)
    fates = ", ".join(f"{kind} {count}" for kind, count in toll.kinds.items())
    told = (
        f"{MINUTES[scale]:g} min, {toll.asked} messages ({fates}), connections cut {toll.cuts}: "
        f"lost {len(toll.lost)} {' '.join(toll.lost[:5])}, twice {len(toll.twice)} {' '.join(toll.twice[:5])}, "
        f"longest wait {toll.longest_wait:.1f} s, errors logged {len(errors)}, memory {toll.samples[-1][1] / 1e6:.0f} MB, "
        f"growth {toll.growth:.2f} MB in 1,000 messages, longest WAL {toll.longest_log / 1e6:.1f} MB"
    )
    is_kept = not (toll.lost or toll.twice or errors) and toll.longest_log < MOST_LOG
    yield Row("the bot", told, is_kept, toll.growth < MOST_GROWTH)
