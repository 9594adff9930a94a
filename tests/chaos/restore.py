"""R18: the database rolled back to a copy of a random moment, or lost, while users write.

The bot runs with its real adapter; users ask questions, some answers have several messages.
At a random moment the database is copied.  The bot goes on, is stopped at a random moment,
and starts again on the copy, or in some rounds on a new database.  Questions asked while it
was stopped, and those that it had not answered, must get exactly one answer; no message of
an old answer may change or be deleted.

Telegram's history cannot be read, nor can Slack's channels that a new database does not know:
there, what was open at the copy or came after it may be answered twice or not at all, and is
counted; nothing else may.

A failure names its seed; python -m tests.chaos.restore PLATFORM SEED repeats that workspace alone.
"""

import argparse
import asyncio
import logging
import random
import re
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import structlog

from bot.chat.access import Access
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.config.schema import AccessSection, ConversationSection
from bot.domain import Action, ChatRequest
from bot.storage.key_file import path_beside
from bot.storage.sql import SqlStore
from tests.chaos.figure import Row, Scale
from tests.harness.fakes.clock import FastClock
from tests.harness.fakes.engine import AnswerScript, ScriptedEngine
from tests.harness.harness import NO_LIMITS
from tests.harness.platform import LoopbackPlatform, Seen
from tests.harness.platform_bench import PROFILES
from tests.harness.servers.telegram import UNCHANGED

NAME = "R18"

CHANNELS = ("general", "random", "运维")
_COUNTS: dict[Scale, int] = {"full": 200, "short": 4}
_FACTOR = 100.0
# Seconds for all answers of a start; on a new database each old one is adopted first.
_TIMEOUT = 600.0
# Every so many rounds the database is lost instead of rolled back.
_LOST_EVERY = 4
_QUESTION = re.compile(r"\bq\d+e\b")
_END = re.compile(r"\b(?P<begun>q\d+e) begins|\bends (?P<ended>q\d+e)\b")
# Questions of a round: before the copy, after it, and while the bot is stopped.
_QUESTIONS = 3
# Rounds on one workspace, whose history each start reads.
_ROUNDS = 10
# A disk's waiting times test nothing here.
_MEMORY = Path("/dev/shm")
# Seconds of a moment's uncertainty: an answer takes about a tenth of a second.
_MOMENT = 0.15


@dataclass
class RestoreResult:
    """Counts after all rounds."""

    rollbacks: int = 0
    new: int = 0
    questions: dict[str, str] = field(default_factory=dict)  # the channel of each
    overwritten: list[str] = field(default_factory=list)  # or deleted
    twice: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    excused: set[str] = field(default_factory=set)  # open at the copy or later, where nothing can be read
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        unknown = (self.twice | self.lost) & self.excused
        counts = {
            "overwritten": self.overwritten,
            "answered twice": self.twice - self.excused,
            "lost": self.lost - self.excused,
        }
        found = [f"{kind} {len(each)} {' '.join(sorted(each)[:5])}".rstrip() for kind, each in counts.items()]
        text = f"rollbacks {self.rollbacks} ({self.new} to a new database), questions {len(self.questions)}: "
        if unknown:
            found.append(f"open at the copy or later, and not readable: {len(unknown)} twice or lost")
        return text + ", ".join([*found, f"violations {len(self.violations)}"])

    @property
    def is_kept(self) -> bool:
        return not (self.overwritten or (self.twice | self.lost) - self.excused or self.violations)

    def add(self, other: "RestoreResult", seed: int) -> None:
        """Add the counts of another workspace; its questions are named after its seed."""
        tag = f"{seed}:"
        self.rollbacks += other.rollbacks
        self.new += other.new
        self.questions |= {tag + number: channel for number, channel in other.questions.items()}
        self.overwritten += [tag + id for id in other.overwritten]
        self.twice |= {tag + number for number in other.twice}
        self.lost |= {tag + number for number in other.lost}
        self.excused |= {tag + number for number in other.excused}
        self.violations += other.violations


def _answer(request: ChatRequest) -> AnswerScript:
    (number,) = _QUESTION.findall(request.messages[-1].content)
    is_long = int(number[1:-1]) % 5 == 0
    words = "some words 一些文字 " * (250 if is_long else 3)
    return [f"{number} begins. ", words, f"ends {number}"]


async def roll_back(name: str, rounds: int, seed: int) -> RestoreResult:
    """Roll the database back `rounds` times, then count the answers."""
    chance = random.Random(f"{seed} {name}")
    result = RestoreResult()
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.exists() else None) as temporary:
        folder = Path(temporary)
        async with PROFILES[name].open() as platform:
            for round in range(rounds):
                if round % _LOST_EVERY == 0:
                    # A backfill needs a known message in each channel.
                    async with _running(name, platform, folder):
                        for channel in CHANNELS:
                            await _ask(platform, result, channel)
                        await _until_answered(platform, result)
                is_new = round % _LOST_EVERY == _LOST_EVERY - 1
                await _round(name, platform, folder, chance, result, is_new=is_new)
            result.violations = [each for each in platform.violations if each != UNCHANGED]
            _count(platform, result)
    return result


