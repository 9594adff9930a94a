"""R4: tasks cancelled at random moments: in the store's methods, in intake, in streaming replies.

Afterwards another process must get the lock at once, and every row must have a legal status
and complete texts.
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
from bot.storage.schema import exchanges
from tests.chaos.faults import locked_by_another
from tests.chaos.figure import Row, Scale
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import NO_LIMITS, Harness, make_harness
from tests.harness.messages import MEI, NOON, a_message
from tests.storage import decrypted_rows, url_of

NAME = "R4"

_CHANNELS = tuple(ChannelKey("discord", f"c{number}") for number in range(6))
# Long enough for several pages of the database, so that a torn row is detected.
_TEXT = "一些文字 and words " * 400
# A task is cancelled after at most this number of loop iterations, or this time in seconds.
_ITERATIONS, _SECONDS = 40, 0.03
_CONCURRENCY = 8

# By status: has an answer (None: either), has a question.
_ALLOWED = {
    "open": (False, True),
    "answered": (True, True),
    "delivered": (True, True),
    "failed": (None, True),
    "cleared": (False, False),
}


@dataclass
class CancellationResult:
    """Consequences of the cancellations."""

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


def _random_work(
    harness: Harness, chance: random.Random, number: int, known: list[Exchange]
) -> Callable[[], Awaitable[object]]:
    """Return a random operation to cancel."""
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


async def _cancel(work: Callable[[], Awaitable[object]], chance: random.Random) -> bool:
    """Start the work and cancel it at a random point; return False if it ended before that."""
    task = asyncio.ensure_future(work())
    if chance.random() < 0.5:
        for _ in range(chance.randrange(_ITERATIONS)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(chance.uniform(0, _SECONDS))
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
    return task.cancelled()


async def cancel_tasks(cancellations: int, seed: int) -> CancellationResult:
    """Cancel this number of tasks, check regularly for stuck locks, and at the end every row."""
    chance, result = random.Random(seed), CancellationResult()
    engine = ScriptedEngine(default=_answer, context_length=10_000_000, max_waiting=10_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with make_harness(folder, engine, limits=NO_LIMITS) as harness:
            first = await harness.accept(a_message("first", channel=_CHANNELS[0]))
            harness.exchanges.release(first)
            known = [first]
            while result.cancelled < cancellations:
                works = [_random_work(harness, chance, result.tasks + extra, known) for extra in range(_CONCURRENCY)]
                result.tasks += _CONCURRENCY
                outcomes = await asyncio.gather(*(_cancel(work, chance) for work in works), return_exceptions=True)
                result.cancelled += sum(outcome is True for outcome in outcomes)
                result.failed += [repr(outcome) for outcome in outcomes if isinstance(outcome, BaseException)]
                if result.tasks % 400 == 0:
                    await _check_locks(result, harness, folder)
            await _check_locks(result, harness, folder)
        _check_rows(result, folder)
    return result


async def _check_locks(result: CancellationResult, harness: Harness, folder: Path) -> None:
    """Check that the bot and another process get the database within seconds."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(600):
            await harness.store.enqueue(a_message(f"look {result.tasks}"), Kind.CHAT)
            async with locked_by_another(folder / "bot.db"):
                pass
    except (TimeoutError, AssertionError) as error:
        result.stuck.append(f"after {result.tasks} tasks, {time.monotonic() - began:.1f} s: {error!r}")


def _check_rows(result: CancellationResult, folder: Path) -> None:
    with closing(sqlite3.connect(folder / "bot.db")) as database:
        result.integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
    for row in decrypted_rows(url_of(folder / "bot.db"), exchanges):
        id, status, text, answer = row["id"], row["status"], row["text"], row["answer"]
        has_answer, has_question = _ALLOWED[status]
        mark = text.partition(" ")[0]
        is_whole = text in ("", "/clear", "first") or mark == "look" or text == f"{mark} {_TEXT}{mark}"
        is_answer_whole = not answer or answer == f"A {_TEXT} Z"
        is_allowed = has_answer is None or has_answer == (row["reason"] is not None)
        if not (is_whole and is_answer_whole and is_allowed and has_question == bool(row["author_id"])):
            result.torn.append(
                f"row {id}: {status}, text of {len(text)}, answer {answer and len(answer)}, {row['reason']}"
            )


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    result = await cancel_tasks(2000 if scale == "full" else 150, seed)
    yield Row("store", str(result), result.is_kept)
