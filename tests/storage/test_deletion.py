"""What was deleted is in no byte of the SQLite files."""

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
from tests.harness.fakes.clock import ManualClock
from tests.storage import MEI, NOON, ROOM, JumpingClock, bytes_in, message, temporary_store, url_of

# Each stands in another column, and long ones fill pages of their own.
TEXTS = [
    "the secret question",
    "密码是芝麻开门",
    "a long one 很长 " * 5_000,
    "quoted by somebody 引用",
    "Meimei Zhang 张",
]
ANSWERS = ["the open answer", "芝麻开门不是密码", "long-winded 啰嗦 " * 5_000, "the queue is full"]
WROTE = Author("slack", "U0123456789", TEXTS[4], frozenset({"role-of-hers", "她的角色"}))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    async with temporary_store(tmp_path) as store:
        yield store


async def vacuumed() -> None:
    """Wait for what the store does by itself once its time has come."""
    await asyncio.gather(*[task for task in asyncio.all_tasks() if task.get_name() == "vacuum"])


async def talk(store: SqlStore) -> int:
    last = 0
    for number, (text, answer) in enumerate(zip(TEXTS[:3], ANSWERS[:3], strict=True)):
        asked = replace(message(number, text, author=WROTE), quoted=TEXTS[3], locale="zh-Hant-HK")
        exchange = await store.enqueue(asked, Kind.CHAT)
        assert exchange is not None
        await store.record_answer(exchange.id, Answer(answer, ANSWERS[3]))
        last = exchange.id
    # One that was edited: the old words must go as well.
    await store.requeue(last, TEXTS[2] + "edited")
    await store.fail(last, "nobody was there")
    await vacuumed()
    return last


def traces(folder: Path) -> list[str]:
    content = bytes_in(folder)
    escaped = [role.encode("ascii", "backslashreplace").decode() for role in WROTE.roles]
    told = [*TEXTS, *ANSWERS, WROTE.id, "zh-Hant-HK", "nobody was there", "很长", "啰嗦", *escaped]
    return [words[:30] for words in told if words.encode() in content]


async def test_what_was_said_is_in_the_files_before(store: SqlStore, tmp_path: Path) -> None:
    await talk(store)
    assert {"密码是芝麻开门", "the open answer", WROTE.id} <= set(traces(tmp_path))


async def test_after_a_clear_no_byte_of_it_is_left(store: SqlStore, tmp_path: Path) -> None:
    await talk(store)
    assert await store.clear(ROOM) == 3
    assert traces(tmp_path) == []


async def test_after_a_person_is_forgotten_no_byte_of_them_is_left(store: SqlStore, tmp_path: Path) -> None:
    await talk(store)
    await store.forget(WROTE)
    assert traces(tmp_path) == []


async def test_after_an_exchange_is_erased_no_byte_of_it_is_left(store: SqlStore, tmp_path: Path) -> None:
    exchange = await store.enqueue(message(9, "only this one goes", author=MEI), Kind.CHAT)
    assert exchange is not None
    await store.erase(exchange.id)
    assert b"only this one goes" not in bytes_in(tmp_path)


