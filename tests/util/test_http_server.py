"""Bounded connections of HTTP servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import structlog
from aiohttp import web
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from bot.util import http_server
from bot.util.http_server import BoundedConnections, serve_app

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@asynccontextmanager
async def serving(*, limit: int = 8, seconds: float = 600.0) -> AsyncIterator[int]:
    """Run a small server; yield its port."""

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        return web.Response(text="hello")

    inner = web.Server(answer)
    bounded = BoundedConnections(inner, "test", limit=limit, seconds=seconds)
    server = await asyncio.get_running_loop().create_server(bounded, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        inner.pre_shutdown()
        await inner.shutdown(1.0)


class Clients:
    """Connections to a port, closed at the end."""

    def __init__(self) -> None:
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self, port: int, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self._writers.append(writer)
        writer.write(sent)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


@pytest.fixture
async def clients() -> AsyncIterator[Clients]:
    clients = Clients()
    yield clients
    await clients.close()


async def test_silent_connections_leave_room_for_a_request(clients: Clients) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving() as port:
            for _ in range(40):
                await clients.connect(port)
            reader, _ = await clients.connect(port, REQUEST)
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    assert [line["limit"] for line in logs] == [8]


async def test_the_servers_protocol_is_made_for_the_first_byte_and_silent_connections_end_with_it(
    clients: Clients,
) -> None:
    made: list[asyncio.Protocol] = []
    received = asyncio.Queue[asyncio.Protocol]()

    class Inner(asyncio.Protocol):
        def __init__(self) -> None:
            made.append(self)

        def data_received(self, data: bytes) -> None:
            received.put_nowait(self)

    bounded = BoundedConnections(Inner, "test")
    server = await asyncio.get_running_loop().create_server(bounded, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        silent, _ = await clients.connect(port)
        _, writer = await clients.connect(port, b"x")
        first = await received.get()
        bounded.close()
        with suppress(ConnectionError):
            assert await silent.read() == b""
        writer.write(b"x")
        assert await received.get() is first
        assert made == [first]


async def test_a_request_under_way_outlasts_newer_connections_without_headers(clients: Clients) -> None:
    async with serving() as port:
        reader, writer = await clients.connect(port, REQUEST)
        await reader.readuntil(b"hello")
        for _ in range(40):
            await clients.connect(port, b"GET / HTTP/1.1\r\nX-Slow: ")
        writer.write(REQUEST)
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"])
async def test_an_unfinished_request_is_closed_in_time(clients: Clients, sent: bytes) -> None:
    async with serving(seconds=0.05) as port:
        reader, _ = await clients.connect(port, sent)
        with suppress(ConnectionResetError):
            await reader.read()
        assert reader.at_eof() or reader.exception() is not None


UNFINISHED = b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"


class TestBodies:
    """Clients that send headers, and then little of their body."""

    @pytest.fixture
    async def port(self) -> AsyncIterator[int]:
        async def refuse(request: Request) -> Response:
            return PlainTextResponse("no key", 401)

        async def read(request: Request) -> Response:
            return PlainTextResponse(f"{len(await request.body())} bytes")

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"data: more\n\n"
                await asyncio.sleep(0.01)

        async def stream(request: Request) -> Response:
            return StreamingResponse(endless())

        routes = [Route("/refuse", refuse, methods=["POST"]), Route("/read", read, methods=["POST"])]
        app = Starlette(routes=[*routes, Route("/", stream)])
        async with serve_app(app, "test", "127.0.0.1", 0, limit=8, seconds=600.0) as port:
            yield port

    @pytest.mark.parametrize("path", [b"refuse", b"read"])
    async def test_they_do_not_lock_out_a_new_client(self, port: int, clients: Clients, path: bytes) -> None:
        streamed, _ = await clients.connect(port, REQUEST)
        assert await streamed.readline() == b"HTTP/1.1 200 OK\r\n"
        for _ in range(20):
            reader, writer = await clients.connect(port, UNFINISHED % path)
            if path == b"refuse":
                assert b"401" in await reader.readline()
            writer.write(b"x")
        for _ in range(3):
            reader, _ = await clients.connect(port, REQUEST)
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        assert await streamed.readuntil(b"more")
        await asyncio.sleep(0.1)
        assert await streamed.readuntil(b"more"), "an answer in progress goes on"

    async def test_a_new_client_is_refused_while_all_others_read_their_answers(
        self, port: int, clients: Clients
    ) -> None:
        readers = [(await clients.connect(port, REQUEST))[0] for _ in range(8)]
        assert [await reader.readline() for reader in readers] == [b"HTTP/1.1 200 OK\r\n"] * 8
        late, _ = await clients.connect(port, REQUEST)
        with suppress(ConnectionResetError):
            assert await late.read() == b""
        for reader in readers:
            await reader.readuntil(b"more")

    @pytest.mark.parametrize("path", [b"refuse", b"read"])
    async def test_a_body_that_does_not_come_ends_the_connection(
        self, port: int, clients: Clients, path: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http_server, "_BODY_SECONDS", 0.3)
        reader, writer = await clients.connect(port, UNFINISHED % path)
        answer = asyncio.create_task(reader.read())
        while not answer.done():
            writer.write(b"x")
            await asyncio.wait([answer], timeout=0.05)
        with suppress(ConnectionResetError):
            assert (b"401" in answer.result()) == (path == b"refuse")

    async def test_a_long_body_may_take_its_time(
        self, port: int, clients: Clients, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http_server, "_BODY_SECONDS", 0.3)
        monkeypatch.setattr(http_server, "_BODY_BYTES", 10)
        reader, writer = await clients.connect(port, UNFINISHED % b"read")
        for _ in range(10):
            writer.write(b"x" * 10_000)
            await asyncio.sleep(0.1)
        assert b"100000 bytes" in await reader.readuntil(b"bytes")


async def test_a_response_that_is_not_read_ends(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_READ_SECONDS", 0.3)
    ended = asyncio.Event()

    async def flood() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(2**16)
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def stream(request: Request) -> Response:
        return StreamingResponse(flood())

    async with serve_app(Starlette(routes=[Route("/", stream)]), "test", "127.0.0.1", 0, seconds=600.0) as port:
        await clients.connect(port, REQUEST)
        async with asyncio.timeout(20):
            await ended.wait()


async def test_a_client_that_asks_again_and_again_loses_no_answer_to_the_age_of_its_connection(
    clients: Clients,
) -> None:
    async def answer(request: Request) -> Response:
        await asyncio.sleep(0.5)
        return PlainTextResponse("hello")

    async with serve_app(Starlette(routes=[Route("/", answer)]), "test", "127.0.0.1", 0, seconds=4.0) as port:
        reader, writer = await clients.connect(port)
        headers = b""
        while b"connection: close" not in headers:
            writer.write(REQUEST)
            headers = await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(5) == b"hello"
        assert await reader.read() == b""
