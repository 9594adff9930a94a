"""Deleted text leaves no byte in the SQLite files."""

import asyncio
import random
import sqlite3
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, event
from structlog.testing import capture_logs

from bot.domain import Answer, Author, ChannelKey, Exchange, Kind
from bot.errors import NotErased
from bot.storage.sql import SqlStore
from bot.storage.vacuum import BURST, MAX_SHARE, RETRY_AFTER, DutyCycle
from tests.harness.fakes.clock import JumpingClock, ManualClock
from tests.storage import MEI, NOON, ROOM, bytes_in, message, temporary_store, url_of

# Each one is in another column; the long ones fill whole pages.
TEXTS = [
    "the secret question",
    "密码是芝麻开门",
    "a long one 很长 " * 5_000,
    "quoted text 引用",
    "Meimei Zhang 张",
]
ANSWERS = ["the open answer", "芝麻开门不是密码", "long-winded 啰嗦 " * 5_000, "the queue is full"]
WROTE = Author("slack", "U0123456789", TEXTS[4], frozenset({"role-of-hers", "她的角色"}))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    async with temporary_store(tmp_path) as store:
        yield store


async def vacuumed() -> None:
    """Wait for the vacuum in the background."""
    await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name() == "vacuum"])


async def talk(store: SqlStore) -> int:
    exchange: Exchange | None = None
    for number, (text, answer) in enumerate(zip(TEXTS[:3], ANSWERS[:3], strict=True)):
        asked = replace(message(number, text, author=WROTE), quoted=TEXTS[3], locale="zh-Hant-HK")
        exchange = await store.enqueue(asked, Kind.CHAT)
        assert exchange is not None
        await store.record_answer(exchange, Answer(answer, ANSWERS[3]))
    assert exchange is not None
    # An edit: the old text must be deleted as well.
    edited = await store.requeue(exchange, TEXTS[2] + "edited")
    assert edited is not None
    assert await store.fail(edited, "chat not found")
    await vacuumed()
    return exchange.id


def traces(folder: Path) -> list[str]:
    content = bytes_in(folder)
    escaped = [role.encode("ascii", "backslashreplace").decode() for role in WROTE.roles]
    texts = [*TEXTS, *ANSWERS, WROTE.id, "zh-Hant-HK", "chat not found", "很长", "啰嗦", *escaped]
    return [words[:30] for words in texts if words.encode() in content]


async def test_texts_are_in_the_files_before_a_deletion(store: SqlStore, tmp_path: Path) -> None:
    await talk(store)
    assert {"密码是芝麻开门", "the open answer", WROTE.id} <= set(traces(tmp_path))


async def test_clear_leaves_no_byte_in_the_files(store: SqlStore, tmp_path: Path) -> None:
    await talk(store)
    assert await store.clear(ROOM) == 3
    assert traces(tmp_path) == []


async def test_forget_leaves_no_byte_in_the_files(store: SqlStore, tmp_path: Path) -> None:
    await talk(store)
    await store.forget(WROTE)
    assert traces(tmp_path) == []


async def test_erase_leaves_no_byte_in_the_files(store: SqlStore, tmp_path: Path) -> None:
    exchange = await store.enqueue(message(9, "only this one goes", author=MEI), Kind.CHAT)
    assert exchange is not None
    await store.erase(exchange)
    assert b"only this one goes" not in bytes_in(tmp_path)


