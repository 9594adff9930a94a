"""Telegram: wrong, slow and malformed responses of the Bot API."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web
from pydantic import SecretStr
from telegram.error import TelegramError

from bot.adapters.telegram.client import map_errors, open_bot
from bot.adapters.telegram.messenger import TelegramMessenger
from bot.adapters.telegram.settings import TelegramSection
from bot.delivery.markdown.format import Rendered
from bot.domain import ChannelKey
from bot.errors import (
    AccessDenied,
    ChannelGone,
    ContentRefused,
    EditRefused,
    LoginRefused,
    MarkupRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
)
from tests.harness.fakes import FakeKnownMessages
from tests.harness.fakes.clock import FastClock
from tests.harness.harness import Harness
from tests.harness.servers.telegram import TOKEN, Refused, TelegramPlatform
from tests.harness.telegram_harness import done, running

CHAT = ChannelKey("telegram", "7000")


def refusal(code: int, description: object = "no", **more: object) -> bytes:
    return json.dumps({"ok": False, "error_code": code, "description": description} | more).encode()


ANSWERS = {
    "HTML": (200, b"<html>sign in to this network</html>"),
    "truncated": (200, b'{"ok": true, "result": {"message_i'),
    "null": (200, b"null"),
    "a list": (200, b"[]"),
    "an empty object": (200, b"{}"),
    "nothing": (200, b""),
    "no UTF-8": (200, b"\xff\xfe\x00"),
    "nested": (200, b'{"ok": true, "result": ' + b"[" * 100_000),
    "no result": (200, b'{"ok": true}'),
    "result null": (200, b'{"ok": true, "result": null}'),
    "result a text": (200, b'{"ok": true, "result": "done"}'),
    "result an object": (200, b'{"ok": true, "result": {"message_id": "one", "id": [], "username": 5}}'),
    "ok a text": (200, b'{"ok": "yes", "result": true}'),
    "refused with 200": (200, refusal(500)),
    "a number as description": (400 + 111, refusal(511, 5, parameters=["x"])),
    "a redirect": (302, b""),
    "a 401": (401, refusal(401, "Unauthorized")),
    "a 401 with 200": (200, refusal(401, "Unauthorized")),
    "a 403": (403, refusal(403, "Forbidden")),
    "a 403 of a proxy": (403, b"<html>blocked</html>"),
    "a 404": (404, refusal(404, "Not Found")),
    "a 429 without a time": (429, refusal(429)),
    "a 429 with a word": (429, refusal(429, parameters={"retry_after": "soon"})),
    "a 429 with zero": (429, refusal(429, parameters={"retry_after": 0})),
    "a 502": (502, b"<html>Bad Gateway</html>"),
    "a 599": (599, b'{"ok": true, "result": true}'),
}
METHODS = ("sendMessage", "editMessageText", "getUpdates", "getMe", "deleteWebhook", "setMyCommands", "sendRichMessage")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_wrong_answer_costs_nothing(harness: Harness, method: str, answer: str) -> None:
    left = 1
    status, body = ANSWERS[answer]

    async def guard(request: web.Request) -> web.Response | None:
        nonlocal left
        if left and request.path.endswith(f"/{method}"):
            left -= 1
            return web.Response(status=status, body=body, headers={"Location": "/elsewhere"})
        return None

    async with TelegramPlatform() as telegram:
        telegram.gate.guard = guard
        async with running(telegram, harness):
            await telegram.say("hello", direct=True)
            await done(telegram, "ok", channel="Mei")
            await telegram.until(lambda: not left and bool(telegram.menus))
        assert telegram.violations == []


@asynccontextmanager
async def messenger_on(url: str, seconds: float = 5.0) -> AsyncIterator[TelegramMessenger]:
    settings = TelegramSection(token=SecretStr(TOKEN), api_url=url, call_seconds=seconds)

    async def rename(channel: ChannelKey, to: str) -> None:
        raise AssertionError("no chat has moved")

    bot = await open_bot(settings)
    with suppress(TelegramError):
        await bot.initialize()  # without, shutdown closes nothing
    try:
        yield TelegramMessenger(bot, settings, rename, FakeKnownMessages())
    finally:
        await bot.shutdown()


async def send(messenger: TelegramMessenger) -> str:
    return await messenger.send(CHAT, Rendered("hello"), reply_to=None, controls=frozenset(), nonce="1")


async def edit(messenger: TelegramMessenger) -> None:
    await messenger.edit(CHAT, "5", Rendered("hello"), controls=frozenset())


@pytest.mark.parametrize(
    ("named", "seconds"),
    [(1e9, 3600), (1e300, 3600), ("inf", 3600), ("2", 2), (7, 7), (0, 0), (-1, 0), (0.0001, 0.0001), ([], 5), ({}, 5)],
)
async def test_an_absurd_wait_is_bounded(named: object, seconds: float) -> None:
    async with TelegramPlatform() as telegram, messenger_on(f"http://127.0.0.1:{telegram.server_port}") as messenger:
        telegram.garbage = [refusal(429, parameters={"retry_after": named})]
        with pytest.raises(RateLimited) as limited:
            await send(messenger)
    assert limited.value.seconds == seconds


@pytest.mark.parametrize(
    ("code", "description", "expected"),
    [
        (400, "Bad Request: message can't be edited", EditRefused),
        (400, "Bad Request: MESSAGE_EDIT_TIME_EXPIRED", EditRefused),
        (400, "Bad Request: there is no text in the message to edit", EditRefused),
        (400, "Bad Request: message to edit not found", MessageGone),
        (400, "Bad Request: MESSAGE_ID_INVALID", MessageGone),
        (400, "Bad Request: not enough rights to send text messages to the chat", AccessDenied),
        (400, "Bad Request: have no rights to send a message", AccessDenied),
        (400, "Bad Request: need administrator rights in the channel chat", AccessDenied),
        (400, "Bad Request: CHAT_WRITE_FORBIDDEN", AccessDenied),
        (400, "Bad Request: CHAT_SEND_PLAIN_FORBIDDEN", AccessDenied),
        (400, "Bad Request: TOPIC_CLOSED", AccessDenied),
        (403, "Forbidden: bot was kicked from the supergroup chat", AccessDenied),
        (403, "Forbidden: bot was blocked by the user", AccessDenied),
        (403, "Forbidden: bot is not a member of the channel chat", AccessDenied),
        (403, "something unheard of", AccessDenied),
        (403, "Forbidden: user is deactivated", ChannelGone),
        (403, "Forbidden: the group chat was deleted", ChannelGone),
        (400, "Bad Request: chat not found", ChannelGone),
        (400, "Bad Request: message thread not found", ChannelGone),
        (400, "Bad Request: PEER_ID_INVALID", ChannelGone),
        (400, "Bad Request: can't parse entities: unsupported start tag", MarkupRefused),
        (400, "Bad Request: ENTITY_BOUNDS_INVALID", MarkupRefused),
        (400, "Bad Request: message is too long", ContentRefused),
        (400, "Bad Request: something unheard of", MarkupRefused),
        (409, "Conflict: terminated by other getUpdates request", PlatformUnavailable),
        (413, "Request Entity Too Large", PlatformUnavailable),
    ],
)
@pytest.mark.parametrize("call", [send, edit])
async def test_refusals_differ_by_their_cause(
    code: int, description: str, expected: type[PlatformError], call: object
) -> None:
    assert callable(call)
    async with TelegramPlatform() as telegram, messenger_on(f"http://127.0.0.1:{telegram.server_port}") as messenger:
        telegram.broken = dict.fromkeys(("sendMessage", "editMessageText"), Refused(code, description))
        with pytest.raises(expected) as caught:
            await call(messenger)
    assert type(caught.value) is expected


async def test_an_edit_that_changes_nothing_is_no_error() -> None:
    async with TelegramPlatform() as telegram, messenger_on(f"http://127.0.0.1:{telegram.server_port}") as messenger:
        telegram.broken["editMessageText"] = Refused(400, "Bad Request: MESSAGE_NOT_MODIFIED")
        await edit(messenger)


async def test_the_token_is_doubted_once_before_the_adapter_ends(harness: Harness) -> None:
    async with TelegramPlatform() as telegram:
        telegram.garbage = [refusal(401, "Unauthorized")]
        async with running(telegram, harness):
            await telegram.say("hello", direct=True)
            await done(telegram, "ok", channel="Mei")
        telegram.garbage = [refusal(401, "Unauthorized")] * 2
        with pytest.raises(LoginRefused):
            await telegram.adapter(FastClock()).run(harness.intake)


@asynccontextmanager
async def dripping(head: bytes) -> AsyncIterator[str]:
    """Serve responses that begin with `head` and go on for ever, a byte at a time."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        callers.add(writer)
        writer.write(head)
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

    callers: set[asyncio.StreamWriter] = set()
    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for writer in callers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"],
    ids=["no header", "a header", "the body"],
)
async def test_a_call_ends_although_bytes_drip_in(head: bytes) -> None:
    async with dripping(head) as url, messenger_on(url, seconds=0.2) as messenger, asyncio.timeout(60):
        for call in (send, edit):
            with pytest.raises(PlatformUnavailable):
                await call(messenger)
        with pytest.raises(PlatformUnavailable), map_errors():
            await messenger._bot.get_updates(timeout=1)


async def test_polls_that_are_not_held_open_are_spaced(harness: Harness) -> None:
    clock, calls, enough = FastClock(), 0, asyncio.Event()

    async def guard(request: web.Request) -> web.Response | None:
        nonlocal calls
        if not request.path.endswith("/getUpdates"):
            return None
        calls += 1
        if calls == 10:
            enough.set()
        return web.json_response({"ok": True, "result": [{"update_id": 5}]})

    async with TelegramPlatform() as telegram:
        telegram.gate.guard = guard
        began = clock.now()
        adapter = asyncio.create_task(telegram.adapter(clock).run(harness.intake))
        await enough.wait()
        adapter.cancel()
        await asyncio.gather(adapter, return_exceptions=True)
    assert clock.now() - began > 6
