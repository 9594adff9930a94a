"""Several bots on one database: waiting for the lock, and the end of a process that has lost it."""

import asyncio
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bot.errors import StoreError, StoreInUse
from bot.storage import standby
from bot.storage.instance_lock import InstanceLock
from bot.storage.standby import HolderWatch, acquire_in_turn, in_turn
from bot.util.clock import MonotonicClock
from tests.harness.fakes.clock import JumpingClock
from tests.harness.platform import TIMEOUT
from tests.harness.postgres import PostgresServer
from tests.storage import url_of


@pytest.fixture
def server_url(postgres: PostgresServer) -> str:
    return postgres.url(postgres.database())


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return url_of(tmp_path / "data" / "bot.db")
    given: str = request.getfixturevalue("server_url")
    return given


async def test_the_next_bot_begins_once_the_one_before_has_ended(url: str) -> None:
    first, second = InstanceLock(url), InstanceLock(url)
    assert first.try_acquire()
    reported = asyncio.Event()
    waiting = asyncio.create_task(acquire_in_turn(second, MonotonicClock(), lambda reason: reported.set()))
    await reported.wait()
    assert not waiting.done()

    await asyncio.to_thread(first.release)
    async with asyncio.timeout(TIMEOUT):
        await waiting

    assert second.is_handed_over, "it need not wait for a process that has ended in order"
    assert not first.try_acquire()
    second.release()
    first.release()


async def test_the_next_bot_serves_a_platform_once_the_one_before_has_ended(server_url: str) -> None:
    first, second = (InstanceLock(server_url, platform="telegram") for _ in range(2))
    assert first.try_acquire()
    reported, serves, clock = asyncio.Event(), asyncio.Event(), JumpingClock()

    async def serve() -> None:
        async with in_turn(second, clock, lambda reason: reported.set()):
            serves.set()
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    await reported.wait()
    assert not serves.is_set()
    first.release()
    async with asyncio.timeout(TIMEOUT):
        await serves.wait()
    assert clock.now() == 0.0, "no time of grace"
    assert not first.try_acquire()
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert first.try_acquire()
    first.release()


async def test_a_session_that_the_server_ended_is_not_a_process_that_has_ended(
    server_url: str, postgres: PostgresServer
) -> None:
    first, second = InstanceLock(server_url), InstanceLock(server_url)
    assert first.try_acquire()
    assert not second.try_acquire()

    _end_holder(postgres, server_url)
    async with asyncio.timeout(TIMEOUT):
        await acquire_in_turn(second, MonotonicClock(), lambda reason: None)

    assert not second.is_handed_over
    with pytest.raises(StoreError):
        first.renew()  # notices that its session has ended
    with pytest.raises(StoreInUse):
        first.renew()
    second.release()


async def test_a_bot_that_a_third_one_overtook_waits_again(server_url: str) -> None:
    first, second, third = (InstanceLock(server_url) for _ in range(3))
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert third.try_acquire()
    second.wait(TIMEOUT)  # for the message of the first one
    assert not second.try_acquire()
    assert not second.is_handed_over
    third.release()
    second.release()


async def test_a_server_that_is_away_is_reported_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = InstanceLock(url_of(tmp_path / "bot.db"))
    outcomes = iter([StoreError("the server is away"), StoreError("the server is away"), False, True])

    def try_acquire() -> bool:
        match next(outcomes):
            case StoreError() as error:
                raise error
            case outcome:
                return bool(outcome)

    monkeypatch.setattr(lock, "try_acquire", try_acquire)
    monkeypatch.setattr(lock, "wait", lambda seconds: None)
    reasons: list[str | None] = []
    with capture_logs() as logs:
        await acquire_in_turn(lock, JumpingClock(), reasons.append)

    assert reasons == ["the server is away", "the server is away", None]
    assert [line["event"] for line in logs] == [
        "the database cannot be reached, standing by",
        "the database can be reached again, standing by",
    ], "an outage is logged once"


def test_the_session_of_a_stopped_process_is_ended(server_url: str) -> None:
    stopped, without_lease = InstanceLock(server_url, lease=TIMEOUT), InstanceLock(server_url)
    assert stopped.try_acquire()
    assert not without_lease.try_acquire()
    assert not InstanceLock(server_url, lease=TIMEOUT).try_acquire()

    waiting = InstanceLock(server_url, lease=0.0)
    assert not waiting.try_acquire()
    while not waiting.try_acquire():
        waiting.wait(0.01)
    with pytest.raises(StoreError):
        stopped.renew()
    waiting.release()
    without_lease.release()


def test_the_session_of_a_bot_without_a_lease_is_left_alone(server_url: str) -> None:
    alone, waiting = InstanceLock(server_url), InstanceLock(server_url, lease=0.0)
    assert alone.try_acquire()
    assert not waiting.try_acquire()
    assert not waiting.try_acquire()
    alone.renew()
    waiting.release()
    alone.release()


class Exit:
    """Records that the process would have ended."""

    def __init__(self) -> None:
        self.is_called = threading.Event()

    def __call__(self) -> None:
        self.is_called.set()


def test_a_bot_whose_place_is_taken_ends_at_once(server_url: str, postgres: PostgresServer) -> None:
    exit = Exit()
    first, second = InstanceLock(server_url), InstanceLock(server_url)
    assert first.try_acquire()
    with capture_logs() as logs, HolderWatch(first, exit=exit):
        _end_holder(postgres, server_url)
        assert second.try_acquire()
        assert exit.is_called.wait(TIMEOUT)

    [line] = logs
    assert line["event"] == "another bot may serve the database: this one ends at once"
    second.release()
    first.release()


def test_a_session_that_is_opened_again_in_time_ends_nothing(server_url: str, postgres: PostgresServer) -> None:
    exit = Exit()
    lock = InstanceLock(server_url)
    assert lock.try_acquire()
    with HolderWatch(lock, exit=exit):
        before = _holder(postgres, server_url)
        _end_holder(postgres, server_url)
        while _holder(postgres, server_url) in (None, before):
            assert not exit.is_called.is_set()
    assert not exit.is_called.is_set()
    lock.release()


def test_a_process_that_was_stopped_for_too_long_makes_no_further_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exit = Exit()
    lock = InstanceLock(url_of(tmp_path / "bot.db"))
    assert lock.try_acquire()
    watch = HolderWatch(lock, exit=exit)
    now = standby._now()
    monkeypatch.setattr(standby, "_now", lambda: now + standby.LOST_AFTER + 0.1)
    monkeypatch.setattr(lock, "renew", lambda: pytest.fail("it was stopped"))
    with watch:
        assert exit.is_called.wait(TIMEOUT)
    lock.release()


def test_a_server_that_does_not_respond_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exit, responds = Exit(), threading.Event()
    lock = InstanceLock(url_of(tmp_path / "bot.db"))
    assert lock.try_acquire()
    monkeypatch.setattr(lock, "renew", responds.wait)
    with HolderWatch(lock, exit=exit):
        assert exit.is_called.wait(TIMEOUT)
        responds.set()
    lock.release()


_HOLDER = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def _holder(postgres: PostgresServer, url: str) -> int | None:
    found = postgres.run(_HOLDER, _database(url))
    return found[0][0] if found else None


def _end_holder(postgres: PostgresServer, url: str) -> None:
    """End the session that holds the lock, as the server's operator can."""
    ending = f"SELECT pg_terminate_backend(pid, 60000) FROM ({_HOLDER}) AS holder"
    assert postgres.run(ending, _database(url)) == [(True,)]


def _database(url: str) -> str:
    return url.rpartition("/")[2]
