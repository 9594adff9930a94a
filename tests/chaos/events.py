"""R3: malformed, oversized and duplicate events through each platform's library.

Real events with one to three faults (a missing field, null, a list, a wrong type, half an
emoji, a megabyte), and frames that are not events.  Among them are real questions, each of
which must get one answer.  No task may end with an unexpected error, and no junk may
appear in a log.
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
from tests.chaos.hostile_events import HOSTILE, HostilePlatform, malformed, send_every_kind
from tests.chaos.junk import MARK, huge
from tests.chaos.leak_check import LeakCheck, leak_check
from tests.harness.fakes.clock import FastClock
from tests.harness.fakes.engine import ScriptedEngine
from tests.harness.harness import NO_LIMITS
from tests.harness.loop_monitor import start_bot
from tests.harness.platform_bench import PROFILES, TrackedExchanges

NAME = "R3"

CHANNELS = ("general", "random", "运维")
_COUNTS: dict[Scale, int] = {"full": 10_000, "short": 150}
_BATCH = 250
# Share of all events; each has a megabyte.
_HUGE = 0.005
_QUESTION = re.compile(r"\bq\d+e\b")


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    """Yield two rows per platform: incoming events and outgoing replies."""
    for name in HOSTILE:
        yield await with_hostile_events(name, _COUNTS[scale], seed)
    async for row in replies.rows(scale, seed):
        yield row


async def with_hostile_events(name: str, count: int, seed: int) -> Row:
    """Send `count` malformed events to the bot, and real questions among them."""
    chance = random.Random(f"{seed} {name}")
    questions: list[str] = []
    unanswered: list[str] = []
    raws = 0

    async with hostile_bot(name) as (platform, exchanges, check, adapter):
        await send_every_kind(platform)
        templates = platform.real

        async def ask() -> None:
            """Ask in each channel, and wait for all answers."""
            asked = [f"q{len(questions) + number}e" for number in range(len(CHANNELS))]
            questions.extend(asked)
            for question, channel in zip(asked, CHANNELS, strict=True):
                await platform.say(question, author=f"Asker {question[1:-1]}", channel=channel)
            for question in asked:
                either: list[asyncio.Future[Any]] = [exchanges.finished(question), adapter]
                await asyncio.wait(either, timeout=600.0, return_when=asyncio.FIRST_COMPLETED)
            unanswered.extend(each for each in asked if not exchanges.finished(each).done())

        sent = 0
        for sent in range(1, count + 1):
            if chance.random() < platform.raw_share:
                raws += 1
                await platform.send_raw(chance)
            elif chance.random() < _HUGE:
                await platform.send_wrong(_with(chance.choice(templates), huge(chance)))
            else:
                await platform.send_wrong(malformed(platform, templates, chance))
            if sent % _BATCH == 1 + _BATCH // 2:
                await ask()
                if unanswered or adapter.done():
                    break
        await ask()
        texts = platform.texts()
        has_ended = adapter.done()
        if has_ended and adapter.exception() is not None:
            check.unhandled.append(f"the adapter ended: {adapter.exception()!r}")
    shown = [found for said in texts for found in _QUESTION.findall(said)]
    lost = [question for question in questions if shown.count(question) == 0]
    twice = [question for question in questions if shown.count(question) > 1]
    crashes, leaks = check.crashes, check.leaks(MARK)
    result = (
        f"{sent:,} events ({raws} raw), {len(questions)} questions among them: lost {len(lost)}, late {len(unanswered)}, "
        f"answered twice {len(twice)}, crashes {crashes.total() + has_ended}, unhandled {len(check.unhandled)}, "
        f"lines of log with junk {len(leaks)}"
    )
    for why in [*crashes.most_common(5), *check.unhandled[:5], *leaks[:5]]:
        result += f"\n     {str(why)[:300]}"
    return Row(name, result, not (lost or unanswered or twice or crashes or has_ended or check.unhandled or leaks))


@asynccontextmanager
async def hostile_bot(
    name: str,
) -> AsyncIterator[tuple[HostilePlatform, TrackedExchanges, LeakCheck, asyncio.Task[None]]]:
    """Run the bot with a fast clock on a hostile platform."""
    clock = FastClock(500.0)
    engine = ScriptedEngine(default=_answer, max_batch_size=64, max_waiting=1_000_000)
    with tempfile.TemporaryDirectory() as folder, leak_check() as check:
        async with HOSTILE[name]() as platform, SqlStore(f"sqlite+aiosqlite:///{Path(folder) / 'bot.db'}") as store:
            settings = ChatSettings(ConversationSection(history_turns=0, catch_up_minutes=10_000_000))
            access, exchanges = Access(AccessSection(), NO_LIMITS, clock), TrackedExchanges(store, MonotonicClock())
            intake = Intake(access, engine, store, settings, exchanges=exchanges)
            adapter = start_bot(platform.adapter(clock).run(intake), lambda: PROFILES[name].is_connected(platform))
            try:
                await platform.until(lambda: PROFILES[name].is_connected(platform) or adapter.done())
                yield platform, exchanges, check, adapter
            finally:
                adapter.cancel()
                await asyncio.gather(adapter, return_exceptions=True)


def _answer(request: ChatRequest) -> str:
    return " ".join(["ok", *_QUESTION.findall(request.messages[-1].content)])


def _with(event: object, words: str) -> object:
    """Return the event with all its texts replaced by an equal share of the words."""
    share = words[: len(words) // max(1, _texts(event))]
    return _replaced(event, share)


def _texts(event: object) -> int:
    """Return the number of texts in an event."""
    match event:
        case dict():
            return sum(1 if _is_text(key, value) else _texts(value) for key, value in event.items())
        case list():
            return sum(map(_texts, event))
        case _:
            return 0


def _replaced(event: object, words: str) -> object:
    match event:
        case dict():
            return {key: words if _is_text(key, value) else _replaced(value, words) for key, value in event.items()}
        case list():
            return [_replaced(each, words) for each in event]
        case _:
            return event


def _is_text(key: str, value: object) -> bool:
    return key in ("content", "text") and isinstance(value, str)
