"""The parts put together: they serve, end in good order, and one sentence says why they cannot."""

import asyncio
import io
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import aiohttp
import pytest
from pydantic import SecretStr

from bot import app, cluster
from bot.adapters.base import Adapter
from bot.adapters.console.settings import ConsoleSection
from bot.chat.intake import Intake
from bot.config.http import OperationsSection
from bot.config.reload import ConfigSource
from bot.config.schema import AdapterSection, Config, EngineSection, StorageSection
from bot.domain import EngineLoad, ModelStatus
from bot.engine import Progress
from bot.engine.base import silent
from bot.errors import AddressUnavailable, EngineUnavailable, LoginRefused, StoreError, StoreInUse, StoreLost
from bot.storage.instance_lock import InstanceLock
from bot.storage.schema import exchanges
from bot.storage.sql import SqlStore
from bot.util.clock import Clock
from bot.util.shutdown import ShutdownDeadline
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.harness import make_harness
from tests.harness.messages import a_message
from tests.harness.platform import TIMEOUT
from tests.harness.ports import reserved_port
from tests.harness.probe import HealthProbe
from tests.storage import decrypted_rows, url_of


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        engine=EngineSection(backend="echo"),
        storage=StorageSection(url=SecretStr(f"sqlite+aiosqlite:///{tmp_path / 'bot.db'}")),
        adapters={"console": ConsoleSection()},
    )


def standing_in(monkeypatch: pytest.MonkeyPatch, adapter: Adapter) -> None:
    def open_adapter(name: str, settings: AdapterSection, clock: Clock) -> Adapter:
        return adapter

    monkeypatch.setattr(app, "open_adapter", open_adapter)


class Connected:
    is_connected = True


