"""The instance lock: one bot per database, released when its process ends."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bot.errors import StoreError, StoreInUse
from bot.storage.instance_lock import InstanceLock
from tests.harness.postgres import PostgresServer
from tests.storage import url_of

HOLDER = """
import sys
from bot.storage.instance_lock import InstanceLock
with InstanceLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold_in_another_process(url: str) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return url_of(tmp_path / "data" / "bot.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.url(server.database())


def test_a_second_bot_is_refused_until_the_first_releases_the_lock(url: str) -> None:
    with (
        InstanceLock(url),
        pytest.raises(StoreInUse, match=r"is in use by another bot.*stop that one"),
        InstanceLock(url, timeout=0),
    ):
        pass
    with InstanceLock(url, timeout=0):
        pass


def test_a_new_bot_waits_for_one_that_is_about_to_end(url: str) -> None:
    first = InstanceLock(url)
    first.__enter__()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            first.__exit__(None, None, None)

    with InstanceLock(url, sleep=sleep):
        assert len(waits) == 3


def test_a_killed_process_releases_the_lock(url: str) -> None:
    with hold_in_another_process(url) as holder:
        with pytest.raises(StoreInUse), InstanceLock(url, timeout=0):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with InstanceLock(url):
        pass


def test_renewing_a_held_lock_changes_nothing(url: str) -> None:
    with InstanceLock(url) as lock:
        lock.renew()
        with pytest.raises(StoreInUse), InstanceLock(url, timeout=0):
            pass


def test_two_databases_have_two_locks(tmp_path: Path) -> None:
    with InstanceLock(url_of(tmp_path / "a.db")), InstanceLock(url_of(tmp_path / "b.db"), timeout=0):
        pass


def test_a_file_has_one_lock_under_all_its_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with (
        InstanceLock(url_of(tmp_path / "data" / "bot.db")),
        pytest.raises(StoreInUse),
        InstanceLock(url_of(tmp_path / "link" / "bot.db"), timeout=0),
    ):
        pass


def test_a_database_with_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bot.db").touch()
    with InstanceLock(url_of(tmp_path / "bot.db")) as lock:
        (tmp_path / "other.db").hardlink_to(tmp_path / "bot.db")
        with (
            pytest.raises(StoreError, match=r"other\.db has 2 names \(hard links\)"),
            InstanceLock(url_of(tmp_path / "other.db"), timeout=0),
        ):
            pass
        lock.renew()


def test_the_error_names_the_process_that_has_the_lock(tmp_path: Path) -> None:
    with (
        InstanceLock(url_of(tmp_path / "bot.db")),
        pytest.raises(StoreInUse, match=rf"another bot \(process {os.getpid()} on \S+\): stop"),
        InstanceLock(url_of(tmp_path / "bot.db"), timeout=0),
    ):
        pass


def test_a_damaged_lock_file_is_ignored(tmp_path: Path) -> None:
    with InstanceLock(url_of(tmp_path / "bot.db")):
        (tmp_path / "bot.db.lock").write_bytes(b"\xff")
        with (
            pytest.raises(StoreInUse, match="another bot: stop"),
            InstanceLock(url_of(tmp_path / "bot.db"), timeout=0),
        ):
            pass


def mode_of_the_lock(database: Path) -> int:
    with InstanceLock(url_of(database)):
        return stat.S_IMODE(database.with_name("bot.db.lock").stat().st_mode)


def test_the_lock_file_of_a_new_database_has_mode_0600(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert mode_of_the_lock(tmp_path / "bot.db") == 0o600
    finally:
        os.umask(before)


@pytest.mark.parametrize(("database", "lock"), [(0o600, 0o600), (0o660, 0o660), (0o440, 0o640), (0o700, 0o600)])
def test_an_existing_lock_file_gets_the_mode_of_the_database(tmp_path: Path, database: int, lock: int) -> None:
    for name, mode in {"bot.db": database, "bot.db.lock": 0o644}.items():
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    assert mode_of_the_lock(tmp_path / "bot.db") == lock


def test_a_lock_file_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    (tmp_path / "bot.db.lock").mkdir()
    with pytest.raises(StoreError, match=r"bot\.db cannot be opened.*Is a directory"):
        InstanceLock(url_of(tmp_path / "bot.db")).__enter__()


def test_the_lock_is_acquired_again_after_a_server_restart(postgres: PostgresServer) -> None:
    database = postgres.database()
    with InstanceLock(postgres.url(database)) as lock:
        postgres.end_sessions(database)
        with pytest.raises(StoreError, match="closed the connection"):
            lock.renew()
        lock.renew()
        with pytest.raises(StoreInUse), InstanceLock(postgres.url(database), timeout=0):
            pass


def test_renewing_fails_when_another_bot_has_the_lock(postgres: PostgresServer) -> None:
    database = postgres.database()
    with InstanceLock(postgres.url(database)) as lock:
        postgres.end_sessions(database)
        with pytest.raises(StoreError):
            lock.renew()
        with InstanceLock(postgres.url(database)), pytest.raises(StoreInUse):
            lock.renew()


def test_the_server_detects_a_dead_client_within_12_seconds(postgres: PostgresServer) -> None:
    database = postgres.database()
    with InstanceLock(postgres.url(database)) as lock:
        session = lock._lock._session  # type: ignore[union-attr]  # not visible otherwise
        assert session is not None
        shown = [
            session.exec_driver_sql(f"SHOW tcp_keepalives_{each}").scalar() for each in ("idle", "interval", "count")
        ]
    assert shown == ["6", "2", "3"]


def test_an_unreachable_server_is_reported() -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        InstanceLock("postgresql://bot@127.0.0.1:1/bot").__enter__()


def test_two_schemas_of_one_database_have_two_locks(postgres: PostgresServer) -> None:
    database = postgres.database()
    postgres.run("CREATE SCHEMA other", database)
    url = postgres.url(database)
    with InstanceLock(url), InstanceLock(f"{url}?options=-c%20search_path%3Dother", timeout=0):
        pass


def test_bots_that_share_a_database_keep_a_bot_out_that_does_not(postgres: PostgresServer) -> None:
    url = postgres.url(postgres.database())
    first, second, alone = InstanceLock(url, is_shared=True), InstanceLock(url, is_shared=True), InstanceLock(url)
    assert first.try_acquire()
    assert second.try_acquire()
    assert not alone.try_acquire()
    first.release()
    assert not alone.try_acquire()
    second.release()
    assert alone.try_acquire()
    assert not first.try_acquire()
    alone.release()
    first.release()


def test_each_platform_has_a_lock_of_its_own(postgres: PostgresServer) -> None:
    url = postgres.url(postgres.database())
    locks = [InstanceLock(url, platform=platform) for platform in ("discord", "telegram", "discord")]
    whole = InstanceLock(url)
    assert [each.try_acquire() for each in (*locks, whole)] == [True, True, False, True]
    with pytest.raises(StoreInUse, match=r"another bot on .* serves discord"):
        locks[2].renew()
    locks[0].release()
    assert locks[2].try_acquire()
    for each in (*locks, whole):
        each.release()
