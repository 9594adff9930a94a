"""R24: edits that are refused for good from a random moment on, also across a restart.

The message exists, but its platform refuses every edit: too old, too many, not the bot's.
The bot is a process; it is killed while edits are refused, and started again.  Then each
question must have its whole answer once, or one sentence, after at most two copies of a part.
Telegram's messages cannot be looked for: one that is sent at the moment of the kill is sent again.
"""

import asyncio
import json
import math
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from bot.delivery.view import PLACEHOLDER
from tests.chaos.calls import call_of, place_of
from tests.chaos.figure import Row, Scale
from tests.chaos.processes import PLATFORMS, logged_errors, replies, run_bot, until
from tests.harness.platform_bench import PROFILES, without_spaces

NAME = "R24"

SLOW = {"SLOW_TOKENS": "0.02", "BOT_CONVERSATION__NAME_SPEAKERS": "false"}
ROOMS = {"full": 24, "short": 4}
_TIMEOUT = 600.0
# Seconds in which a bot that sends without end sends again.
_LATER_SECONDS = 3.0

# What each platform answers to every edit of a message that still exists: status, body.
REFUSALS: dict[str, list[tuple[int, Any]]] = {
    "discord": [
        (403, {"message": "Cannot edit a message authored by another user", "code": 50005}),
        (400, {"message": "Cannot execute action on a system message", "code": 50021}),
        (403, {"message": "Cannot edit this message", "code": 50146}),
        (400, {"message": "Cannot execute action on this channel type", "code": 50024}),
    ],
    "telegram": [
        (400, {"ok": False, "error_code": 400, "description": f"Bad Request: {text}"})
        for text in ("message can't be edited", "MESSAGE_EDIT_TIME_EXPIRED", "MESSAGE_AUTHOR_REQUIRED")
    ],
    "slack": [
        (200, {"ok": False, "error": code})
        for code in ("edit_window_closed", "cant_update_message", "update_failed", "as_user_not_supported")
    ],
}


@dataclass
class Room:
    """A channel, its question, and the moment from which its edits are refused."""

    name: str
    words: int
    allowed: int  # edits that still land
    refusal: tuple[int, Any]
    is_long: bool = False
    refused: int = 0
    sent: int = 0

    @property
    def question(self) -> str:
        return " ".join(f"{self.name}w{number}" for number in range(self.words))


@dataclass
class Outcome:
    """What the rooms show in the end."""

    rooms: int
    refused: int = 0
    whole: int = 0
    twice: int = 0  # on Telegram: one of them was being sent when the bot was killed
    told: int = 0
    faults: list[str] = field(default_factory=list)
    copies: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        copies = ", ".join(f"{sent} in {rooms}" for sent, rooms in sorted(self.copies.items()))
        ends = f"whole {self.whole}, twice {self.twice}, told in a sentence {self.told}"
        return (
            f"questions {self.rooms}, edits refused {self.refused}: {ends}, wrong {len(self.faults)}; messages sent: {copies}"
            + "".join(f"\n     {each}" for each in self.faults)
        )

    @property
    def is_kept(self) -> bool:
        return not self.faults and self.whole + self.twice + self.told == self.rooms


async def refuse_edits(name: str, count: int, seed: int) -> Outcome:
    """Ask in each room, refuse edits, kill the bot, start it again, and count."""
    chance = random.Random(f"{seed} {name} refused edits")
    limit = PROFILES[name].format.limit
    rooms = []
    for number in range(count):
        is_long = number % 4 == 3
        words = math.ceil(1.4 * limit / 8) if is_long and limit < 3000 else chance.randrange(20, 80)
        rooms.append(Room(f"r{number}", words, chance.randrange(5), chance.choice(REFUSALS[name]), is_long))
    outcome = Outcome(count)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with PROFILES[name].open() as platform:
            target: Any = platform
            places = {place_of(target, room.name): room for room in rooms}

            async def refuse(request: web.Request) -> web.Response | None:
                operation, channel = await call_of(name, request)
                room = places.get(channel)
                if room is None:
                    return None
                room.sent += operation == "send"
                if operation != "edit" or room.allowed > 0:
                    room.allowed -= operation == "edit"
                    return None
                room.refused += 1
                status, body = room.refusal
                # discord.py reads JSON only of exactly this type.
                return web.Response(
                    body=json.dumps(body).encode(), status=status, headers={"Content-Type": "application/json"}
                )

            target.gate.guard = refuse
            async with run_bot({name: platform}, folder, SLOW, "tests.chaos.slow_bot") as bot:
                await bot.connected()
                for room in rooms:
                    await platform.say(room.question, channel=room.name)
                share = chance.uniform(0.2, 0.8)

                def is_time() -> bool:
                    """Return whether enough edits were refused, or none can be any more: Slack's are few a minute."""
                    is_refused = sum(room.refused > 0 for room in rooms) >= share * count
                    return is_refused or (all(room.sent for room in rooms) and not _owed(folder))

                with suppress(TimeoutError):
                    await until(is_time, _TIMEOUT)
            async with run_bot({name: platform}, folder, SLOW, "tests.chaos.slow_bot") as bot:
                await bot.connected()
                with suppress(TimeoutError):
                    await until(lambda: _owed(folder) == 0, _TIMEOUT)
                await asyncio.sleep(_LATER_SECONDS)
                if owed := _owed(folder):
                    outcome.faults.append(f"{owed} exchanges are still owed")
            for room in rooms:
                _judge(room, replies(platform, room.name), outcome, can_repeat=name == "telegram")
        outcome.faults += [f"logged: {line[:300]}" for line in logged_errors(folder)[:3]]
    return outcome


def _owed(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "bot.db", timeout=30)) as database:
        found: int = database.execute(
            "SELECT count(*) FROM exchanges WHERE status NOT IN ('delivered', 'failed', 'cleared')"
        ).fetchone()[0]
    return found


def _judge(room: Room, shown: list[str], outcome: Outcome, *, can_repeat: bool) -> None:
    outcome.refused += room.refused
    outcome.copies[room.sent] += 1
    texts = [without_spaces(text) for text in shown]
    answer = without_spaces(room.question)
    parts = 2 if room.is_long else 1
    # Every word of a whole answer in order; copies that stopped growing are prefixes of it.
    whole = sum(text == answer for text in texts) or sum(
        one + two == answer for number, one in enumerate(texts) for two in texts[number + 1 :]
    )
    sentences = [text for text in shown if f"{room.name}w" not in text and text.strip() != PLACEHOLDER]
    if whole == 1:
        outcome.whole += 1
    elif whole == 2 and can_repeat:
        outcome.twice += 1
    elif whole == 0 and sentences:
        outcome.told += 1
    else:
        outcome.faults.append(f"{room.name}: {whole} whole answers, {[text[:40] for text in shown]}")
    # Two copies of each part, and the finished answer.
    if room.sent > 3 * parts:
        outcome.faults.append(f"{room.name}: {room.sent} messages sent")


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PLATFORMS:
        outcome = await refuse_edits(name, ROOMS[scale], seed)
        yield Row(name, str(outcome), outcome.is_kept)
