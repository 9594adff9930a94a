"""R3: events that are none, through each platform's real library: wrong, torn, huge, doubled.

Real events with one to three things wrong in them (a field gone, a null, a list, a wrong
type, half an emoji, a megabyte), and frames that hold no event.  Among them people ask
real questions, each of which must have one answer; nothing may end a task with an error
that nobody expected, and nothing of the junk may stand in a log.
"""

import asyncio
import random
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bot.chat.access import Access
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.config.schema import AccessSection, ConversationSection
from bot.domain import ChatRequest
from bot.storage.sql import SqlStore
from bot.util.clock import MonotonicClock
from tests.chaos import replies
from tests.chaos.figure import Row, Scale
from tests.chaos.hostile_events import HOSTILE, Besieger, people_talk, wrong
from tests.chaos.junk import MARK, huge
from tests.chaos.leak_check import Witness, a_witness
from tests.harness.fakes.clock import FastClock
from tests.harness.fakes.engine import ScriptedEngine
from tests.harness.harness import NO_LIMITS
from tests.harness.platform_bench import PROFILES, TrackedExchanges

NAME = "R3"

CHANNELS = ("general", "random", "运维")
_COUNTS: dict[Scale, int] = {"full": 10_000, "short": 150}
_BATCH = 250
# Of all events; each is a megabyte.
_HUGE = 0.005
_QUESTION = re.compile(r"\bq\d+e\b")


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    """Two rows per platform: what comes in, and what goes out."""
    for name in HOSTILE:
        yield await besieged(name, _COUNTS[scale], seed)
    async for row in replies.rows(scale, seed):
        yield row


async def besieged(name: str, count: int, seed: int) -> Row:
    """Send so many wrong events to the bot, and real questions among them."""
    chance = random.Random(f"{seed} {name}")
    questions: list[str] = []
    unanswered: list[str] = []
    raws = 0

    async with a_bot(name) as (platform, exchanges, witness, adapter):
        await people_talk(platform)
        templates = platform.real

        async def ask() -> None:
            """Ask in each channel, and wait until all are answered."""
            asked = [f"q{len(questions) + number}e" for number in range(len(CHANNELS))]
            questions.extend(asked)
            for question, channel in zip(asked, CHANNELS, strict=True):
                await platform.say(question, author=f"Asker {question[1:-1]}", channel=channel)
            for question in asked:
                either: list[asyncio.Future[Any]] = [exchanges.finished(question), adapter]
                await asyncio.wait(either, timeout=60.0, return_when=asyncio.FIRST_COMPLETED)
            unanswered.extend(each for each in asked if not exchanges.finished(each).done())

        sent = 0
        for sent in range(1, count + 1):
            if chance.random() < platform.raw_share:
                raws += 1
                await platform.send_raw(chance)
            elif chance.random() < _HUGE:
                await platform.send_wrong(_with(chance.choice(templates), huge(chance)))
            else:
                await platform.send_wrong(wrong(platform, templates, chance))
            if sent % _BATCH == 1 + _BATCH // 2:
                await ask()
                if unanswered or adapter.done():
                    break
        await ask()
        texts = platform.texts()
        has_ended = adapter.done()
        if has_ended and adapter.exception() is not None:
            witness.unhandled.append(f"the adapter ended: {adapter.exception()!r}")
    shown = [found for said in texts for found in _QUESTION.findall(said)]
    lost = [question for question in questions if shown.count(question) == 0]
    twice = [question for question in questions if shown.count(question) > 1]
    crashes, leaks = witness.crashes, witness.leaks(MARK)
    told = (
        f"{sent:,} events ({raws} raw), {len(questions)} questions among them: lost {len(lost)}, late {len(unanswered)}, "
        f"answered twice {len(twice)}, crashes {crashes.total() + has_ended}, unhandled {len(witness.unhandled)}, "
        f"lines of log with junk {len(leaks)}"
    )
    for why in [*crashes.most_common(5), *witness.unhandled[:5], *leaks[:5]]:
        told += f"\n     {str(why)[:300]}"
    return Row(name, told, not (lost or unanswered or twice or crashes or has_ended or witness.unhandled or leaks))


@asynccontextmanager
async def a_bot(
    name: str,
) -> AsyncIterator[tuple[Besieger, TrackedExchanges, Witness, asyncio.Task[None]]]:
    """The bot with a quick clock on a platform that besieges it."""
    clock = FastClock(500.0)
    engine = ScriptedEngine(default=_answer, max_batch_size=64, max_waiting=1_000_000)
    with tempfile.TemporaryDirectory() as folder, a_witness() as witness:
        async with HOSTILE[name]() as platform, SqlStore(f"sqlite+aiosqlite:///{Path(folder) / 'bot.db'}") as store:
            exchanges = TrackedExchanges(store, MonotonicClock())
            settings = ChatSettings(ConversationSection(history_turns=0, catch_up_minutes=10_000_000))
            access = Access(AccessSection(), NO_LIMITS, clock)
            intake = Intake(access, engine, store, settings, exchanges=exchanges)
            adapter = asyncio.create_task(platform.adapter(clock).run(intake))
            try:
                await platform.until(lambda: PROFILES[name].is_connected(platform) or adapter.done())
                yield platform, exchanges, witness, adapter
            finally:
                adapter.cancel()
                await asyncio.gather(adapter, return_exceptions=True)


def _answer(request: ChatRequest) -> str:
    return " ".join(["ok", *_QUESTION.findall(request.messages[-1].content)])


def _with(event: object, words: str) -> object:
    """The event with all its texts so long."""
    match event:
        case dict():
            return {
                key: words if key in ("content", "text") and isinstance(value, str) else _with(value, words)
                for key, value in event.items()
            }
        case list():
            return [_with(each, words) for each in event]
        case _:
            return event
