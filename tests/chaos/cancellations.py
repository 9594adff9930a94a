"""R4: tasks cancelled at random moments: inside the store's methods, while messages are accepted, while replies grow.

Afterwards another process must get the lock at once, and every row must stand in a state
that it may be in, its texts whole.
"""

import asyncio
import random
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from bot.domain import Answer, ChannelKey, ChatRequest, Exchange, IncomingMessage, Kind
from tests.chaos.faults import locked_by_another
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import NO_LIMITS, Harness, make_harness
from tests.harness.messages import MEI, NOON, a_message

NAME = "R4"

_CHANNELS = tuple(ChannelKey("discord", f"c{number}") for number in range(6))
# Long enough for several pages of the database: a row that is torn would show.
_TEXT = "一些文字 and words " * 400
# Cancelled after at most so many turns of the event loop and so many seconds.
_TURNS, _SECONDS = 40, 0.03
_AT_ONCE = 8

# By status: whether there is an answer, and whether there is a question.
_ALLOWED = {
    "open": (False, True),
    "answered": (True, True),
    "delivered": (True, True),
    "failed": (None, True),
    "cleared": (False, False),
}


@dataclass
class Toll:
    """What the cancellations cost."""

    tasks: int = 0
    cancelled: int = 0
    stuck: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    integrity: str = ""

    def __str__(self) -> str:
        return (
            f"tasks {self.tasks:,}, cancelled in the middle {self.cancelled:,}: stuck locks {len(self.stuck)}, "
            f"torn rows {len(self.torn)}, other errors {len(self.failed)}, integrity {self.integrity}"
        )

    @property
    def is_kept(self) -> bool:
        return not (self.stuck or self.torn or self.failed) and self.integrity == "ok"


def _message(number: int, chance: random.Random) -> IncomingMessage:
    text = "/clear" if number % 41 == 0 else f"q{number} {_TEXT}q{number}"
    return a_message(text, id=f"m{number}", channel=chance.choice(_CHANNELS))


def _answer(request: ChatRequest) -> list[str]:
    return ["A ", _TEXT, " Z"]


def _work(
    harness: Harness, chance: random.Random, number: int, known: list[Exchange]
) -> Callable[[], Awaitable[object]]:
    """Something that somebody may be doing when they are cancelled."""
    store, some = harness.store, chance.choice(known)
    channel = some.message.channel

    async def replied() -> None:
        exchange = await harness.intake.accept(_message(number, chance))
        if exchange is None:
            return
        known.append(exchange)
        try:
            async with harness.intake.answers.stream(exchange) as events:
                async for _ in events:
                    await asyncio.sleep(0)
            await harness.exchanges.complete(exchange)
        finally:
            harness.exchanges.release(exchange)

    def begun() -> Awaitable[object]:
        return store.enqueue(_message(number, chance), Kind.CHAT)

    return chance.choice(
        [
            replied,
            replied,
            replied,
            begun,
            lambda: store.record_part(some, 0, f"p{number}"),
            lambda: store.record_answer(some, Answer(f"A {_TEXT} Z")),
            lambda: store.complete(some),
            lambda: store.fail(some, "gone"),
            lambda: store.requeue(some),
            lambda: store.history(some, 20),
            lambda: store.find(channel, some.message.id),
            lambda: store.find_by_reply(channel, "p1"),
            lambda: store.has_history(channel),
            lambda: store.latest(channel, MEI),
            lambda: store.claim_owed("discord"),
            lambda: store.last_message_ids("discord"),
            *([lambda: store.erase(some)] if number % 3 == 0 else []),
            *([lambda: store.clear(channel)] if number % 11 == 0 else []),
            *([lambda: store.forget(MEI)] if number % 61 == 0 else []),
            *([lambda: store.expire(NOON - timedelta(days=1))] if number % 7 == 0 else []),
            *([lambda: store.rename_channel(channel, channel.channel)] if number % 53 == 0 else []),
        ]
    )


async def _cancelled(work: Callable[[], Awaitable[object]], chance: random.Random) -> bool:
    """Begin it and cancel it somewhere; whether that came before its end."""
    task = asyncio.ensure_future(work())
    if chance.random() < 0.5:
        for _ in range(chance.randrange(_TURNS)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(chance.uniform(0, _SECONDS))
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
    return task.cancelled()


async def toll_of(cancellations: int, seed: int) -> Toll:
    """Cancel so many tasks in the middle, look for stuck locks now and then, and at the end at every row."""
    chance, toll = random.Random(seed), Toll()
    engine = ScriptedEngine(default=_answer, context_length=10_000_000, max_waiting=10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with make_harness(folder, engine, limits=NO_LIMITS) as harness:
            first = await harness.accept(a_message("first", channel=_CHANNELS[0]))
            harness.exchanges.release(first)
            known = [first]
            while toll.cancelled < cancellations:
                works = [_work(harness, chance, toll.tasks + extra, known) for extra in range(_AT_ONCE)]
                toll.tasks += _AT_ONCE
                ends = await asyncio.gather(*(_cancelled(work, chance) for work in works), return_exceptions=True)
                toll.cancelled += sum(end is True for end in ends)
                toll.failed += [repr(end) for end in ends if isinstance(end, BaseException)]
                if toll.tasks % 400 == 0:
                    await _look_for_locks(toll, harness, folder)
            await _look_for_locks(toll, harness, folder)
        _count(toll, folder)
    return toll


async def _look_for_locks(toll: Toll, harness: Harness, folder: Path) -> None:
    """Both the bot and another process must get the database, and soon."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(30):
            await harness.store.enqueue(a_message(f"look {toll.tasks}"), Kind.CHAT)
            async with locked_by_another(folder / "bot.db"):
                pass
    except (TimeoutError, AssertionError) as error:
        toll.stuck.append(f"after {toll.tasks} tasks, {time.monotonic() - began:.1f} s: {error!r}")


def _count(toll: Toll, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "bot.db")) as database:
        toll.integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
        rows = database.execute("SELECT id, status, text, answer, reason, author FROM exchanges").fetchall()
    for id, status, text, answer, reason, author in rows:
        has_answer, has_question = _ALLOWED[status]
        mark = text.partition(" ")[0]
        is_whole = text in ("", "/clear", "first") or mark == "look" or text == f"{mark} {_TEXT}{mark}"
        is_answer_whole = not answer or answer == f"A {_TEXT} Z"
        is_allowed = has_answer is None or has_answer == (reason is not None)
        if not (is_whole and is_answer_whole and is_allowed and has_question == bool(author)):
            toll.torn.append(f"row {id}: {status}, text of {len(text)}, answer {answer and len(answer)}, {reason}")


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    toll = await toll_of(2000 if scale == "full" else 150, seed)
    yield Row("store", str(toll), toll.is_kept)
