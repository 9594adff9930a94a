"""R23: malformed messages in the history of a channel, damaged rows in the database.

While the bot is cut off users ask, and the history that it reads afterwards has a malformed
copy beside every message.  Rows are damaged between two runs of a process.  The real
questions must get one answer each.
"""

import asyncio
import json
import random
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from tests.adapters.lossless_runs import asked
from tests.chaos.calls import call_of
from tests.chaos.figure import Row, Scale
from tests.chaos.junk import mutated
from tests.chaos.one_platform import Asker
from tests.chaos.processes import run_bot
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.platform_bench import PROFILES, Bench, open_bench

NAME = "R23"

ROUNDS = {"full": 40, "short": 3}
ROWS = {"full": 60, "short": 9}
_ROOMS = 3
_FACTOR = 100.0
_TIMEOUT = 600.0  # seconds for the answers after an outage, on a busy machine
_NEXT_ID = 1 << 21  # half a millisecond of Discord's ids
# What a column may hold after a bug, a hand at the file, or a broken disk.
_DAMAGES = (None, "", "nonsense", "\x00", "[", "{}", '[{"a": 1}]', -1, 10**18, 1.5, b"\xff\xfe", "9" * 5_000)
_KEYS = {"id"}  # the rest of a row must not decide which row it is


async def poison_histories(name: str, rounds: int, seed: int) -> Row:
    """Cut the bot off again and again, and poison what it reads afterwards."""
    chance = random.Random(f"{seed} {name} poison")
    poisoned, sent = 0, dict[str, str]()

    @asynccontextmanager
    async def around(platform: Any) -> AsyncIterator[None]:
        async def poison(request: web.Request, handler: Handler) -> web.StreamResponse:
            nonlocal poisoned
            real = await handler(request)
            operation, _ = await call_of(name, request)
            if operation != "catch-up" or not isinstance(real, web.Response) or real.status != 200:
                return real
            assert isinstance(real.body, bytes)
            told = json.loads(real.body)
            messages = told["messages"] if name == "slack" else told
            copies = [
                mutated({**each, "content": "junk", "text": "junk", **_own_id(each)}, chance) for each in messages
            ]
            poisoned += len(copies)
            messages[:] = [each for pair in zip(copies, messages, strict=True) for each in pair]
            return web.Response(body=json.dumps(told).encode(), content_type="application/json")

        platform.gate.wrapper = poison
        yield

    engine = ScriptedEngine(default=lambda request: f"answer to {asked(request)}.", context_length=1_000_000)
    async with open_bench(name, engine, FastClock(_FACTOR), around=around) as bench:
        for room in range(_ROOMS):
            await bench.ask(f"known {room}", f"room{room}", seconds=_TIMEOUT)
        for number in range(rounds):
            asked_now = {f"q{number}r{room}e": f"room{room}" for room in range(_ROOMS)}
            sent |= asked_now
            await bench.platform.disconnect(resumable=False)
            for question, channel in asked_now.items():
                await bench.platform.say(question, channel=channel)
            if not await _finished(bench, list(asked_now)):
                break  # counted below
        counts = {question: _answers(bench, question, room) for question, room in sent.items()}
    lost = [question for question, count in counts.items() if count == 0]
    twice = [question for question, count in counts.items() if count > 1]
    told = (
        f"histories of {rounds} outages with {poisoned} malformed messages, questions {len(sent)}: lost {len(lost)}, "
    )
    return Row(name, f"{told}twice {len(twice)}" + f" {lost[:5]}{twice[:5]}" * bool(lost or twice), not (lost or twice))


def _own_id(message: dict[str, Any]) -> dict[str, str]:
    """Return a new id for a copy: one that can be read must not stand for the message itself."""
    # On Slack a copy is not to the bot, as its text mentions nobody.
    return {"id": str(int(message["id"]) + _NEXT_ID)} if "id" in message else {}


async def _finished(bench: Bench, questions: list[str]) -> bool:
    waiting: list[asyncio.Future[Any]] = [bench.exchanges.finished(question) for question in questions]
    _, unfinished = await asyncio.wait(waiting, timeout=_TIMEOUT)
    return not unfinished


def _answers(bench: Bench, question: str, room: str) -> int:
    return sum(f"answer to {question}." in seen.markdown for seen in bench.replies(room))


async def damage_rows(count: int, seed: int) -> Row:
    """Damage a value in every row between two runs, then ask again in the same rooms."""
    chance = random.Random(f"{seed} rows")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with PROFILES["telegram"].open() as platform:
            asker = Asker(platform)
            async with run_bot({"telegram": platform}, folder) as bot:
                await bot.connected()
                for number in range(count):
                    await asker.ask(f"room{number % _ROOMS}")
            damaged = _damage(folder / "bot.db", chance)
            async with run_bot({"telegram": platform}, folder) as bot:
                await bot.connected()
                for room in range(_ROOMS):
                    async with asyncio.timeout(_TIMEOUT):
                        await asker.ask(f"room{room}")
                is_running = bot.process.returncode is None
    told = f"rows {count}, values damaged {damaged}: questions afterwards {_ROOMS}, lost or twice {len(asker.faults)}"
    return Row("rows", told + "".join(f"; {fault}" for fault in asker.faults[:3]), is_running and not asker.faults)


def _damage(file: Path, chance: random.Random) -> int:
    """Damage one value in each row where the database allows it; return their number."""
    damaged = 0
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(exchanges)") if row[1] not in _KEYS]
        for (id,) in database.execute("SELECT id FROM exchanges").fetchall():
            column = chance.choice(columns)
            try:
                database.execute(f'UPDATE exchanges SET "{column}" = ? WHERE id = ?', (chance.choice(_DAMAGES), id))
            except sqlite3.IntegrityError:
                continue  # NOT NULL, or a key
            damaged += 1
    return damaged


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    for name in ("discord", "slack"):  # Telegram has no history that can be read
        yield await poison_histories(name, ROUNDS[scale], seed)
    try:
        yield await damage_rows(ROWS[scale], seed)
    except (AssertionError, TimeoutError) as error:
        yield Row("rows", f"the bot does not answer after its rows were damaged: {str(error)[-300:]}", is_kept=False)