@contextmanager
def signals_given_back() -> Iterator[None]:
    """A process that ends takes SIGTERM and SIGINT over for good; this one goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def test_it_serves_until_its_adapters_have_ended(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    monkeypatch.setattr(sys, "stdout", screen)
    await app.serve(config, silent)
    assert screen.getvalue() == "hello\n"


async def test_a_refused_token_ends_it_with_that_one_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Connected):
        async def run(self, intake: Intake) -> None:
            raise LoginRefused("Discord does not know this token")

    standing_in(monkeypatch, Refused())
    with pytest.raises(LoginRefused, match="does not know this token"):
        await app.run(config, silent)


async def test_an_internal_error_is_not_hidden(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Connected):
        async def run(self, intake: Intake) -> None:
            raise ZeroDivisionError

    standing_in(monkeypatch, Broken())
    with pytest.raises(ExceptionGroup):
        await app.run(config, silent)


async def test_sigterm_ends_it_without_an_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting(Connected):
        async def run(self, intake: Intake) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()

    standing_in(monkeypatch, Waiting())
    codes: list[int] = []
    shown: list[tuple[int, int]] = []
    with signals_given_back():
        await app.serve(config, lambda done, total: shown.append((done, total)), ShutdownDeadline(exit=codes.append))
    assert codes == [0]
    assert set(shown) == {(1, 1)}, "the loading bar is taken away"


async def test_ctrl_c_is_passed_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting(Connected):
        async def run(self, intake: Intake) -> None:
            task.cancel()  # as the event loop does on SIGINT
            await asyncio.Event().wait()

    standing_in(monkeypatch, Waiting())
    task = asyncio.create_task(app.serve(config, silent, ShutdownDeadline(exit=int)))
    with signals_given_back(), pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
def watched(config: Config) -> Iterator[Config]:
    """The config with an operations server."""
    with reserved_port() as port:
        yield config.model_copy(update={"operations": OperationsSection(enabled=True, port=port)})


async def test_it_can_be_watched_from_the_first_moment_to_the_last(
    watched: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(ScriptedEngine):
        async def __aenter__(self) -> Self:
            loading.set()
            await loaded.wait()
            return self

    class Draining(Connected):
        async def run(self, intake: Intake) -> None:
            serving.set()
            try:
                await asyncio.Event().wait()
            finally:
                stopping.set()
                await drained.wait()

    async def ready() -> tuple[int, dict[str, str]]:
        probe = HealthProbe(http, watched.operations.port)
        assert (await probe.get("/livez"))[0] == 200
        return await probe.ready()

    loading, loaded, serving, stopping, drained = (asyncio.Event() for _ in range(5))
    standing_in(monkeypatch, Draining())
    monkeypatch.setattr(app, "open_engine", lambda options, progress: Slow())
    running = asyncio.create_task(app.run(watched, silent))
    async with asyncio.timeout(TIMEOUT), aiohttp.ClientSession() as http:
        await loading.wait()
        assert await ready() == (503, {"program": "ok", "store": "ok", "engine": "loading"})
        loaded.set()
        await serving.wait()
        assert await ready() == (200, {"program": "ok", "store": "ok", "engine": "ok", "console": "ok"})
        running.cancel()
        await stopping.wait()
        assert await ready() == (503, {"program": "stopping", "store": "ok", "engine": "ok", "console": "ok"})
        drained.set()
        with pytest.raises(asyncio.CancelledError):
            await running
        with pytest.raises(aiohttp.ClientConnectionError):
            await ready()


async def test_a_taken_port_ends_it_before_anything_is_opened(watched: Config, tmp_path: Path) -> None:
    with (
        socket.create_server((watched.operations.host, watched.operations.port)),
        pytest.raises(AddressUnavailable, match=r"change operations\.port"),
    ):
        await app.run(watched, silent)
    assert not (tmp_path / "bot.db").exists()


async def test_texts_are_deleted_once_they_are_too_old(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with make_harness(tmp_path) as harness:
        await harness.ask(replace(a_message("long ago"), sent_at=datetime.now(UTC) - timedelta(days=8)))
        await harness.ask(replace(a_message("lately"), sent_at=datetime.now(UTC) - timedelta(days=6)))
    gone = asyncio.Event()

    class Waiting(Connected):
        async def run(self, intake: Intake) -> None:
            await gone.wait()

    class Watched(SqlStore):
        async def expire(self, before: datetime) -> int:
            count = await super().expire(before)
            gone.set()
            return count

    standing_in(monkeypatch, Waiting())
    monkeypatch.setattr(app, "SqlStore", Watched)
    kept = config.storage.model_copy(update={"retention_days": 7})
    await app.run(config.model_copy(update={"storage": kept}), silent)
    assert [row["text"] for row in decrypted_rows(url_of(tmp_path / "bot.db"), exchanges)] == ["", "lately"]


class Forever(Connected):
    async def run(self, intake: Intake) -> None:
        await asyncio.Event().wait()


async def test_a_second_bot_on_the_same_database_opens_nothing(config: Config, tmp_path: Path) -> None:
    with InstanceLock(config.storage.url.get_secret_value()):
        with pytest.raises(StoreInUse):
            await app.run(config, silent)
        assert not (tmp_path / "bot.db").exists()


async def test_a_bot_whose_database_another_one_took_meanwhile_ends(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = iter([None, StoreError("the server is away"), StoreInUse("another bot was faster")])

    def renew(claim: InstanceLock) -> None:
        if (outcome := next(outcomes)) is not None:
            raise outcome

    monkeypatch.setattr(InstanceLock, "renew", renew)
    monkeypatch.setattr(cluster, "_LOCK_INTERVAL", 0.0)
    standing_in(monkeypatch, Forever())
    with pytest.raises(StoreInUse, match="was faster"):
        await app.run(config, silent)
    assert [each.levelname for each in caplog.records if "cannot be renewed" in each.message] == ["WARNING"]


@pytest.mark.parametrize("name", ["bot.db", "bot.db.keys"])
@pytest.mark.parametrize("is_replaced", [True, False])
async def test_a_bot_whose_database_is_lost_ends(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_replaced: bool
) -> None:
    class Losing(Forever):
        async def run(self, intake: Intake) -> None:
            (tmp_path / name).rename(tmp_path / "away")
            if is_replaced:
                (tmp_path / name).touch()
            await super().run(intake)

    monkeypatch.setattr(app, "_FILES_INTERVAL", 0.01)
    standing_in(monkeypatch, Losing())
    with pytest.raises(StoreLost, match=rf"{name} was deleted or replaced while the bot was running") as end:
        await app.run(config, silent)
    assert end.value.exit_code == 1


async def test_a_bot_whose_model_is_down_exits_to_be_restarted(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing(Forever):
        async def run(self, intake: Intake) -> None:
            engine.down = "its worker died"
            await super().run(intake)

    engine = ScriptedEngine()
    monkeypatch.setattr(app, "open_engine", lambda options, progress: engine)
    standing_in(monkeypatch, Losing())
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(EngineUnavailable, match="its worker died") as end:
            await app.run(config, silent)
    assert end.value.exit_code == 1


async def test_a_missing_model_is_tolerated_during_a_change() -> None:
    class Changing(ScriptedEngine):
        is_changing = True

        @property
        def load(self) -> EngineLoad:
            return replace(super().load, is_changing=self.is_changing)

    engine, clock = Changing(), ManualClock()
    engine.down = "the engine was closed"
    watching = asyncio.create_task(app._check_models(lambda: [ModelStatus("engine", engine.info, engine.load)], clock))
    await clock.advance(60)
    assert not watching.done()
    engine.is_changing = False
    await clock.advance(60)
    with pytest.raises(EngineUnavailable, match="was closed"):
        await watching


class Serving(Connected):
    """Says when it serves, and does so until it is cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def run(self, intake: Intake) -> None:
        self.begun.set()
        await asyncio.Event().wait()


