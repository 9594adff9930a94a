"""The snippets on the page about platforms work: a Matrix adapter on a small Matrix server."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from operator import attrgetter
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import SecretStr

from bot import adapters
from bot.adapters.base import Adapter
from bot.adapters.inbox import Inbox
from bot.adapters.response import MOST_BYTES
from bot.config.platform_ids import check_platform_id
from bot.config.schema import AdapterSection
from bot.delivery.markdown.format import Rendered
from bot.delivery.messenger import Messenger
from bot.delivery.replies import Replies
from bot.domain import ChannelKey, Queued, Status, Thought
from bot.errors import ChannelGone, LoginRefused, MessageGone, PlatformError, PlatformUnavailable, RateLimited
from tests.harness.fakes import FastClock
from tests.harness.harness import Harness
from tests.harness.messages import NOON, a_message
from tests.harness.platform import TIMEOUT
from tests.project.snippets import DOCS, define, snippets

PAGE = "ADDING_A_PLATFORM.md"
SETTINGS, CLIENT, PARSE, MESSENGER, ADAPTER, WITHOUT_EDITS = snippets(PAGE)

ME = "@bot:example.org"
MEI = "@mei:example.org"
ROOM = "!general:example.org"
CHANNEL = ChannelKey("matrix", ROOM)


class MatrixServer:
    """One room of a home server; `fail` lists the answers that the next calls of the bot get instead."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.texts: dict[str, str] = {}  # of the bot's messages, by their ids
        self.replies: dict[str, str] = {}  # the questions of the bot's messages
        self.padding = ""  # of every response
        self.polls = 0
        self.fail: list[tuple[int, dict[str, Any]]] = []
        self.changed = asyncio.Condition()
        self._sent: dict[str, str] = {}
        self.home = ""

    def application(self) -> web.Application:
        app = web.Application()
        base = "/_matrix/client/v3"
        app.router.add_get(f"{base}/account/whoami", self._whoami)
        app.router.add_get(f"{base}/sync", self._sync)
        app.router.add_put(f"{base}/rooms/{{room}}/send/m.room.message/{{transaction}}", self._send)
        app.router.add_put(f"{base}/rooms/{{room}}/redact/{{event}}/{{transaction}}", self._redact)
        return app

    async def say(self, body: str, *, edits: str | None = None, mentions: bool = True) -> str:
        content: dict[str, Any] = {"msgtype": "m.text", "body": body}
        if mentions:
            content["m.mentions"] = {"user_ids": [ME]}
        if edits is not None:
            content = {
                **content,
                "m.new_content": content,
                "m.relates_to": {"rel_type": "m.replace", "event_id": edits},
            }
        return await self.add({"type": "m.room.message", "content": content})

    async def delete(self, event: str) -> None:
        await self.add({"type": "m.room.redaction", "redacts": event, "content": {}})

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT), self.changed:
            await self.changed.wait_for(condition)

    @property
    def shown(self) -> list[str]:
        return list(self.texts.values())

    async def add(self, event: dict[str, Any]) -> str:
        event = {"sender": MEI, "origin_server_ts": NOON.timestamp() * 1000, **event}
        event["event_id"] = f"$q{len(self.events)}"
        self.events.append(event)
        await self._notify()
        return str(event["event_id"])

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _whoami(self, request: web.Request) -> web.Response:
        return self._refused(request) or web.json_response({"user_id": ME})

    async def _sync(self, request: web.Request) -> web.Response:
        since = int(request.query.get("since", "0"))
        self.polls += 1
        await self._notify()
        if "since" in request.query:
            await self.until(lambda: len(self.events) > since)
        events = self.events[since:]
        rooms = {"join": {ROOM: {"timeline": {"events": events}}}} if events else {}
        return web.json_response({"next_batch": str(len(self.events)), "rooms": rooms})

    async def _send(self, request: web.Request) -> web.Response:
        if refusal := self._refused(request):
            return refusal
        body = await request.json()
        relation = body.get("m.relates_to", {})
        edited = relation.get("event_id")
        if edited is not None and edited not in self.texts:
            return web.json_response({"errcode": "M_NOT_FOUND"}, status=404)
        transaction = request.match_info["transaction"]
        event = edited or self._sent.setdefault(transaction, f"$a{len(self._sent)}")
        self.texts[event] = body["body"]
        if edited is None:
            self.replies[event] = relation["m.in_reply_to"]["event_id"]
        await self._notify()
        return web.json_response({"event_id": event})

    async def _redact(self, request: web.Request) -> web.Response:
        event = request.match_info["event"]
        if self.texts.pop(event, None) is None:
            return web.json_response({"errcode": "M_NOT_FOUND"}, status=404)
        return web.json_response({"event_id": f"{event}!"})

    def _refused(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") != "Bearer right":
            return web.json_response({"errcode": "M_UNKNOWN_TOKEN"}, status=401)
        if self.fail:
            status, body = self.fail.pop(0)
            return web.json_response(body, status=status)
        if self.padding:
            return web.json_response({"padding": self.padding})
        return None


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Make the page's files importable; return the settings."""
    settings = define(monkeypatch, SETTINGS)
    for code in (CLIENT, PARSE, MESSENGER, ADAPTER):
        define(monkeypatch, code)
    return settings


@pytest.fixture
async def server() -> AsyncIterator[MatrixServer]:
    server = MatrixServer()
    async with TestServer(server.application()) as listening:
        server.home = str(listening.make_url("/"))
        yield server


def section(page: ModuleType, server: MatrixServer, token: str = "right") -> Any:
    return page.MatrixSection(token=SecretStr(token), home=server.home)


@asynccontextmanager
async def running(page: ModuleType, server: MatrixServer, harness: Harness) -> AsyncIterator[Adapter]:
    adapter = adapters.open_adapter("matrix", section(page, server), FastClock())
    task = asyncio.create_task(adapter.run(harness.intake))
    try:
        yield adapter
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def open_messenger(page: ModuleType, server: MatrixServer, token: str = "right") -> AsyncIterator[Messenger]:
    client = sys.modules["bot.adapters.matrix.client"]
    async with client.open_client(section(page, server, token)) as opened:
        messenger: Messenger = sys.modules["bot.adapters.matrix.messenger"].MatrixMessenger(opened, 1.5)
        yield messenger


async def test_a_mention_is_answered_in_a_reply(page: ModuleType, server: MatrixServer, harness: Harness) -> None:
    harness.engine.add("Hello, Mei.")
    async with running(page, server, harness) as adapter:
        await server.until(lambda: server.polls == 2)
        assert adapter.is_connected
        question = await server.say(f"{ME}: hello")
        await server.until(lambda: server.shown == ["Hello, Mei."])
    assert list(server.replies.values()) == [question]
    assert harness.engine.requests[0].messages[-1].content == "mei: hello"


async def test_other_messages_are_left_alone(page: ModuleType, server: MatrixServer, harness: Harness) -> None:
    async with running(page, server, harness):
        await server.say("hello everybody", mentions=False)
        await server.say(f"{ME} hello")
        await server.until(lambda: server.shown == ["ok"])
    assert len(harness.engine.requests) == 1


async def test_missed_messages_are_answered_in_order(page: ModuleType, server: MatrixServer, harness: Harness) -> None:
    harness.engine.add("first", "second")
    await server.say(f"{ME} one")
    await server.say(f"{ME} two")
    async with running(page, server, harness):
        await server.until(lambda: server.shown == ["first", "second"])


async def test_an_edit_is_answered_in_the_same_reply(page: ModuleType, server: MatrixServer, harness: Harness) -> None:
    harness.engine.add("old", "new")
    async with running(page, server, harness):
        question = await server.say(f"{ME} one")
        await server.until(lambda: server.shown == ["old"])
        await server.say(f"{ME} two", edits=question)
        await server.until(lambda: server.shown == ["new"])


async def test_a_deleted_question_is_cleared(page: ModuleType, server: MatrixServer, harness: Harness) -> None:
    async with running(page, server, harness):
        question = await server.say(f"{ME} one")
        await server.until(lambda: server.shown == ["ok"])
        await server.delete(question)
        # The next poll acknowledges the redaction.
        polls = server.polls
        await server.until(lambda: server.polls > polls)
    row = await harness.store.find(CHANNEL, question)
    assert row is not None
    assert row.status is Status.CLEARED


async def test_rate_limits_and_errors_are_retried(page: ModuleType, server: MatrixServer, harness: Harness) -> None:
    server.fail = [(500, {}), (429, {"retry_after_ms": 2000})] * 2
    async with running(page, server, harness):
        await server.say(f"{ME} one")
        await server.until(lambda: server.shown == ["ok"])
    assert server.fail == []


async def test_malformed_events_are_skipped(page: ModuleType, server: MatrixServer, harness: Harness) -> None:
    async with running(page, server, harness):
        await server.add({"type": "m.room.message", "content": {"msgtype": "m.text", "m.mentions": []}})
        await server.say(f"{ME} one")
        await server.until(lambda: server.shown == ["ok"])


async def test_a_rejected_token_ends_the_adapter(page: ModuleType, server: MatrixServer, harness: Harness) -> None:
    adapter = adapters.open_adapter("matrix", section(page, server, "wrong"), FastClock())
    with pytest.raises(LoginRefused, match="BOT_MATRIX__TOKEN"):
        await adapter.run(harness.intake)


async def test_the_adapter_can_be_inspected(page: ModuleType, server: MatrixServer) -> None:
    findings = [finding async for finding in adapters.inspect("matrix", section(page, server))]
    assert [(finding.is_ok, finding.text) for finding in findings] == [(True, f"the token is valid; the bot is {ME}")]


async def test_the_same_nonce_sends_one_message(page: ModuleType, server: MatrixServer) -> None:
    async with open_messenger(page, server) as messenger:
        send = partial(messenger.send, CHANNEL, Rendered("…"), reply_to="$q0", controls=frozenset(), nonce="1.0.0")
        assert await send() == await send()
    assert server.shown == ["…"]


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, {"errcode": "M_UNKNOWN_TOKEN"}, LoginRefused),
        (429, {"retry_after_ms": 2500}, RateLimited),
        (403, {"errcode": "M_FORBIDDEN"}, ChannelGone),
        (502, {}, PlatformUnavailable),
    ],
)
async def test_errors_are_translated(
    status: int, body: dict[str, Any], error: type[PlatformError], page: ModuleType, server: MatrixServer
) -> None:
    server.fail = [(status, body)]
    async with open_messenger(page, server) as messenger:
        with pytest.raises(error) as caught:
            await messenger.send(CHANNEL, Rendered("…"), reply_to="$q0", controls=frozenset(), nonce="1.0.0")
    if isinstance(caught.value, RateLimited):
        assert caught.value.seconds == 2.5


