"""The list of the bots that share a server's database."""

import platform

import pytest

from bot import __version__
from bot.domain import RunningBot
from bot.errors import StoreError
from bot.storage.bots import SharedBots
from bot.storage.instance_lock import InstanceLock
from tests.harness.postgres import PostgresServer

ALL = ("discord", "slack", "telegram")


def lock(url: str, host: str, monkeypatch: pytest.MonkeyPatch, served: str = "") -> InstanceLock:
    """Return a lock of a bot on this host, held: of the platform, or shared of the database."""
    monkeypatch.setattr(platform, "node", lambda: host)
    monkeypatch.setattr("os.getpid", lambda: 7)
    held = InstanceLock(url, lease=6.0, platform=served, is_shared=not served)
    assert held.try_acquire()
    return held


def test_each_bot_is_listed_with_the_platforms_whose_locks_it_holds(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(postgres.database())
    bots = SharedBots(url, ALL)
    assert bots.read() == []
    first = [lock(url, "attic", monkeypatch, served) for served in ("", "telegram", "discord")]
    second = [lock(url, "cellar", monkeypatch)]
    assert bots.read() == [
        RunningBot("attic:7", __version__, ("discord", "telegram")),
        RunningBot("cellar:7", __version__, ()),
    ]
    first.pop().release()
    second.append(lock(url, "cellar", monkeypatch, "discord"))
    assert [bot.platforms for bot in bots.read()] == [("telegram",), ("discord",)]
    for each in (*first, *second):
        each.release()
    assert bots.read() == []
    bots.close()


def test_bots_of_another_schema_are_not_listed(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    database = postgres.database()
    postgres.run("CREATE SCHEMA other", database)
    url = postgres.url(database)
    elsewhere = f"{url}?options=-c%20search_path%3Dother"
    held = [lock(elsewhere, "attic", monkeypatch, served) for served in ("", "slack")]
    bots, others = SharedBots(url, ALL), SharedBots(elsewhere, ALL)
    assert (bots.read(), [bot.platforms for bot in others.read()]) == ([], [("slack",)])
    for each in held:
        each.release()
    bots.close()
    others.close()


def test_a_long_or_foreign_host_name_is_cut_and_the_process_kept(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url(postgres.database())
    held, bots = lock(url, "机房" + 80 * "x", monkeypatch), SharedBots(url, ALL)
    [bot] = bots.read()
    assert bot.name.startswith("??xxx")
    assert bot.name.endswith("x:7")
    held.release()
    bots.close()


def test_a_session_that_the_server_ended_is_opened_again(postgres: PostgresServer) -> None:
    database = postgres.database()
    bots = SharedBots(postgres.url(database), ALL)
    assert bots.read() == []
    postgres.end_sessions(database)
    with pytest.raises(StoreError):
        bots.read()
    assert bots.read() == []
    bots.close()
