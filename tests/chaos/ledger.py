"""R29: the whole bot killed at random points while its users use up quotas: the ledger against the stored answers.

Users of all platforms write to one bot process, which is killed (-9) while it starts, and
after random numbers of tokens.  Then the sums in the table `usage` must be those of the answers
that are stored, to the token; nobody may have passed a quota by more than one answer, or have been
refused before it was used up.  What killed processes had generated of an answer is lost, and
counts for nobody; a file has a byte for each token that was generated.
"""

import asyncio
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.figure import Row, Scale
from tests.chaos.processes import PLATFORMS, TIMEOUT, BotProcess, logged_errors, run_bot, until
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import PROFILES

NAME = "R29"

# In memory if possible, as in R2; a killed process loses nothing that it has written.
_MEMORY = Path("/dev/shm")  # the parent of a temporary folder
# Seconds that a start takes at least; every tenth process is killed in them.
_STARTING = 0.5
_EARLY_KILLS = 10
_PROGRESS = 25  # kills between two lines about it
# Of a question and its answer, on average.
_TOKENS = 76
_MOST_WORDS = 40
# A callback of the event loop that takes too long is late, and no fault of the ledger.
_LATE = "of CPU time on the event loop"
_SETTINGS = {
    "BOT_ENGINE__BACKEND": "echo",
    "BOT_ENGINE__MAX_BATCH_SIZE": "16",
    "BOT_ENGINE__MAX_WAITING": "100000",
    "BOT_LIMITS__MAX_ANSWER_TOKENS": "100",
}

Place = tuple[str, str]  # a level of the ledger, and what stands there


