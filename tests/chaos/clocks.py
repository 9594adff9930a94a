"""R10: the wall clock, moved by an hour, a day and a year while limits run.

The wall clock is moved for the whole process, libraries included; monotonic time is a
manual clock.  Each limit is tested just before and just after it is due.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from bot.chat.access import Access
from bot.chat.i18n import translator
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.config.schema import AccessSection, ConversationSection, LimitsSection
from bot.delivery.pacer import Pacer
from bot.domain import ChannelKey, Kind, Usage
from bot.errors import RateLimited
from bot.storage.sql import SqlStore
from bot.util.clock import Calendar
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.messages import MEI, a_message

NAME = "R10"

_MOVES = {
    "a day forth": timedelta(days=1),
    "a day back": timedelta(days=-1),
    "an hour forth, as in spring": timedelta(hours=1),
    "an hour back, as in autumn": timedelta(hours=-1),
    "a year forth": timedelta(days=365),
}
_CHANNEL = ChannelKey("discord", "general")
_MOVED = {"bot", "discord", "slack_bolt", "slack_sdk", "telegram"}
_SAY = translator("en")


@dataclass
class Wall:
    """The offset of this process's wall clock."""

    moved: timedelta = timedelta()


@contextmanager
def movable_wall() -> Iterator[Wall]:
    """Replace the time of day in all modules while the block runs."""
    wall, real, seconds = Wall(), datetime, time.time

    class Moved(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return real.now(tz) + wall.moved

        @classmethod
        def utcnow(cls) -> Any:
            return real.now(UTC).replace(tzinfo=None) + wall.moved

    # Not for the storage package: SQLAlchemy checks the type of its dates.
    changed = [
        module
        for name, module in sys.modules.items()
        if name.partition(".")[0] in _MOVED and not name.startswith("bot.storage")
        if module.__dict__.get("datetime") is real
    ]
    time.time = lambda: seconds() + wall.moved.total_seconds()
    for module in changed:
        module.__dict__["datetime"] = Moved
    try:
        yield wall
    finally:
        time.time = seconds
        for module in changed:
            module.__dict__["datetime"] = real


@dataclass
class Tally:
    """Limits that fired early or late."""

    asked: int = 0
    wrong: list[str] = field(default_factory=list)

    def check(self, is_right: bool, limit: str) -> None:
        self.asked += 1
        if not is_right:
            self.wrong.append(limit)

    def __str__(self) -> str:
        return f"limits asked {self.asked}: early or late {len(self.wrong)} {' '.join(self.wrong)}".rstrip()


def _quotas(tally: Tally, wall: Wall, move: timedelta) -> None:
    clock = ManualClock(1000.0)
    limits = LimitsSection(requests_per_minute=1, requests_per_minute_channel=0, tokens_per_hour=10)
    access = Access(AccessSection(), limits, clock)
    message = a_message("hello", channel=_CHANNEL)
    access.refusal(message, _SAY)
    access.spend(message, Usage(5, 5))
    wall.moved = move
    for wait, is_refused in ((59.9, True), (0.2, True), (3600 - 60.2, True), (0.2, False)):
        clock.jump(wait)
        tally.check((access.refusal(message, _SAY) is not None) == is_refused, "quota")


async def _pace(tally: Tally, wall: Wall, move: timedelta) -> None:
    clock = ManualClock(1000.0)
    pacer = Pacer(lambda channel: 5.0, clock)
    at: list[float] = []

    async def call() -> None:
        at.append(clock.now())
        if len(at) == 2:
            raise RateLimited(30.0)

    await pacer.call(_CHANNEL, call)
    second = asyncio.ensure_future(pacer.call(_CHANNEL, call))
    await clock.advance(1.0)
    wall.moved = move
    await clock.advance(5.0)
    tally.check(isinstance(second.exception() if second.done() else None, RateLimited), "edit interval")
    wall.moved = timedelta()
    third = asyncio.ensure_future(pacer.call(_CHANNEL, call))
    await clock.advance(1.0)
    wall.moved = move
    await clock.run(third)
    tally.check(at == [1000.0, 1005.0, 1035.0], f"429: {at}")


async def _answer_seconds(tally: Tally, wall: Wall, move: timedelta, folder: Path) -> None:
    engine = ScriptedEngine(default=["half", asyncio.Event()])
    async with SqlStore(f"sqlite+aiosqlite:///{folder / 'answer.db'}") as store:
        access = Access(AccessSection(), LimitsSection(), ManualClock())
        intake = Intake(access, engine, store, ChatSettings(answer_seconds=0.3))
        exchange = await intake.accept(a_message("hello", channel=_CHANNEL))
        assert exchange is not None
        began = time.monotonic()
        async with intake.answers.stream(exchange) as stream:
            async for _ in stream:
                wall.moved = move
        # The upper bound only has to tell 0.3 s from an hour, on a busy machine too.
        tally.check(0.29 < time.monotonic() - began < 600.0, "answer_seconds")


async def _old_and_fresh(tally: Tally, wall: Wall, move: timedelta, folder: Path) -> None:
    """Check that fresh questions are answered and fresh texts are kept, whatever the wall clock says."""
    clock, settings = ManualClock(1000.0), ConversationSection(catch_up_minutes=60)
    engine = ScriptedEngine()
    # Taken before the move: relative to a clock that is set back, the message is from the future.
    sent = datetime.now(UTC)
    async with SqlStore(f"sqlite+aiosqlite:///{folder / 'owed.db'}") as store:
        access = Access(AccessSection(), LimitsSection(), clock)
        intake = Intake(access, engine, store, ChatSettings(settings), clock=clock)
        calendar = Calendar(clock)
        await intake.store(replace(a_message("fresh", channel=_CHANNEL), sent_at=sent))
        await intake.store(replace(a_message("old", channel=_CHANNEL), sent_at=sent - timedelta(days=3)))
        wall.moved = move
        clock.jump(60.0)
        owed = {exchange.message.text: exchange.answer for exchange in await intake.recover("discord")}
        tally.check(owed["fresh"] is None, "catch_up_minutes, fresh")
        tally.check(owed["old"] is not None, "catch_up_minutes, old")
        settled = await store.enqueue(replace(a_message("kept", author=MEI), sent_at=sent), Kind.COMMAND)
        assert settled is not None
        await store.fail(settled, "settled, so that retention applies")
        await store.expire(calendar.today() - timedelta(hours=12))
        left = await store.find(settled.message.channel, settled.message.id)
        tally.check(left is not None and left.message.text == "kept", "retention")


async def tally_of(move: timedelta) -> Tally:
    """Move the clock in the middle of each limit."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        with movable_wall() as wall:
            _quotas(tally, wall, move)
        with movable_wall() as wall:
            await _pace(tally, wall, move)
        with movable_wall() as wall:
            await _answer_seconds(tally, wall, move, Path(name))
        with movable_wall() as wall:
            await _old_and_fresh(tally, wall, move, Path(name))
    return tally


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for subject, move in _MOVES.items():
        tally = await tally_of(move)
        yield Row(subject, str(tally), not tally.wrong)
