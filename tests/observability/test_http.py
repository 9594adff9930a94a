"""The operations server over a real connection."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from bot.config.http import OperationsSection
from bot.errors import AddressUnavailable
from bot.observability.health import Components, Health
from bot.observability.http import create_app, serve_operations
from bot.util import http_server
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.platform import TIMEOUT
from tests.harness.ports import reserved_port
from tests.harness.probe import HealthProbe
from tests.storage import temporary_store

ANY_PORT = OperationsSection(port=0)


@pytest.fixture
def parts() -> Components:
    return Components()


@pytest.fixture
async def probe(parts: Components) -> AsyncIterator[HealthProbe]:
    app = create_app(Health(parts, 60.0, ManualClock()), CollectorRegistry())
    async with serve_operations(ANY_PORT, app) as port, aiohttp.ClientSession() as http:
        yield HealthProbe(http, port)


async def test_it_is_alive_and_not_ready_while_the_model_loads(probe: HealthProbe) -> None:
    assert await probe.get("/livez") == (200, "alive\n")
    assert await probe.ready() == (503, {"program": "ok", "store": "opening", "engine": "loading"})


async def test_it_is_ready_when_all_components_are(probe: HealthProbe, parts: Components, tmp_path: Path) -> None:
    async with temporary_store(tmp_path) as store:
        parts.store, parts.engine = store, ScriptedEngine()
        assert await probe.ready() == (200, {"program": "ok", "store": "ok", "engine": "ok"})


async def test_a_stuck_engine_is_not_ready_but_alive(probe: HealthProbe, parts: Components, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine.since_progress = 61.0
    async with temporary_store(tmp_path) as store:
        parts.store, parts.engine = store, engine
        status, said = await probe.ready()
        assert (status, said["engine"]) == (503, "no step has ended for 61 s")
        assert (await probe.get("/livez"))[0] == 200


async def test_other_paths_are_not_found(probe: HealthProbe) -> None:
    assert (await probe.get("/"))[0] == 404


async def test_a_port_in_use_is_one_sentence(parts: Components) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        app = create_app(Health(parts, 60.0, ManualClock()), CollectorRegistry())
        with pytest.raises(
            AddressUnavailable, match=rf"127\.0\.0\.1:{port} \(Address already in use\); .*operations\.port"
        ) as caught:
            async with serve_operations(OperationsSection(port=port), app):
                raise AssertionError("it listens on a port in use")
    assert "\n" not in str(caught.value)


async def test_it_listens_on_ipv6_too(parts: Components) -> None:
    app = create_app(Health(parts, 60.0, ManualClock()), CollectorRegistry())
    async with (
        serve_operations(OperationsSection(host="::1", port=0), app) as port,
        aiohttp.ClientSession() as http,
        http.get(f"http://[::1]:{port}/livez") as answer,
    ):
        assert answer.status == 200


async def test_shutdown_frees_the_port_without_waiting_for_an_open_connection(parts: Components) -> None:
    app = create_app(Health(parts, 60.0, ManualClock()), CollectorRegistry())
    with reserved_port() as port:
        async with asyncio.timeout(TIMEOUT):
            async with serve_operations(OperationsSection(port=port), app):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /livez HTTP/1.1\r\n")  # and the rest never comes
                await writer.drain()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        with socket.create_server(("127.0.0.1", port)):
            pass


@pytest.mark.parametrize(
    "sent", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nX: ", b"GET /livez HTTP/1.1\r\n\r\n", b"\x16\x03\x01"]
)
async def test_a_flood_of_connections_leaves_room_for_a_probe(
    sent: bytes, parts: Components, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_LIMIT", 128)
    app = create_app(Health(parts, 60.0, ManualClock()), CollectorRegistry())
    descriptors = Path("/proc/self/fd")
    async with asyncio.timeout(TIMEOUT), serve_operations(ANY_PORT, app) as port, aiohttp.ClientSession() as http:
        before, clients = len(list(descriptors.iterdir())), []
        for _ in range(400):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            clients.append(writer)
        assert (await HealthProbe(http, port).get("/livez"))[0] == 200
        held = len(list(descriptors.iterdir())) - before - len(clients)
        for writer in clients:
            writer.close()
    assert held <= 200, "of 400 connections the server holds a bounded number"
    assert len(caplog.records) <= 2