@dataclass(frozen=True, slots=True)
class Size:
    """Channels and people are per platform; both are used unevenly."""

    questions: int
    kills: int
    channels: int = 10
    people: int = 20

    @property
    def quotas(self) -> dict[str, int]:
        """Tokens per month: about a third of the questions is refused."""
        expected = _TOKENS * self.questions // len(PLATFORMS)
        return {"user": expected // self.people, "channel": expected // self.channels, "server": expected * 2 // 3}


_SHORT = Size(120, 3, 2, 3)
# `make reliability ARGS="R29 --questions 2000"` changes it.
QUESTIONS = 10_000
_PER_KILL = 50  # questions


@dataclass
class LedgerResult:
    """What the ledger and the stored answers say after all kills."""

    size: Size
    generated: int
    unanswered: int = 0
    answered: int = 0
    refused: int = 0
    in_answers: int = 0  # tokens
    places: int = 0
    differing: list[str] = field(default_factory=list)
    over: int = 0  # by how many tokens a quota was passed at most
    passed: list[str] = field(default_factory=list)
    too_early: int = 0  # questions
    errors: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    integrity: str = ""

    def __str__(self) -> str:
        lost = self.generated - self.in_answers
        told = (
            f"kills {self.size.kills}, questions {self.size.questions:,} ({self.answered:,} answered, {self.refused:,} "
            f"refused by quotas): unanswered {self.unanswered}, sums of {self.places} people and places that differ "
            f"from the stored answers {len(self.differing)}; tokens generated {self.generated:,}, in stored answers "
            f"{self.in_answers:,}, lost with killed processes {lost:,}; quotas passed by more than one answer "
            f"{len(self.passed)} (at most by {self.over} tokens), refused before the quota was used up "
            f"{self.too_early}; errors logged {len(self.errors)}, integrity {self.integrity}"
        )
        return told + "".join(
            f"; {each[:300]}" for found in (self.differing, self.passed, self.errors, self.late) for each in found[:3]
        )

    @property
    def is_kept(self) -> bool:
        faults = self.unanswered or self.differing or self.passed or self.too_early or self.errors
        return not faults and self.in_answers <= self.generated and self.integrity == "ok"


@dataclass
class Users:
    """People who ask in random channels; some more than others."""

    platforms: Mapping[str, LoopbackPlatform]
    size: Size
    chance: random.Random
    asked: int = 0

    async def ask(self) -> None:
        channel = self._choose(self.size.channels)
        await self._ask(self.platforms[self.chance.choice(PLATFORMS)], channel)

    async def ask_everywhere(self) -> None:
        """Ask in each channel: a backfill needs a known message there."""
        for platform in self.platforms.values():
            for channel in range(self.size.channels):
                await self._ask(platform, channel)

    async def _ask(self, platform: LoopbackPlatform, channel: int) -> None:
        self.asked += 1
        numbers = [str(self.chance.randrange(10**6)) for _ in range(self.chance.randrange(_MOST_WORDS))]
        text = " ".join([f"q{self.asked}", *numbers])
        await platform.say(text, author=f"p{self._choose(self.size.people)}", channel=f"room{channel}")

    def _choose(self, count: int) -> int:
        return self.chance.choices(range(count), range(1, count + 1))[0]


async def kill_repeatedly(size: Size, seed: int) -> LedgerResult:
    """Kill the bot again and again while users ask, then compare."""
    chance = random.Random(f"{seed} ledger")
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as temporary:
        folder = Path(temporary)
        tables = [f"[quotas.{level}]\ntokens_per_month = {limit}\n" for level, limit in size.quotas.items()]
        (folder / "config.toml").write_text("\n".join(tables), encoding="utf-8")
        async with AsyncExitStack() as opened:
            platforms = {name: await opened.enter_async_context(PROFILES[name].open()) for name in PLATFORMS}
            users = Users(platforms, size, chance)
            async with _bot(users, folder) as bot:
                await bot.connected()
                await users.ask_everywhere()
                await until(lambda: not _owed(folder, users))
            for kill in range(size.kills):
                if kill and kill % _PROGRESS == 0:
                    print(f"{NAME:<4} so far: kills {kill}, questions {users.asked:,}", flush=True)
                share = (size.questions - users.asked) // (size.kills - kill)
                for _ in range(share // 2):
                    await users.ask()
                async with _bot(users, folder) as bot:
                    if kill % _EARLY_KILLS == 0:
                        await asyncio.sleep(chance.uniform(0.0, _STARTING))
                        continue
                    await bot.connected()
                    for _ in range(share - share // 2):
                        await users.ask()
                    end = _generated(folder) + chance.random() * _TOKENS / 2 * _owed(folder, users)
                    await until(lambda end=end: _generated(folder) >= end or not _owed(folder, users))  # type: ignore[misc]
            async with _bot(users, folder) as bot:
                await bot.connected()
                while users.asked < size.questions:
                    await users.ask()
                with suppress(TimeoutError):  # they are counted
                    await until(lambda: not _owed(folder, users), 2 * TIMEOUT)
            return _compared(size, folder)


@asynccontextmanager
async def _bot(users: Users, folder: Path) -> AsyncIterator[BotProcess]:
    more = {**_SETTINGS, "TOKENS": str(folder / "tokens")}
    # 200 times the imports would take as long as all answers.
    async with run_bot(users.platforms, folder, more, "tests.chaos.ledger_bot", is_warm=True) as bot:
        yield bot


def _generated(folder: Path) -> int:
    return (folder / "tokens").stat().st_size


def _owed(folder: Path, users: Users) -> int:
    """Return the number of questions whose reply is not complete, or that are not stored yet."""
    with closing(sqlite3.connect(f"file:{folder / 'bot.db'}?mode=ro", uri=True)) as database:
        owed, stored = database.execute(
            "SELECT (SELECT count(*) FROM exchanges WHERE status IN ('open', 'answered')), (SELECT count(*) FROM exchanges)"
        ).fetchone()
    return int(users.asked - stored + owed)


def _compared(size: Size, folder: Path) -> LedgerResult:
    """Compare the ledger with the answers, and both with the quotas."""
    errors = logged_errors(folder)
    result = LedgerResult(
        size,
        _generated(folder),
        errors=[line for line in errors if _LATE not in line],
        late=[line for line in errors if _LATE in line],
    )
    with closing(sqlite3.connect(folder / "bot.db")) as database:
        result.integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
        sums: dict[Place, Counter[str]] = {}
        largest: Counter[Place] = Counter()
        refused: list[list[Place]] = []
        for places, status, prompt, completion in _exchanges(database):
            if status != "delivered":
                continue
            result.in_answers += completion
            if not prompt:
                refused.append(places)
                continue
            result.answered += 1
            for place in places:
                sums.setdefault(place, Counter()).update(answers=1, prompt=prompt, completion=completion)
                largest[place] = max(largest[place], prompt + completion)
        ledger, months = _ledger(database)
    result.refused = len(refused)
    result.unanswered = size.questions - result.answered - result.refused
    result.places = len(sums)
    for place in sorted(sums.keys() | ledger.keys()):
        if sums.get(place, Counter()) != ledger.get(place, Counter()):
            result.differing.append(f"{place}: {ledger.get(place)} in the ledger, {sums.get(place)} in the answers")
    limits = {level: limit * months for level, limit in size.quotas.items()}
    used = {place: use["prompt"] + use["completion"] for place, use in ledger.items()}
    for place, tokens in used.items():
        if (over := tokens - limits.get(place[0], tokens)) >= max(1, largest[place]):
            result.passed.append(f"{place} by {over} tokens, the longest answer has {largest[place]}")
        result.over = max(result.over, over)
    for places in refused:
        result.too_early += all(used.get(place, 0) < limits.get(place[0], 1 << 60) for place in places)
    return result


def _exchanges(database: sqlite3.Connection) -> Iterator[tuple[list[Place], str, int, int]]:
    """Yield the places that each question counts for, its status, and the tokens of its answer."""
    rows = database.execute(
        "SELECT platform, channel, server, author_platform, author, status, prompt_tokens, completion_tokens FROM exchanges"
    )
    for platform, channel, server, author_platform, author, status, prompt, completion in rows:
        places = [
            ("user", f"{author_platform}:{author}"),
            ("platform", platform),
            ("channel", f"{platform}:{channel}"),
            *([("server", f"{platform}:{server}")] if server else []),
        ]
        yield places, status, prompt or 0, completion or 0


def _ledger(database: sqlite3.Connection) -> tuple[dict[Place, Counter[str]], int]:
    """Return the sums of each place, and the number of months in which something was used."""
    sums: dict[Place, Counter[str]] = {}
    months = set()
    rows = database.execute("SELECT level, place, day, answers, prompt_tokens, completion_tokens FROM usage")
    for level, place, day, answers, prompt, completion in rows:
        if answers or prompt or completion:
            months.add(day[:7])
            sums.setdefault((level, place), Counter()).update(answers=answers, prompt=prompt, completion=completion)
    return sums, len(months)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    size = _SHORT if scale == "short" else Size(QUESTIONS, QUESTIONS // _PER_KILL)
    result = await kill_repeatedly(size, seed)
    yield Row("the bot", str(result), result.is_kept, is_in_time=not result.late)