async def _round(
    name: str, platform: LoopbackPlatform, folder: Path, chance: random.Random, result: RestoreResult, *, is_new: bool
) -> None:
    async with _running(name, platform, folder):
        for _ in range(_QUESTIONS):
            await _ask(platform, result, chance.choice(CHANNELS))
            await asyncio.sleep(chance.uniform(0.0, _MOMENT))
        settled = {number for number, counts in _counts(platform, result).items() if min(counts) > 0}
        _copy(folder / "bot.db", folder / "copy.db")
        for _ in range(_QUESTIONS):
            await _ask(platform, result, chance.choice(CHANNELS))
            await asyncio.sleep(chance.uniform(0.0, _MOMENT))
    result.rollbacks += 1
    result.new += is_new
    for suffix in ("", "-wal", "-shm"):
        (folder / f"bot.db{suffix}").unlink(missing_ok=True)
    if not is_new:
        (folder / "copy.db").rename(folder / "bot.db")
        path_beside(folder / "copy.db").rename(path_beside(folder / "bot.db"))
    if name == "telegram" or (name == "slack" and is_new):
        result.excused |= result.questions.keys() - settled
    await platform.disconnect(resumable=False)
    before = {channel: _final(platform, result, channel) for channel in CHANNELS}
    await _ask(platform, result, chance.choice(CHANNELS))
    if name == "slack" and is_new:
        result.excused.add(list(result.questions)[-1])
    async with _running(name, platform, folder):
        with suppress(TimeoutError):  # unanswered questions are counted as lost
            await _until_answered(platform, result)
        await asyncio.sleep(4 * _MOMENT)  # for duplicate answers
    _count(platform, result)
    for channel, shown in before.items():
        after = {seen.id: seen.markdown for seen in _replies(platform, channel)}
        result.overwritten += [id for id, text in shown.items() if _markers(after.get(id, "")) != _markers(text)]
        result.overwritten += [id for id in shown if id not in after and id not in result.overwritten]


def _copy(database: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    source, target = sqlite3.connect(database), sqlite3.connect(copy)
    try:
        source.backup(target)
    finally:
        source.close()
        target.close()
    shutil.copyfile(path_beside(database), path_beside(copy))


async def _ask(platform: LoopbackPlatform, result: RestoreResult, channel: str) -> None:
    number = f"q{len(result.questions)}e"
    result.questions[number] = channel
    await platform.say(f"{number} and so on", channel=channel)


@asynccontextmanager
async def _running(name: str, platform: LoopbackPlatform, folder: Path) -> AsyncIterator[None]:
    """Run the bot, and end it as a crash does: no reply in progress is finished."""
    profile, clock = PROFILES[name], FastClock(_FACTOR)
    engine = ScriptedEngine(default=_answer, max_batch_size=64, max_waiting=1_000)
    async with SqlStore(f"sqlite+aiosqlite:///{folder / 'bot.db'}") as store:
        settings = ChatSettings(ConversationSection(history_turns=0, catch_up_minutes=10_000))
        intake = Intake(Access(AccessSection(), NO_LIMITS, clock), engine, store, settings)
        adapter = asyncio.create_task(platform.adapter(clock).run(intake))
        try:
            await platform.until(lambda: profile.is_connected(platform) or adapter.done())
            yield
        finally:
            adapter.cancel()
            await asyncio.gather(adapter, return_exceptions=True)


def _replies(platform: LoopbackPlatform, channel: str) -> list[Seen]:
    return [seen for seen in platform.seen(channel) if seen.author == "bot"]


@lru_cache(maxsize=20_000)
def _markers(text: str) -> tuple[tuple[str, str], ...]:
    """Return the beginnings and ends of answers in a message, each with the number of its question."""
    return tuple((str(found.lastgroup), found[str(found.lastgroup)]) for found in _END.finditer(text))


def _final(platform: LoopbackPlatform, result: RestoreResult, channel: str) -> dict[str, str]:
    """Return the messages of delivered answers, by id; those in the middle only while no answer is due."""
    counts = _counts(platform, result)
    delivered = {number for number, ends in counts.items() if min(ends) > 0}
    is_calm = delivered >= {number for number, place in result.questions.items() if place == channel}

    def is_delivered(seen: Seen) -> bool:
        numbers = {number for _, number in _markers(seen.markdown)}
        return Action.STOP not in seen.actions and (numbers <= delivered if numbers else is_calm)

    return {seen.id: seen.markdown for seen in _replies(platform, channel) if is_delivered(seen)}


def _counts(platform: LoopbackPlatform, result: RestoreResult) -> dict[str, tuple[int, int]]:
    """Return how often each question's answer begins and ends."""
    shown = {
        channel: Counter(marker for seen in _replies(platform, channel) for marker in _markers(seen.markdown))
        for channel in CHANNELS
    }
    return {
        number: (shown[channel]["begun", number], shown[channel]["ended", number])
        for number, channel in result.questions.items()
    }


async def _until_answered(platform: LoopbackPlatform, result: RestoreResult) -> None:
    def are_answered() -> bool:
        open_questions = [number for number in result.questions if number not in result.lost | result.excused]
        counts = _counts(platform, result)
        return all(min(counts[number]) >= 1 for number in open_questions)

    await platform.until(are_answered, _TIMEOUT)


def _count(platform: LoopbackPlatform, result: RestoreResult) -> None:
    for number, (begins, ends) in _counts(platform, result).items():
        if min(begins, ends) == 0:
            result.lost.add(number)
        elif max(begins, ends) > 1:
            result.twice.add(number)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in PROFILES:
        result = RestoreResult()
        while result.rollbacks < _COUNTS[scale]:
            part = seed + result.rollbacks
            result.add(await roll_back(name, min(_ROUNDS, _COUNTS[scale]), part), part)
        yield Row(name, str(result), result.is_kept)


def main() -> None:
    """Roll one workspace back, and log what the bot does."""
    parser = argparse.ArgumentParser(description="Repeat one workspace of the figure.")
    parser.add_argument("platform", choices=PROFILES)
    parser.add_argument("seed", type=int)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--log", default="WARNING", help="level of what is logged")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(options.log)))
    print(asyncio.run(roll_back(options.platform, options.rounds, options.seed)))


if __name__ == "__main__":
    main()