async def test_a_text_from_an_earlier_run_is_overwritten_too(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await talk(store)
    assert traces(tmp_path)
    async with temporary_store(tmp_path) as store:
        await store.clear(ROOM)
        assert traces(tmp_path) == []


@contextmanager
def being_read(path: Path) -> Iterator[sqlite3.Connection]:
    """Keep a read transaction open, as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM exchanges").fetchone()
        yield other


@pytest.mark.parametrize("what", ["clear", "forget"])
async def test_clear_and_forget_raise_not_erased_while_another_program_reads(tmp_path: Path, what: str) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), JumpingClock(), vacuum_patience=0.1) as store:
        await talk(store)
        with being_read(tmp_path / "bot.db"), capture_logs() as logs:
            with pytest.raises(NotErased, match="still holds the text") as raised:
                await (store.clear(ROOM) if what == "clear" else store.forget(WROTE))
            assert raised.value.count == 3
            assert await store.clear(ROOM) == 0  # no row has the text
        assert "deleted text is still in" in logs[0]["error"]
        assert traces(tmp_path)
        assert await store.clear(ROOM) == 0
        assert traces(tmp_path) == []


async def test_erase_edit_and_expire_do_not_fail_while_another_program_reads(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), ManualClock(), vacuum_patience=0) as store:
        erased, edited, old = await enqueue_secrets(store, 3)
        with being_read(tmp_path / "bot.db"):
            await store.erase(erased)
            requeued = await store.requeue(edited, "harmless")
            assert requeued is not None
            await store.fail(requeued, "chat not found")
            await store.fail(old, "chat not found")
            assert await store.expire(NOON + timedelta(days=1)) == 2
            texts = [row.message.text for row in await rows_of(store, 3)]
            assert texts == [""] * 3
            assert await store.enqueue(message(9), Kind.CHAT) is not None
        assert needs_vacuum(tmp_path / "bot.db")


async def rows_of(store: SqlStore, count: int) -> list[Exchange]:
    found = [await store.find(ROOM, str(number)) for number in range(count)]
    return [exchange for exchange in found if exchange is not None]


async def test_deletions_do_not_wait_each_for_a_program_that_keeps_reading(tmp_path: Path) -> None:
    patience = 1.0
    async with SqlStore(url_of(tmp_path / "bot.db"), vacuum_patience=patience) as store:
        secrets = await enqueue_secrets(store, 30)
        reader = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN'); "
        reader += "c.execute('SELECT * FROM exchanges').fetchone(); print('reading', flush=True); sys.stdin.read()"
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", reader, str(tmp_path / "bot.db"), stdin=PIPE, stdout=PIPE
        )
        try:
            assert other.stdout is not None
            assert await other.stdout.readline() == b"reading\n"
            began = time.monotonic()
            for each in secrets:
                await store.erase(each)
            took = time.monotonic() - began
            assert b"secret" in bytes_in(tmp_path)
        finally:
            await other.communicate(b"")
        assert took < len(secrets) * patience, "each deletion waited"
    assert b"secret" not in bytes_in(tmp_path)


async def test_clear_succeeds_when_the_other_program_stops_reading(tmp_path: Path) -> None:
    class Closing(JumpingClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds)
            other.close()

    clock = Closing()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock) as store:
        await talk(store)
        with being_read(tmp_path / "bot.db") as other:
            await store.clear(ROOM)
            assert traces(tmp_path) == []
    assert clock.time > 0


async def test_the_next_start_vacuums_after_a_crash(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), JumpingClock(), vacuum_patience=0) as store:
        await talk(store)
        with being_read(tmp_path / "bot.db"), pytest.raises(NotErased):
            await store.clear(ROOM)
        # What is in the files now is what a crash would leave.
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for name in ("bot.db", "bot.db-wal"):
            (crashed / name).write_bytes((tmp_path / name).read_bytes())
    assert traces(crashed)
    async with temporary_store(crashed):
        assert traces(crashed) == []


async def test_a_failed_vacuum_at_the_start_is_logged(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), ManualClock(), vacuum_patience=0) as store:
        await talk(store)
        with being_read(tmp_path / "bot.db"):
            with pytest.raises(NotErased):
                await store.clear(ROOM)
            with capture_logs() as logs:
                async with SqlStore(url_of(tmp_path / "bot.db"), ManualClock(), vacuum_patience=0):
                    pass
    assert [line["event"] for line in logs] == [
        "vacuum failed, deleted text is still in the file",
        "vacuum failed, deleted text is still in the file; the next start retries",
    ]
    async with temporary_store(tmp_path):
        assert traces(tmp_path) == []


@contextmanager
def rewriting(takes: Callable[[], None] = lambda: None) -> Iterator[list[str]]:
    """Record every VACUUM; `takes` advances the clock during each."""
    rewritten: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement == "VACUUM":
            rewritten.append(statement)
            takes()

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield rewritten
    finally:
        event.remove(Engine, "before_cursor_execute", count)


async def test_concurrent_deletions_share_a_vacuum(store: SqlStore, tmp_path: Path) -> None:
    begun = [await store.enqueue(message(number, f"secret {number}"), Kind.CHAT) for number in range(50)]
    with rewriting() as rewritten:
        await asyncio.gather(*[store.erase(exchange) for exchange in begun if exchange is not None])
        assert b"secret" not in bytes_in(tmp_path)
        assert 1 <= len(rewritten) <= 10
        before = len(rewritten)
        assert await store.clear(ROOM) == 0  # no deletion is left to vacuum
        assert len(rewritten) == before


# A large file: a VACUUM takes long and blocks other writers.


class SlowVacuumClock(ManualClock):
    """The clock of a file whose VACUUM takes three seconds."""

    seconds = 3.0

    def pass_by(self) -> None:
        self._now += self.seconds


async def enqueue_secrets(store: SqlStore, count: int) -> list[Exchange]:
    begun = [await store.enqueue(message(number, f"secret {number}!"), Kind.CHAT) for number in range(count)]
    return [exchange for exchange in begun if exchange is not None]


async def test_one_vacuum_of_a_large_file_covers_all_deletions_up_to_then(tmp_path: Path) -> None:
    clock = SlowVacuumClock()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock) as store:
        secrets = await enqueue_secrets(store, 20)
        with rewriting(clock.pass_by) as rewritten:
            await store.erase(secrets[0])
            assert len(rewritten) == 1
            assert b"secret 0!" not in bytes_in(tmp_path)
            for each in secrets[1:]:
                await store.erase(each)  # in the background
            assert len(rewritten) == 1
            assert await store.claim_owed("slack") == []
            # The burst covers one of the three seconds; the others are 2 % of a hundred.
            await clock.advance(99)
            assert len(rewritten) == 1
            await clock.advance(2)
            await vacuumed()
            assert len(rewritten) == 2
        assert b"secret" not in bytes_in(tmp_path)


async def test_deletions_during_a_vacuum_are_vacuumed_later(tmp_path: Path) -> None:
    clock = SlowVacuumClock()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock) as store:
        secrets = await enqueue_secrets(store, 20)
        with rewriting(clock.pass_by) as rewritten:
            await asyncio.gather(*[store.erase(each) for each in secrets])
            while b"secret" in bytes_in(tmp_path):
                await clock.advance(151)
                await vacuumed()
            assert len(rewritten) <= 3


async def test_the_text_before_an_edit_is_vacuumed_in_the_background(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), ManualClock()) as store:
        [exchange] = await enqueue_secrets(store, 1)
        with rewriting() as rewritten:
            assert await store.requeue(exchange, "harmless") is not None
            await vacuumed()
            assert b"secret" not in bytes_in(tmp_path)
            await store.requeue(exchange)
            assert len(rewritten) == 1  # a retry deletes no text


async def test_a_scheduled_vacuum_survives_a_crash(tmp_path: Path) -> None:
    clock = SlowVacuumClock()
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock) as store:
        secrets = await enqueue_secrets(store, 3)
        with rewriting(clock.pass_by):
            for each in secrets:
                await store.erase(each)
        for name in ("bot.db", "bot.db-wal"):
            (crashed / name).write_bytes((tmp_path / name).read_bytes())
    assert b"secret 2!" in bytes_in(crashed)
    async with temporary_store(crashed):
        assert b"secret" not in bytes_in(crashed)


@pytest.mark.parametrize(("seconds", "is_clean"), [(3.0, False), (0.9, True)])
async def test_shutdown_vacuums_only_if_that_is_quick(tmp_path: Path, seconds: float, is_clean: bool) -> None:
    clock = SlowVacuumClock()
    clock.seconds = seconds
    async with SqlStore(url_of(tmp_path / "bot.db"), clock) as store:
        secrets = await enqueue_secrets(store, 3)
        with rewriting(clock.pass_by) as rewritten:
            for each in secrets:
                await store.erase(each)
            assert len(rewritten) == (1 if seconds > 1 else 2)
    assert needs_vacuum(tmp_path / "bot.db") is not is_clean
    async with temporary_store(tmp_path):
        assert b"secret" not in bytes_in(tmp_path)
    assert not needs_vacuum(tmp_path / "bot.db")


def needs_vacuum(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as other:
        return bool(other.execute("PRAGMA user_version").fetchone()[0])


async def test_a_retry_truncates_the_log_without_a_second_vacuum(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock, vacuum_patience=0) as store:
        await talk(store)
        with rewriting() as rewritten:
            with being_read(tmp_path / "bot.db"), pytest.raises(NotErased):
                await store.clear(ROOM)
            assert traces(tmp_path)
            await clock.advance(RETRY_AFTER)
            await vacuumed()
            assert traces(tmp_path) == []
            assert len(rewritten) == 1
    assert not needs_vacuum(tmp_path / "bot.db")


async def test_retries_of_the_vacuum_back_off_and_are_logged(tmp_path: Path) -> None:
    class Noting(ManualClock):
        async def sleep(self, seconds: float) -> None:
            asleep.set()
            await super().sleep(seconds)

    clock, asleep = Noting(), asyncio.Event()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock, vacuum_patience=0) as store:
        await enqueue_secrets(store, 1)
        with being_read(tmp_path / "bot.db"):
            with pytest.raises(NotErased):
                await store.clear(ROOM)
            await asleep.wait()
            with capture_logs() as logs:
                for factor in (1, 2):
                    asleep.clear()
                    await clock.advance(factor * RETRY_AFTER)
                    await asleep.wait()
    assert [(line["event"], line["retry_in"]) for line in logs] == [
        ("vacuum failed, deleted text is still in the file", seconds) for seconds in (2 * RETRY_AFTER, 4 * RETRY_AFTER)
    ]
    assert b"secret" not in bytes_in(tmp_path)


def test_the_duty_cycle_limits_the_share_of_the_time() -> None:
    clock = JumpingClock()
    duty_cycle, spent = DutyCycle(clock), 0.0
    dice = random.Random(7)
    while clock.time < 100_000:
        if duty_cycle.delay() == 0:
            seconds = dice.choice([0.001, 0.02, 0.5, 3.0, 15.0])
            clock.time += seconds
            duty_cycle.spend(seconds)
            spent += seconds
        clock.time += max(duty_cycle.delay(), dice.choice([0.0, 0.1, 10.0]))
    assert spent <= MAX_SHARE * clock.time + BURST + 15.0


# SQLite's secure_delete alone leaves text of these seeds in the file.
@pytest.mark.parametrize("seed", [4, 7, 8])
async def test_rows_that_grew_and_moved_leave_no_copies_behind(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    channels = [ChannelKey("slack", f"C{number}") for number in range(4)]
    unanswered: list[tuple[Exchange, str]] = []
    clock = SlowVacuumClock()  # the edits below share one vacuum with the first deletion
    async with SqlStore(url_of(tmp_path / "bot.db"), clock) as store:
        with rewriting(clock.pass_by):
            for number in range(400):
                channel = dice.choice(channels)
                words = f"{channel.channel} says {number:06}. "
                asked = message(number, words * dice.choice([1, 2, 5, 20, 60, 150, 300, 600]), channel)
                exchange = await store.enqueue(asked, Kind.CHAT)
                assert exchange is not None
                unanswered.append((exchange, words))
                if dice.random() < 0.8:
                    which, words = unanswered.pop(dice.randrange(len(unanswered)))
                    await store.record_answer(which, Answer(words * dice.choice([1, 5, 30, 100, 250, 700]), words))
                    if dice.random() < 0.2:
                        await store.requeue(which, words * dice.choice([1, 50, 300]))
            for channel in channels:
                await store.clear(channel)
                await clock.settle()
                if (allowed_at := clock.next_wake) is not None:
                    await clock.advance(allowed_at - clock.now())
                    await vacuumed()
                assert f"{channel.channel} says ".encode() not in bytes_in(tmp_path)


async def test_ids_are_not_reused_after_rows_were_deleted(store: SqlStore, tmp_path: Path) -> None:
    last = await talk(store)
    with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as other:
        other.execute("DELETE FROM exchanges")
    exchange = await store.enqueue(message("new"), Kind.CHAT)
    assert exchange is not None
    assert exchange.id == last + 1


async def test_the_vacuum_copies_the_file_on_disk_and_not_in_memory(store: SqlStore) -> None:
    await talk(store)
    said: list[str] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def listen(connection: object, cursor: object, statement: str, *rest: object) -> None:
        said.append(statement)

    try:
        await store.clear(ROOM)
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    at = said.index("VACUUM")
    assert said[at - 1 : at + 2] == ["PRAGMA temp_store=FILE", "VACUUM", "PRAGMA temp_store=MEMORY"]