async def test_a_text_that_was_in_the_database_file_already_is_overwritten_there(tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        await talk(store)
    assert traces(tmp_path)
    async with temporary_store(tmp_path) as store:
        await store.clear(ROOM)
        assert traces(tmp_path) == []


@contextmanager
def being_read(path: Path) -> Iterator[sqlite3.Connection]:
    """Keep reading the database, as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM exchanges").fetchone()
        yield other


@pytest.mark.parametrize("what", ["clear", "forget"])
async def test_while_another_program_reads_clearing_is_done_but_for_the_file_and_says_so(
    tmp_path: Path, what: str
) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), JumpingClock(), patience=0.1) as store:
        await talk(store)
        with being_read(tmp_path / "bot.db"), capture_logs() as logs:
            with pytest.raises(NotErased, match="still holds it") as told:
                await (store.clear(ROOM) if what == "clear" else store.forget(WROTE))
            assert told.value.count == 3
            assert await store.clear(ROOM) == 0  # no row has it
        assert "bot.db-wal still holds it" in logs[0]["error"]
        assert traces(tmp_path)
        assert await store.clear(ROOM) == 0
        assert traces(tmp_path) == []


async def test_while_another_program_reads_what_is_erased_edited_or_too_old_goes_at_once(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), ManualClock(), patience=0) as store:
        erased, edited, old = await secrets_of(store, 3)
        with being_read(tmp_path / "bot.db"):
            await store.erase(erased)
            assert await store.requeue(edited, "harmless") is not None
            await store.fail(edited, "nobody was there")
            await store.fail(old, "nobody was there")
            assert await store.expire(NOON + timedelta(days=1)) == 2
            texts = [row.message.text for row in await rows_of(store, 3)]
            assert texts == [""] * 3
            assert await store.enqueue(message(9), Kind.CHAT) is not None
        assert owes(tmp_path / "bot.db")


async def rows_of(store: SqlStore, count: int) -> list[Exchange]:
    found = [await store.find(ROOM, str(number)) for number in range(count)]
    return [exchange for exchange in found if exchange is not None]


async def test_who_deletes_while_another_program_reads_waits_no_longer_than_a_moment(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db")) as store:
        ids = await secrets_of(store, 30)
        reader = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN'); "
        reader += "c.execute('SELECT * FROM exchanges').fetchone(); print('reading', flush=True); sys.stdin.read()"
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", reader, str(tmp_path / "bot.db"), stdin=PIPE, stdout=PIPE
        )
        try:
            assert other.stdout is not None
            assert await other.stdout.readline() == b"reading\n"
            began = time.monotonic()
            for each in ids:
                await store.erase(each)
            took = time.monotonic() - began
            assert b"secret" in bytes_in(tmp_path)
        finally:
            await other.communicate(b"")
        assert took < 5, "each of them waited"
    assert b"secret" not in bytes_in(tmp_path)


async def test_clearing_succeeds_once_the_other_program_has_read(tmp_path: Path) -> None:
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


async def test_a_crash_before_the_file_was_scrubbed_is_made_up_for_at_the_next_start(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), JumpingClock(), patience=0) as store:
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


async def test_text_that_cannot_be_scrubbed_at_the_start_is_reported(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), ManualClock(), patience=0) as store:
        await talk(store)
        with being_read(tmp_path / "bot.db"):
            with pytest.raises(NotErased):
                await store.clear(ROOM)
            with capture_logs() as logs:
                async with SqlStore(url_of(tmp_path / "bot.db"), ManualClock(), patience=0):
                    pass
    assert [line["event"] for line in logs] == [
        "deleted text could not be scrubbed; trying again",
        "deleted text could not be scrubbed; the next start tries again",
    ]
    async with temporary_store(tmp_path):
        assert traces(tmp_path) == []


@contextmanager
def rewriting(takes: Callable[[], None] = lambda: None) -> Iterator[list[str]]:
    """Count how often a file is rewritten meanwhile, and let each time take long."""
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


async def test_many_deletions_at_once_are_scrubbed_together(store: SqlStore, tmp_path: Path) -> None:
    begun = [await store.enqueue(message(number, f"secret {number}"), Kind.CHAT) for number in range(50)]
    with rewriting() as rewritten:
        await asyncio.gather(*[store.erase(exchange.id) for exchange in begun if exchange is not None])
        assert b"secret" not in bytes_in(tmp_path)
        assert 1 <= len(rewritten) <= 10
        before = len(rewritten)
        assert await store.clear(ROOM) == 0  # nothing is left to be scrubbed
        assert len(rewritten) == before


# A large file: rewriting it takes long, and others wait for it.


class Laden(ManualClock):
    """Time for a file that takes three seconds to rewrite."""

    seconds = 3.0

    def pass_by(self) -> None:
        self._now += self.seconds


async def secrets_of(store: SqlStore, count: int) -> list[int]:
    begun = [await store.enqueue(message(number, f"secret {number}!"), Kind.CHAT) for number in range(count)]
    return [exchange.id for exchange in begun if exchange is not None]


async def test_a_large_file_is_rewritten_for_all_deletions_that_come_together(tmp_path: Path) -> None:
    clock = Laden()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock) as store:
        ids = await secrets_of(store, 20)
        with rewriting(clock.pass_by) as rewritten:
            await store.erase(ids[0])
            assert len(rewritten) == 1
            assert b"secret 0!" not in bytes_in(tmp_path)
            for each in ids[1:]:
                await store.erase(each)  # nobody waits for it
            assert len(rewritten) == 1
            assert await store.owed("slack") == []
            # A second of the three was saved up; the others are 2 % of a hundred.
            await clock.advance(99)
            assert len(rewritten) == 1
            await clock.advance(2)
            await vacuumed()
            assert len(rewritten) == 2
        assert b"secret" not in bytes_in(tmp_path)


async def test_what_is_deleted_while_a_large_file_is_rewritten_is_not_forgotten(tmp_path: Path) -> None:
    clock = Laden()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock) as store:
        ids = await secrets_of(store, 20)
        with rewriting(clock.pass_by) as rewritten:
            await asyncio.gather(*[store.erase(each) for each in ids])
            while b"secret" in bytes_in(tmp_path):
                await clock.advance(151)
                await vacuumed()
            assert len(rewritten) <= 3


async def test_the_words_before_an_edit_go_by_themselves(tmp_path: Path) -> None:
    async with SqlStore(url_of(tmp_path / "bot.db"), ManualClock()) as store:
        [exchange] = await secrets_of(store, 1)
        with rewriting() as rewritten:
            assert await store.requeue(exchange, "harmless") is not None
            await vacuumed()
            assert b"secret" not in bytes_in(tmp_path)
            await store.requeue(exchange)
            assert len(rewritten) == 1  # a retry deletes nothing that somebody took back


async def test_what_a_large_file_still_owes_at_a_crash_is_made_up_for_at_the_next_start(tmp_path: Path) -> None:
    clock = Laden()
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock) as store:
        ids = await secrets_of(store, 3)
        with rewriting(clock.pass_by):
            for each in ids:
                await store.erase(each)
        for name in ("bot.db", "bot.db-wal"):
            (crashed / name).write_bytes((tmp_path / name).read_bytes())
    assert b"secret 2!" in bytes_in(crashed)
    async with temporary_store(crashed):
        assert b"secret" not in bytes_in(crashed)


@pytest.mark.parametrize(("seconds", "is_clean"), [(3.0, False), (0.9, True)])
async def test_when_the_bot_ends_it_does_what_it_owes_if_that_is_a_matter_of_a_moment(
    tmp_path: Path, seconds: float, is_clean: bool
) -> None:
    clock = Laden()
    clock.seconds = seconds
    async with SqlStore(url_of(tmp_path / "bot.db"), clock) as store:
        ids = await secrets_of(store, 3)
        with rewriting(clock.pass_by) as rewritten:
            for each in ids:
                await store.erase(each)
            assert len(rewritten) == (1 if seconds > 1 else 2)
    assert owes(tmp_path / "bot.db") is not is_clean
    async with temporary_store(tmp_path):
        assert b"secret" not in bytes_in(tmp_path)
    assert not owes(tmp_path / "bot.db")


def owes(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as other:
        return bool(other.execute("PRAGMA user_version").fetchone()[0])


async def test_what_another_program_was_in_the_way_of_is_tried_again_without_another_rewriting(tmp_path: Path) -> None:
    clock = ManualClock()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock, patience=0) as store:
        await talk(store)
        with rewriting() as rewritten:
            with being_read(tmp_path / "bot.db"), pytest.raises(NotErased):
                await store.clear(ROOM)
            assert traces(tmp_path)
            await clock.advance(RETRY_AFTER)
            await vacuumed()
            assert traces(tmp_path) == []
            assert len(rewritten) == 1
    assert not owes(tmp_path / "bot.db")


async def test_another_program_that_stays_in_the_way_is_reported_now_and_then(tmp_path: Path) -> None:
    class Noting(ManualClock):
        async def sleep(self, seconds: float) -> None:
            asleep.set()
            await super().sleep(seconds)

    clock, asleep = Noting(), asyncio.Event()
    async with SqlStore(url_of(tmp_path / "bot.db"), clock, patience=0) as store:
        await secrets_of(store, 1)
        with being_read(tmp_path / "bot.db"):
            with pytest.raises(NotErased):
                await store.clear(ROOM)
            await asleep.wait()
            with capture_logs() as logs:
                for factor in (1, 2):
                    asleep.clear()
                    await clock.advance(factor * RETRY_AFTER)
                    await asleep.wait()
    assert [(line["event"], line["seconds"]) for line in logs] == [
        ("deleted text could not be scrubbed; trying again", seconds) for seconds in (2 * RETRY_AFTER, 4 * RETRY_AFTER)
    ]
    assert b"secret" not in bytes_in(tmp_path)


def test_an_allowance_is_a_small_share_of_the_time() -> None:
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
async def test_rows_that_grew_and_moved_leave_no_copies_behind(store: SqlStore, tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    channels = [ChannelKey("slack", f"C{number}") for number in range(4)]
    unanswered: list[tuple[int, str]] = []
    for number in range(400):
        channel = dice.choice(channels)
        words = f"{channel.channel} says {number:06}. "
        asked = message(number, words * dice.choice([1, 2, 5, 20, 60, 150, 300, 600]), channel)
        exchange = await store.enqueue(asked, Kind.CHAT)
        assert exchange is not None
        unanswered.append((exchange.id, words))
        if dice.random() < 0.8:
            which, words = unanswered.pop(dice.randrange(len(unanswered)))
            await store.record_answer(which, Answer(words * dice.choice([1, 5, 30, 100, 250, 700]), words))
            if dice.random() < 0.2:
                await store.requeue(which, words * dice.choice([1, 50, 300]))
    for channel in channels:
        await store.clear(channel)
        assert f"{channel.channel} says ".encode() not in bytes_in(tmp_path)


async def test_ids_do_not_come_back_after_rows_were_deleted(store: SqlStore, tmp_path: Path) -> None:
    last = await talk(store)
    with closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as other:
        other.execute("DELETE FROM exchanges")
    exchange = await store.enqueue(message("new"), Kind.CHAT)
    assert exchange is not None
    assert exchange.id == last + 1


async def test_scrubbing_takes_no_memory_for_a_copy_of_the_file(store: SqlStore) -> None:
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
