"""R15: soak test of the whole bot on all platforms: answers and memory growth.

Users ask, edit, delete, regenerate and use commands; connections are cut.  Finished
messages are removed from the loopback servers soon, so that only the bot can grow.
"""

import asyncio
import random
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bot.chat.continuation import TOGETHER
from bot.domain import Action
from tests.chaos.figure import Row, Scale
from tests.chaos.processes import PLATFORMS, TIMEOUT, logged_errors, memory, remove_messages, run_bot, until
from tests.harness.platform import LoopbackPlatform, Seen
from tests.harness.platform_bench import PROFILES

NAME = "R15"

MINUTES = {"full": 20.0, "short": 0.1}
# Seconds between two events in a room; two cores manage this beside the servers.
PAUSE = {"full": 2.5, "short": 0.1}
# The same after a long question, until the next message of its author is a question of its own.
NEXT_IS_ANOTHER = TOGETHER.total_seconds() + 1.0
# Seconds between two lost connections.
CUT = 47.0
CALM = 13.0  # seconds, at least, until all platforms are connected again
ROOMS, DIRECT = 8, 2  # per platform, and how many of them are direct messages
MOST_GROWTH = 1.0  # MB in 1,000 messages
MOST_LOG = 64 << 20  # bytes

# What happens to an answered question, and how often.
FATES = {"left alone": 60, "edited": 10, "regenerated": 10, "deleted": 8, "command": 12}
# The context holds the longest question, its answer, and some history.
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
class Tally:
    """Questions and their outcome."""

    asked: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FATES, 0))
    cuts: int = 0
    is_calm: bool = True  # no connection is being cut
    delicate: int = 0  # actions in progress that no platform redelivers: edits, buttons, commands
    samples: list[tuple[int, int]] = field(default_factory=list)  # messages so far, bytes held
    longest_log: int = 0
    longest_wait: float = 0.0  # seconds for an answer, reconnects included

    @property
    def growth(self) -> float:
        """MB per 1,000 messages: slope of the least-squares line, without the first quarter."""
        settled = self.samples[len(self.samples) // 4 :]
        middle = sum(asked for asked, _ in settled) / len(settled)
        level = sum(held for _, held in settled) / len(settled)
        spread = sum((asked - middle) ** 2 for asked, _ in settled)
        return sum((asked - middle) * (held - level) for asked, held in settled) / spread / 1000 if spread else 0.0


@dataclass
class Room:
    """A channel of one platform, with one event at a time."""

    platform: LoopbackPlatform
    name: str
    is_direct: bool
    chance: random.Random
    tally: Tally
    old: set[str] = field(default_factory=set)  # ids of the messages to remove next
    former: str = ""
    has_long: bool = False  # whether the last question was so long that what follows at once belongs to it

    async def go_on(self) -> None:
        """Ask a question, wait for its outcome, then remove the previous one."""
        number = self._number()
        author = self.name if self.is_direct else self._author()
        asked = await self.platform.say(self._question(number), author=author, channel=self.name, direct=self.is_direct)
        is_answered = await self._answered(number)
        fate = self.chance.choices(list(FATES), list(FATES.values()))[0]
        if (fate == "command" and self.is_direct) or not (is_answered and self.tally.is_calm):
            fate = "left alone"
        self.tally.kinds[fate] += 1
        self.tally.delicate += fate != "left alone"
        await self._suffer(fate, number, asked, author)
        self.tally.delicate -= fate != "left alone"

    async def _suffer(self, fate: str, number: str, asked: str, author: str) -> None:
        match fate:
            case "edited":
                number, replaced = self._number(), number
                self.tally.asked += 1
                await self.platform.edit(asked, self._question(number))
                await self._answered(number)
                # The second message of an answer that became shorter is deleted a moment later.
                if not await self._seen(lambda: not self._count(replaced)):
                    self.tally.twice.append(f"{self.platform.name} {replaced}")
            case "regenerated":
                self.tally.asked += 1
                button = next(seen for seen in self._replies() if number in seen.visible and seen.actions)
                for seen in self._replies():
                    _make_stale(self.platform, seen.id)  # else the same text could not be seen to change
                await self.platform.press(button.id, Action.RETRY, author=author)
                await self._answered(number)
            case "deleted":
                await self.platform.delete(asked)
            case "command":
                self.tally.asked += 1
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
        self.tally.longest_wait = max(self.tally.longest_wait, time.monotonic() - began)
        if is_answered:
            return True
        shown = [seen.visible[:60] for seen in self._replies()]
        self.tally.lost.append(f"{self.platform.name} {self.name} {number}, where the bot says {shown[-2:]}")
        return False

    async def _seen(self, condition: Callable[[], bool]) -> bool:
        with suppress(TimeoutError):
            await until(condition, TIMEOUT)
        return condition()

    def _tidy(self, number: str) -> None:
        """Count the replies, and remove all but the last question and answer."""
        for known in {number, self.former} - {""}:
            if self._count(known) > 2:
                self.tally.twice.append(f"{self.platform.name} {known}")
        shown = {found for seen in self._replies() for found in _NUMBER.findall(seen.visible)}
        self.tally.twice += [f"{self.platform.name} {again}" for again in shown - {number, self.former}]
        remove_messages(self.platform, self.old)
        self.old = {seen.id for seen in self.platform.seen(self.name)}
        self.former = number

    def _count(self, number: str) -> int:
        # The answer echoes the question, which begins and ends with its number.
        return sum(seen.visible.count(number) for seen in self._replies())

    def _replies(self) -> list[Seen]:
        return [seen for seen in self.platform.seen(self.name) if seen.author == "bot"]

    def _number(self) -> str:
        self.tally.asked += 1
        return f"q{self.tally.asked}e"

    def _question(self, number: str) -> str:
        # A long one takes two messages on Discord.
        self.has_long = self.chance.random() < 0.05
        words = 250 if self.has_long else self.chance.randrange(1, 40)
        return f"{number} {'and so on 你好 ' * words}{number}"

    def _author(self) -> str:
        return f"p{self.chance.randrange(200)}" if self.chance.random() < 0.2 else f"m{self.chance.randrange(50)}"


def _is_whole(seen: Seen) -> bool:
    return seen.visible.strip() not in ("", "…")


def _make_stale(platform: Any, id: str) -> None:
    """Change a message on the server without an event."""
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


async def _watch(pid: int, folder: Path, tally: Tally, seconds: float) -> None:
    """Sample the memory and the length of the WAL, about a hundred times."""
    while True:
        tally.samples.append((tally.asked, memory(pid)))
        with suppress(FileNotFoundError):
            tally.longest_log = max(tally.longest_log, (folder / "bot.db-wal").stat().st_size)
        await asyncio.sleep(min(5.0, seconds / 50))


async def _cut(platforms: list[LoopbackPlatform], tally: Tally) -> None:
    while True:
        await asyncio.sleep(CUT)
        tally.is_calm = False
        await until(lambda: not tally.delicate)
        platform = platforms[tally.cuts % len(platforms)]
        await platform.disconnect(resumable=tally.cuts % 2 == 0)
        tally.cuts += 1
        await asyncio.sleep(CALM)
        await until(partial(PROFILES[platform.name].is_connected, platform))
        tally.is_calm = True


async def soak(scale: Scale, seed: int, minutes: float | None = None) -> tuple[Tally, list[str]]:
    """Run users for `minutes`; return the tally and the errors in the log."""
    tally = Tally()
    seconds = 60 * (minutes or MINUTES[scale])

    async def live(room: Room, until: float) -> None:
        clock = asyncio.get_running_loop()
        while (now := clock.time()) < until:
            await room.go_on()
            pause = NEXT_IS_ANOTHER if room.has_long else PAUSE[scale]
            await asyncio.sleep(max(0.0, now + pause - clock.time()))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with AsyncExitStack() as stack:
            platforms = {name: await stack.enter_async_context(PROFILES[name].open()) for name in PLATFORMS}
            bot = await stack.enter_async_context(run_bot(platforms, folder, SETTINGS))
            await bot.connected()
            over = asyncio.get_running_loop().time() + seconds
            beside = [
                asyncio.create_task(_watch(bot.process.pid, folder, tally, seconds)),
                asyncio.create_task(_cut(list(platforms.values()), tally)),
            ]
            try:
                async with asyncio.TaskGroup() as tasks:
                    for name, platform in platforms.items():
                        for number in range(ROOMS):
                            is_direct = number < DIRECT
                            called = f"d{number}" if is_direct else f"room{number}"
                            room = Room(platform, called, is_direct, random.Random(f"{seed} {name} {number}"), tally)
                            tasks.create_task(live(room, over))
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
            bot.process.terminate()
            code = await bot.ended(TIMEOUT)
        found = logged_errors(folder)
    return tally, found if code == 0 else [f"exit code {code}", *found]


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    tally, errors = await soak(scale, seed)
    fates = ", ".join(f"{kind} {count}" for kind, count in tally.kinds.items())
    result = (
        f"{MINUTES[scale]:g} min, {tally.asked} messages ({fates}), connections cut {tally.cuts}: "
        f"lost {len(tally.lost)} {' '.join(tally.lost[:5])}, twice {len(tally.twice)} {' '.join(tally.twice[:5])}, "
        f"longest wait {tally.longest_wait:.1f} s, errors logged {len(errors)}, memory {tally.samples[-1][1] / 1e6:.0f} MB, "
        f"growth {tally.growth:.2f} MB in 1,000 messages, longest WAL {tally.longest_log / 1e6:.1f} MB"
    )
    result += "".join(f"; {line[:300]}" for line in errors[:3])
    is_kept = not (tally.lost or tally.twice or errors) and tally.longest_log < MOST_LOG
    yield Row("the bot", result, is_kept, tally.growth < MOST_GROWTH)
