"""Slack: events over HTTP."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest
from slack_sdk.signature import SignatureVerifier

from bot.domain import Action
from bot.errors import PlatformError
from bot.util import http_server
from tests.harness.fakes.clock import FastClock
from tests.harness.harness import Harness
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.slack_wire import SIGNING_SECRET
from tests.harness.slack_harness import answered, running

JSON = "application/json"


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer(mode="http") as server:
        yield server
        assert server.violations == []


async def test_events_commands_and_buttons_arrive_by_signed_requests(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        harness.engine.add("one", "two")
        await server.say("hello")
        await server.until(lambda: len(server.seen()) > 1 and server.seen()[1].actions == {Action.RETRY})
        await server.press(server.seen()[1].id, Action.RETRY)
        await answered(server, "two")
        await server.command("clear")
        await answered(server, "two", "Deleted: everything said here (1).")


async def test_a_request_with_a_wrong_signature_is_rejected(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        body = '{"type": "event_callback", "event": {"type": "message", "channel": "D1", "user": "U1", "ts": "1.1"}}'
        assert await server.post(body, "application/json", {}, secret="guessed") == 401
    assert harness.engine.requests == []


async def test_a_port_in_use_is_named_in_the_error(harness: Harness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with SlackServer(mode="http", port=taken.getsockname()[1]) as server:
            with pytest.raises(PlatformError, match=r"adapters\.slack\.port"):
                await server.adapter(FastClock()).run(harness.intake)


async def post(server: SlackServer, body: bytes, **headers: str) -> int:
    """Send a request; its headers are those given, which need no signature."""
    named = {"Content-Type": JSON} | {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{server.port}/slack/events"
        async with session.post(url, data=BytesIO(body), headers=named) as response:
            return response.status


def signed(body: str, seconds: float = 0.0) -> dict[str, str]:
    stamp = str(int(time.time() + seconds))
    signature = SignatureVerifier(SIGNING_SECRET).generate_signature(timestamp=stamp, body=body)
    return {"X_Slack_Request_Timestamp": stamp, "X_Slack_Signature": signature or ""}


DEEP = "[" * 150_000
# Bodies and headers.  Each is signed when it is sent: later it would be refused for its age alone.
UNSIGNED: dict[str, tuple[bytes, Callable[[], dict[str, str]]]] = {
    "nothing": (b"", dict),
    "not UTF-8": (b'{"type": "\xff\xfe"}', lambda: signed("")),
    "deep": (DEEP.encode(), dict),
    "deep with a wrong signature": (DEEP.encode(), lambda: signed("{}")),
    "a form that holds deep JSON": (b"payload=" + DEEP.encode(), dict),
    "a signature that is not ASCII": (b"{}", lambda: signed("{}") | {"X_Slack_Signature": "v0=\u00e9"}),
    "a time that is no number": (b"{}", lambda: signed("{}") | {"X_Slack_Request_Timestamp": "today"}),
    "a time beyond all numbers": (b"{}", lambda: signed("{}") | {"X_Slack_Request_Timestamp": "9" * 1000}),
    "an old request, repeated": (b"{}", lambda: signed("{}", -3600)),
    "a request from tomorrow": (b"{}", lambda: signed("{}", 86400)),
    "another body": (b'{"type": "url_verification", "challenge": "x"}', lambda: signed("{}")),
}


@pytest.mark.parametrize("kind", UNSIGNED)
async def test_an_unsigned_request_is_refused_without_a_traceback(
    harness: Harness, server: SlackServer, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    body, headers = UNSIGNED[kind]
    async with running(harness, server):
        assert await post(server, body, **headers()) == 401
    assert [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info] == []


@pytest.mark.parametrize("body", [DEEP, "[]", "7", '{"event": []}', "null", '{"type": "event_callback", "event": 7}'])
async def test_a_signed_request_of_no_shape_is_refused_without_a_traceback(
    harness: Harness, server: SlackServer, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    async with running(harness, server):
        assert await post(server, body.encode(), **signed(body)) >= 400
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_request_that_is_too_long_is_refused(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        assert await post(server, b" " * 2 * 2**20) == 413


POST = b"POST /slack/events HTTP/1.1\r\nHost: bot\r\n"
BROKEN = {
    "not compressed": POST + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "a bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    "a body cut off": POST + b"Content-Length: 500\r\n\r\nhello",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "an upgrade": POST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
    "another path": b"GET / HTTP/1.1\r\nHost: bot\r\n\r\n",
    "endless headers": POST + b"X: " + b"a" * 100_000,
    "a null": POST + b"X: \x00\r\n\r\n",
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_broken_http_is_refused_without_a_line_in_the_log(
    harness: Harness, server: SlackServer, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    async with running(harness, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(BROKEN[kind])
        writer.write_eof()
        assert (await reader.read(12))[9:10] in {b"4", b""}
        writer.close()
        await server.say("hello")
        await answered(server, "ok")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info] == []


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("sent", [b"", b"POST /slack/events HTTP/1.1\r\nX-Slow: ", b"\x16\x03\x01 not HTTP\r\n\r\n"])
async def test_idle_and_strange_connections_neither_stop_the_bot_nor_fill_the_log(
    harness: Harness,
    server: SlackServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    sent: bytes,
) -> None:
    monkeypatch.setattr(http_server, "_LIMIT", 128)
    async with running(harness, server):
        before = descriptors()
        clients = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(300)]
        for _, writer in clients:
            writer.write(sent)
        await server.say("hello")
        await answered(server, "ok")
        assert descriptors() - before < 300 + 160
        for _, writer in clients:
            writer.close()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 1
