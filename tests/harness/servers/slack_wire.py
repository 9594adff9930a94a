"""Interfaces of the loopback Slack: Web API, web sockets, signed requests."""

import asyncio
import json
import math
import random
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from slack_sdk.signature import SignatureVerifier

from bot.adapters.slack.adapter import AGENT_SCOPE, SCOPES
from bot.util.clock import Clock, MonotonicClock
from tests.harness.platform import TIMEOUT, FaultScript
from tests.harness.servers.fault_gate import FaultGate
from tests.harness.servers.file_shelf import FileShelf
from tests.harness.servers.slack_agents import METHODS as AGENT_METHODS
from tests.harness.servers.slack_agents import SlackAgents
from tests.harness.servers.slack_views import SlackViews
from tests.harness.servers.slack_world import BOT, SlackRefusal, Workspace

BOT_TOKEN, APP_TOKEN, SIGNING_SECRET = "xoxb-loopback", "xapp-loopback", "loopback-secret"
TEAM = "T01"
JSON = dict[str, Any]


@dataclass(slots=True)
class Envelope:
    """An event that is redelivered until it is acknowledged; `kind` is Slack's type.

    `answer` is what the acknowledgement says.
    """

    kind: str
    payload: JSON
    id: str
    answer: JSON = field(default_factory=dict)
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)