async def test_a_response_without_end_is_not_read_to_its_end(page: ModuleType, server: MatrixServer) -> None:
    server.padding = "a" * MOST_BYTES
    async with open_messenger(page, server) as messenger:
        with pytest.raises(PlatformUnavailable, match="too long"):
            await messenger.send(CHANNEL, Rendered("…"), reply_to="$q0", controls=frozenset(), nonce="1.0.0")


def test_the_page_names_what_a_platform_can_say_of_its_ids() -> None:
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    assert [name for name in AdapterSection.__class_vars__ if name not in text] == []


def test_roles_of_the_platform_are_refused(page: ModuleType) -> None:
    sections = {"matrix": page.MatrixSection}
    assert check_platform_id("matrix:!general:example.org", sections, "channels")
    with pytest.raises(ValueError, match="matrix has no roles"):
        check_platform_id("matrix:@mei:example.org", sections, "roles")


async def test_a_deleted_message_can_be_neither_edited_nor_deleted(page: ModuleType, server: MatrixServer) -> None:
    async with open_messenger(page, server) as messenger:
        sent = await messenger.send(CHANNEL, Rendered("…"), reply_to="$q0", controls=frozenset(), nonce="1.0.0")
        await messenger.delete(CHANNEL, sent)
        with pytest.raises(MessageGone):
            await messenger.edit(CHANNEL, sent, Rendered("new"), controls=frozenset())
        with pytest.raises(MessageGone):
            await messenger.delete(CHANNEL, sent)


async def test_a_platform_without_edits_gets_the_whole_reply(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = define(monkeypatch, WITHOUT_EDITS)
    sent: list[str] = []

    async def send(text: str) -> None:
        sent.append(text)

    harness.engine.add([Queued(1), Thought("hm"), "Hel", "lo"])
    message = a_message("hello")
    await adapter.reply(harness.intake, send, message)
    await adapter.reply(harness.intake, send, message)
    assert sent == ["Hello"]
    row = await harness.store.find(message.channel, message.id)
    assert row is not None
    assert row.status is Status.DELIVERED


def test_the_calls_that_the_page_names_exist(harness: Harness) -> None:
    clock = FastClock()
    client: Any = None
    messenger = sys.modules["bot.adapters.matrix.messenger"].MatrixMessenger(client, 1.5)
    replies = Replies(harness.intake, messenger, clock)
    objects = {"intake": harness.intake, "inbox": Inbox("matrix", harness.intake, replies, clock)}
    named = re.findall(r"\b(intake|inbox)\.([a-z_.]*[a-z_])", (DOCS / PAGE).read_text(encoding="utf-8"))
    assert named
    for name, attributes in named:
        attrgetter(attributes)(objects[name])