def source_of(config: Config, path: Path, changed: EngineSection) -> ConfigSource:
    """Return a source whose reload changes the engine section."""
    return ConfigSource(path, lambda: config.model_copy(update={"engine": changed}))


async def test_sighup_reloads_the_settings_and_a_bot_without_a_model_exits(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Lost(ScriptedEngine):
        async def __aenter__(self) -> Self:
            raise EngineUnavailable("no memory")

    adapter, opened = Serving(), iter([ScriptedEngine(), Lost(), Lost()])
    standing_in(monkeypatch, adapter)
    monkeypatch.setattr(app, "open_engine", lambda options, progress: next(opened))
    config = config.model_copy(update={"adapters": {"elsewhere": AdapterSection(enabled=True)}})
    source = source_of(config, tmp_path / "config.toml", config.engine.model_copy(update={"max_batch_size": 2}))
    running = asyncio.create_task(app.run(config, silent, source))
    async with asyncio.timeout(TIMEOUT):
        await adapter.begun.wait()
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(EngineUnavailable, match="Restoring the previous model failed too: no memory"):
            await running


async def test_sighup_while_the_model_is_loaded_reloads_once_the_bot_serves(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Loading(ScriptedEngine):
        async def __aenter__(self) -> Self:
            os.kill(os.getpid(), signal.SIGHUP)
            return await super().__aenter__()

    standing_in(monkeypatch, Serving())
    opened: list[EngineSection] = []

    def open_engine(section: EngineSection, progress: Progress) -> ScriptedEngine:
        opened.append(section)
        return Loading() if len(opened) == 1 else ScriptedEngine()

    monkeypatch.setattr(app, "open_engine", open_engine)
    config = config.model_copy(update={"adapters": {"elsewhere": AdapterSection(enabled=True)}})
    source = source_of(config, tmp_path / "config.toml", config.engine.model_copy(update={"max_batch_size": 2}))
    running = asyncio.create_task(app.run(config, silent, source))
    async with asyncio.timeout(TIMEOUT):
        while len(opened) < 2 and not running.done():  # noqa: ASYNC110 - a thread opens it
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert [section.max_batch_size for section in opened] == [config.engine.max_batch_size, 2]


async def test_sigterm_ends_it_while_the_model_is_changed(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Slow(ScriptedEngine):
        async def __aenter__(self) -> Self:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
            return self

    opened = iter([ScriptedEngine(), Slow()])
    monkeypatch.setattr(app, "open_engine", lambda options, progress: next(opened))

    class Asking(Serving):
        async def run(self, intake: Intake) -> None:
            os.kill(os.getpid(), signal.SIGHUP)
            await super().run(intake)

    standing_in(monkeypatch, Asking())
    config = config.model_copy(update={"adapters": {"elsewhere": AdapterSection(enabled=True)}})
    source = source_of(config, tmp_path / "config.toml", config.engine.model_copy(update={"max_batch_size": 2}))
    codes: list[int] = []
    with signals_given_back():
        async with asyncio.timeout(TIMEOUT):
            await app.serve(config, silent, ShutdownDeadline(exit=codes.append), source)
    assert codes == [0]