class SlackWire:
    """The workspace's server; `violations` lists what Slack forbids clients to do.

    An event that is not acknowledged within `patience` seconds (3 on Slack) is sent again
    after each of `retries` (0, 60 and 300 on Slack).  `per_minute` limits the calls of a method.
    With `is_agent` the app is one, and its manifest says so.
    """

    def __init__(
        self,
        *,
        retries: tuple[float, ...] = (0.0, 0.1, 0.5),
        patience: float = 3.0,
        is_agent: bool = False,
        **settings: Any,
    ) -> None:
        self.gate = FaultGate()
        self.shelf = FileShelf(BOT_TOKEN)
        self.workspace = Workspace()
        self.views = SlackViews()
        self.agents = SlackAgents(self.workspace, self._now, is_on=is_agent)
        self.per_minute: dict[str, int] = {}
        self.over_limit = 0  # calls refused because of it
        self.called_at: dict[str, list[float]] = {}  # by method, in seconds of the bot's clock
        self.violations: list[str] = []
        self.script: FaultScript = lambda number, name: None
        self.calls: list[str] = []
        self.histories: list[str] = []  # the channels of each call of conversations.history
        self.deliveries: list[str] = []  # the ids of all envelopes sent, in order
        self.scopes: set[str] = {*SCOPES, AGENT_SCOPE} if is_agent else set(SCOPES)
        self.tells_scopes = True
        self.team = TEAM  # the workspace that slash commands name
        self.tickets: set[str] = set()
        self.refused: dict[str, str] = {}  # the error code that a method answers with
        self.links = 0  # web sockets opened so far
        self.refusals = 0  # calls that failed as the script demands
        self.slash = "/chat"
        self.gone: set[str] = set()  # channels that the bot was removed from
        self.dead_tickets = 0  # how many of the next socket URLs are invalid
        self.retries = retries
        self.patience = patience
        self._settings = settings
        self._clock: Clock = MonotonicClock()
        self._not_before: dict[str, float] = {}
        self._writes = count()
        self._numbers = count(1)
        self._sockets: list[web.WebSocketResponse] = []
        self._envelopes: dict[str, Envelope] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._commands: dict[str, JSON] = {}
        self._is_losing = False
        self._changes = asyncio.Event()
        self._port = 0
        self._held = ExitStack()
        self.port = 0  # where the bot listens with mode = http

    # The server

    async def __aenter__(self) -> Self:
        app = self.gate.app()
        app.router.add_route("*", "/api/{method}", self._call)
        app.router.add_post("/respond/{trigger}", self._respond)
        app.router.add_get("/link", self._link)
        app.router.add_get("/files-pri/{path:.*}", self.shelf.hand_out)
        # The default waits a minute for handlers whose client has disconnected.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.set_port(self._runner.addresses[0][1])
        return self

    def set_port(self, port: int) -> None:
        """Send the bot to another port, where a proxy listens."""
        self._port = port

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        for line in list(self._sockets):
            await line.close()
        await self._runner.cleanup()
        self._held.close()

    @property
    def server_port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/api/"

    @property
    def sockets(self) -> int:
        return len(self._sockets)

    @property
    def is_quiet(self) -> bool:
        """True once every event was acknowledged or given up."""
        return not self._under_way

    async def connected(self) -> None:
        """Wait until the bot can receive events."""
        if self._settings.get("mode") != "http":
            await self.until(lambda: self.sockets > 0)
            return
        async with asyncio.timeout(TIMEOUT):
            while not self._is_listened_to():  # noqa: ASYNC110 - an opened port sends no event
                await asyncio.sleep(0.01)

    def _is_listened_to(self) -> bool:
        with socket.socket() as line:
            return self.port != 0 and line.connect_ex(("127.0.0.1", self.port)) == 0

    async def until(self, condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self._changes.clear()
                await self._changes.wait()

    def changed(self) -> None:
        self._changes.set()

    # Events

    def emit(self, event: JSON) -> None:
        """Send an event of any shape."""
        payload = {
            "type": "event_callback",
            "team_id": TEAM,
            "api_app_id": "A01",
            "event": {"team": TEAM, "event_ts": event["ts"], **event},
            "event_id": f"Ev{next(self._numbers):08}",
            "event_time": int(time.time()),
        }
        self._emit("events_api", payload, retries=self.retries)

    def _emit(self, kind: str, payload: JSON, retries: tuple[float, ...]) -> None:
        if self._is_losing:
            return
        envelope = Envelope(kind, payload, f"envelope-{next(self._numbers)}")
        self._envelopes[envelope.id] = envelope
        task = asyncio.create_task(self._deliver(envelope, retries))
        self._under_way.add(task)
        task.add_done_callback(self._delivered)

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self.changed()

    async def _deliver(self, envelope: Envelope, retries: tuple[float, ...]) -> None:
        # Slack's retries span six minutes: a bot that is connected, but slow, gets longer than they take here.
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (TIMEOUT if retries else 0.0)
        delays = [0.0, *retries]
        was_connected, attempt = True, -1
        while delays or (was_connected and loop.time() < deadline):
            await asyncio.sleep(delays.pop(0) if delays else retries[-1])
            if self._is_losing:
                return
            attempt += 1
            was_connected = await self._offer(envelope, attempt)
            self.changed()
            if envelope.acknowledged.is_set():
                self._answered(envelope)
                return
        if was_connected and envelope.kind == "events_api":
            self.violations.append(f"{envelope.payload['event']['type']} was never acknowledged")

    def _answered(self, envelope: Envelope) -> None:
        if envelope.payload.get("type") == "view_submission":
            try:
                self.views.answered(envelope.payload["view"]["id"], envelope.answer)
            except SlackRefusal as error:
                self.violations.append(f"the answer to a submission: {error}")
            self.changed()

    async def _offer(self, envelope: Envelope, attempt: int) -> bool:
        """Send it once and wait for the acknowledgement; return whether the bot was connected."""
        if self._settings.get("mode") == "http":
            return await self._request(envelope, attempt)
        if not self._sockets:
            return False
        line = random.choice(self._sockets)
        self.deliveries.append(envelope.id)
        sent = {"envelope_id": envelope.id, "type": envelope.kind, "payload": envelope.payload}
        try:
            answers = envelope.kind != "events_api"
            await line.send_json({**sent, "accepts_response_payload": answers, "retry_attempt": attempt})
            async with asyncio.timeout(self.patience):
                await envelope.acknowledged.wait()
        except (ConnectionError, TimeoutError):
            pass
        return line in self._sockets

    async def _request(self, envelope: Envelope, attempt: int) -> bool:
        match envelope.kind:
            case "events_api":
                body, kind = json.dumps(envelope.payload), "application/json"
            case "interactive":
                body, kind = urlencode({"payload": json.dumps(envelope.payload)}), "application/x-www-form-urlencoded"
            case _:
                body, kind = urlencode(envelope.payload), "application/x-www-form-urlencoded"
        status, answer = await self._send(body, kind, {"X-Slack-Retry-Num": str(attempt)} if attempt else {})
        if status == 200:
            envelope.answer = json.loads(answer) if answer.startswith(b"{") else {}
            envelope.acknowledged.set()
        return status is not None

    async def post(self, body: str, kind: str, headers: dict[str, str], secret: str = SIGNING_SECRET) -> int | None:
        """Send a signed request to the bot; return the status, or None without a response."""
        return (await self._send(body, kind, headers, secret))[0]

    async def _send(
        self, body: str, kind: str, headers: dict[str, str], secret: str = SIGNING_SECRET
    ) -> tuple[int | None, bytes]:
        stamp = str(int(time.time()))
        signature = SignatureVerifier(secret).generate_signature(timestamp=stamp, body=body)
        signed = {"Content-Type": kind, "X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": signature or ""}
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self.patience)) as session:
                url = f"http://127.0.0.1:{self.port}/slack/events"
                async with session.post(url, data=body, headers=signed | headers) as response:
                    return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return None, b""

    async def _link(self, request: web.Request) -> web.StreamResponse:
        ticket = request.query.get("ticket", "")
        if ticket not in self.tickets:
            return web.Response(status=403)
        self.tickets.discard(ticket)  # valid once
        line = web.WebSocketResponse()
        await line.prepare(request)
        await line.send_json({"type": "hello", "num_connections": len(self._sockets) + 1})
        self._sockets.append(line)
        self.links += 1
        self._is_losing = False
        self.changed()
        try:
            async for message in line:
                said = json.loads(message.data)
                envelope = self._envelopes.get(said.get("envelope_id", ""))
                if envelope is None:
                    self.violations.append("an acknowledgement of nothing")
                else:
                    envelope.answer = said.get("payload") or {}
                    envelope.acknowledged.set()
        finally:
            self._sockets.remove(line)
            self.changed()
        return line

    # The Web API

    async def _call(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        arguments = await _arguments(request)
        self.calls.append(method)
        self.changed()
        token = APP_TOKEN if method == "apps.connections.open" else BOT_TOKEN
        if request.headers.get("Authorization") != f"Bearer {token}":
            return web.json_response({"ok": False, "error": "invalid_auth"})
        if method in self.refused:
            self.changed()
            return web.json_response({"ok": False, "error": self.refused[method]})
        if arguments.get("channel") in self.gone:
            return web.json_response({"ok": False, "error": "not_in_channel"})
        if method in AGENT_METHODS and not self.agents.is_on:
            return web.json_response({"ok": False, "error": "unknown_method"})
        does = _METHODS.get(method)
        if does is None:
            self.violations.append(f"there is no method {method}")
            return web.json_response({"ok": False, "error": "unknown_method"})

        async def do() -> web.Response:
            try:
                told = does(self, arguments)
            except SlackRefusal as error:
                if error.is_violation:
                    self.violations.append(f"{method}: {error}")
                return web.json_response({"ok": False, "error": error.code})
            headers = {"x-oauth-scopes": ",".join(sorted(self.scopes))} if self.tells_scopes else {}
            return web.json_response({"ok": True, **told}, headers=headers)

        if self._is_over_limit(method):
            return web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers={"Retry-After": "10"})
        if method.startswith("chat.") or method in AGENT_METHODS:
            channel = arguments.get("channel", arguments.get("channel_id"))
            return await self._written(request, method, str(channel), do)
        return await do()

    def _now(self) -> float:
        return self._clock.now()

    def _is_over_limit(self, method: str) -> bool:
        now, calls = self._clock.now(), self.called_at.setdefault(method, [])
        is_over = len([at for at in calls if at > now - 60.0]) >= self.per_minute.get(method, math.inf)
        self.over_limit += is_over
        if not is_over:
            calls.append(now)
        return is_over

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        command = self._commands[request.match_info["trigger"]]
        body = await request.json()

        async def do() -> web.Response:
            self.workspace.whisper(command["channel_id"], command["user_id"], body)
            return web.Response(text="ok")

        return await self._written(request, "response_url", command["channel_id"], do)

    async def _written(
        self, request: web.Request, name: str, channel: str, do: Callable[[], Awaitable[web.Response]]
    ) -> web.StreamResponse:
        """Execute a writing call, with the fault that the script demands."""
        if self._clock.now() < self._not_before.get(channel, 0.0):
            self.violations.append(f"{name} before its Retry-After was over")
        trouble = self.script(next(self._writes), name)
        self.refusals += trouble is not None
        self.changed()
        match trouble.kind if trouble else None:
            case "429":
                assert trouble is not None
                seconds = math.ceil(trouble.seconds)  # Slack sends whole seconds
                self._not_before[channel] = self._clock.now() + seconds
                answer = {"ok": False, "error": "ratelimited"}
                return web.json_response(answer, status=429, headers={"Retry-After": str(seconds)})
            case "500":
                return web.Response(status=500, text="<html>", content_type="text/html")
            case "timeout":
                return _cut(request)
            case "lost":
                await do()
                self.changed()
                return _cut(request)
        answered = await do()
        self.changed()
        return answered

    def _auth_test(self, arguments: JSON) -> JSON:
        return {"user_id": BOT, "bot_id": "B01", "user": "chatglm", "team_id": TEAM, "team": "Loopback"}

    def _connections_open(self, arguments: JSON) -> JSON:
        ticket = f"ticket-{next(self._numbers)}"
        if self.dead_tickets:
            self.dead_tickets -= 1
        else:
            self.tickets.add(ticket)
        return {"url": f"ws://127.0.0.1:{self._port}/link?ticket={ticket}"}

    def _users_info(self, arguments: JSON) -> JSON:
        return {"user": self.workspace.person(arguments["user"])}

    def _conversations_info(self, arguments: JSON) -> JSON:
        name = self.workspace.channel_name(arguments["channel"])
        creator = self.workspace.creators.get(name)
        made_by = {} if creator is None else {"creator": self.workspace.user(creator)}
        facts = {"is_channel": True, "is_private": name in self.workspace.private}
        return {"channel": {"id": arguments["channel"], "name": name, **facts, **made_by}}

    def _conversations_members(self, arguments: JSON) -> JSON:
        members = self.workspace.private.get(self.workspace.channel_name(arguments["channel"]), set())
        return {"members": [self.workspace.user(name) for name in sorted(members)]}

    def _post_message(self, arguments: JSON) -> JSON:
        if arguments.get("unfurl_links") is not False or arguments.get("unfurl_media") is not False:
            self.violations.append("chat.postMessage lets links unfurl")
        return {"ts": self.workspace.bot_posts(arguments).ts}

    def _update(self, arguments: JSON) -> JSON:
        self.agents.check_update(self.workspace.own(arguments))
        self.workspace.bot_updates(arguments)
        return {"ts": arguments["ts"]}

    def _delete(self, arguments: JSON) -> JSON:
        del self.workspace.messages[self.workspace.own(arguments).ts]
        return {}

    def _post_ephemeral(self, arguments: JSON) -> JSON:
        return {"message_ts": self.workspace.whisper(arguments["channel"], arguments["user"], arguments)}

    def _open_view(self, arguments: JSON) -> JSON:
        return self.views.open_view(arguments)

    def _history(self, arguments: JSON) -> JSON:
        self.histories.append(arguments["channel"])
        return self.workspace.history(arguments)

    def _replies(self, arguments: JSON) -> JSON:
        return self.workspace.thread(arguments)


def _of_agent(does: Callable[[SlackAgents, JSON], JSON], wire: SlackWire, arguments: JSON) -> JSON:
    return does(wire.agents, arguments)


_METHODS: dict[str, Callable[[SlackWire, JSON], JSON]] = {
    "auth.test": SlackWire._auth_test,
    "apps.connections.open": SlackWire._connections_open,
    "users.info": SlackWire._users_info,
    "conversations.info": SlackWire._conversations_info,
    "conversations.members": SlackWire._conversations_members,
    "chat.postMessage": SlackWire._post_message,
    "chat.update": SlackWire._update,
    "chat.delete": SlackWire._delete,
    "chat.postEphemeral": SlackWire._post_ephemeral,
    "views.open": SlackWire._open_view,
    "conversations.history": SlackWire._history,
    "conversations.replies": SlackWire._replies,
    **{name: partial(_of_agent, does) for name, does in AGENT_METHODS.items()},
}


async def _arguments(request: web.Request) -> JSON:
    if request.content_type == "application/json":
        arguments: JSON = await request.json()
        return arguments
    return {**request.query, **await request.post()}


def _cut(request: web.Request) -> web.Response:
    """Close the connection instead of responding."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()
