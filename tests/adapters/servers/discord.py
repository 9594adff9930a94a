"""Discord on this machine: its REST API, its gateway, and the people on one server."""

import asyncio
import json
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import WSCloseCode, WSMsgType, web
from pydantic import SecretStr

from bot.adapters.discord import DiscordAdapter
from bot.adapters.discord_settings import DiscordSection
from bot.clock import Clock, MonotonicClock
from bot.domain import Action
from bot.markup.reading import visible
from tests.adapters.platform import Script, Seen, Trouble
from tests.adapters.servers import discord_payloads as payloads
from tests.adapters.servers.discord_payloads import Json

TOKEN = "the-token-of-the-bot"
# As long as real ones: the library finds shorter ids in no text.
_FIRST_ID = 100_000_000_000_000_000
BOT, APPLICATION, GUILD, BOT_ROLE = (_FIRST_ID + number for number in range(4))
MESSAGE_CONTENT = 1 << 15
EPHEMERAL = 64
_EPOCH = 1420070400000


@dataclass(eq=False)
class Session:
    """A gateway session: every event since it began, and the socket that hears it."""

    id: str
    intents: int
    events: list[str] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    socket: web.WebSocketResponse | None = None


@dataclass(eq=False)
class Interaction:
    """A command or a pressed button that waits for a word of the bot's."""

    channel: int
    is_answered: bool = False
    is_expired: bool = False
    response: int | None = None


class DiscordPlatform:
    """A LoopbackPlatform; strict where Discord is, and where a careful client would not go.

    `allows_content`: the operator has switched the Message Content intent on.
    """

    name = "discord"

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.script: Script = lambda number, name: None
        self.calls: list[str] = []
        self.allows_content = True
        self.is_global = False
        self.is_terse = False  # a 429 says no more than that
        self.known_token = TOKEN
        self.commands: list[Json] = []
        self.locales: dict[str, str] = {}
        self.application: Json = {}
        self.is_quiet = False  # new threads are not told of
        self.is_alone = False  # the bot is on no server
        self.waits: dict[str, int] = {}  # how often each of these paths still answers 429
        self.forbidden: set[int] = set()
        self.guilds_without_commands: set[int] = set()
        self.refusals: dict[str, int] = {}  # how often each of these paths still answers 500
        self.closes_with: list[int] = []  # codes that the next IDENTIFYs are answered with
        self.silences = 0  # how many sockets are still closed without a word
        self.identified: list[Json] = []
        self.resumed = 0
        self._clock: Clock = MonotonicClock()
        self._last_id = 0
        self.writes = 0
        self._ids: dict[tuple[str, ...], int] = {}
        self._threads: dict[int, int] = {}
        self._directs: dict[int, int] = {}  # channel: person
        self.messages: dict[int, Json] = {}
        self.attempts: list[tuple[str, Json]] = []
        self._nonces: dict[str, int] = {}
        self._not_before: dict[int, float] = {}
        self._sessions: dict[str, Session] = {}
        self._last_identify = -1e9
        self._interactions: dict[str, Interaction] = {}
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()

    def adapter(self, clock: Clock, **settings: Any) -> DiscordAdapter:
        self._clock = clock
        return DiscordAdapter(self.settings(**settings), clock, server_seconds=0.05)

    def settings(self, **more: Any) -> DiscordSection:
        return DiscordSection(
            token=SecretStr(TOKEN),
            api_url=f"{self._url}/api/v10",
            gateway_url=f"{self._url.replace('http', 'ws')}/gateway",
            **{"call_seconds": 1.0, **more},
        )

    # People

    async def say(
        self,
        text: str,
        *,
        author: str = "Mei",
        channel: str = "general",
        thread: str | None = None,
        direct: bool = False,
        mention: bool = True,
        reply_to: str | None = None,
        **more: Any,
    ) -> str:
        where = self.direct(author) if direct else self.thread(channel, thread) if thread else self.channel(channel)
        replied = self.messages[int(reply_to)] if reply_to else None
        answers_bot = replied is not None and replied["author"]["id"] == str(BOT)
        mentions = [self.bot] if mention and not direct else []
        mentions = more.pop("mentions", mentions)
        content = f"<@{BOT}> {text}" if mentions and not answers_bot else text
        if replied is not None:
            reference = {"type": 0, "message_id": replied["id"], "channel_id": replied["channel_id"]}
            more |= {"type": 19, "message_reference": reference, "referenced_message": replied}
        said = payloads.message(self._new_id(), where, self.person(author), content, mentions=mentions, **more)
        self._keep(said)
        self.tell("MESSAGE_CREATE", said)
        return str(said["id"])

    async def edit(self, message_id: str, text: str) -> None:
        message = self.messages[int(message_id)]
        mention = f"<@{BOT}> " if message["content"].startswith(f"<@{BOT}> ") else ""
        message |= {"content": mention + text, "edited_timestamp": payloads.now()}
        self.tell("MESSAGE_UPDATE", message)

    async def delete(self, message_id: str) -> None:
        message = self.messages.pop(int(message_id))
        where = {"channel_id": message["channel_id"], **self._of_guild(int(message["channel_id"]))}
        self.tell("MESSAGE_DELETE", {"id": message["id"], **where})

    async def command(self, name: str, *, author: str = "Mei", channel: str = "general", direct: bool = False) -> None:
        known = next((each for each in self.commands if each["name"] == name), None)
        assert known is not None, f"the bot has announced no command {name}"
        where = self.direct(author) if direct else self.channel(channel)
        self._interact(2, {"id": "1", "name": name, "type": 1, "options": []}, author, where)

    async def press(self, message_id: str, action: Action, *, author: str = "Mei") -> None:
        message = self.messages[int(message_id)]
        assert action.value in _buttons(message), "there is no such button"
        data = {"custom_id": action.value, "component_type": 2}
        self._interact(3, data, author, int(message["channel_id"]), message=message)

    def interact(self, kind: int, data: Json, author: str, channel: str, **more: Any) -> None:
        """An interaction of any kind, in a channel."""
        self._interact(kind, data, author, self.channel(channel), **more)

    def _interact(self, kind: int, data: Json, author: str, where: int, **more: Any) -> None:
        id = self._new_id()
        self._interactions[f"token-{id}"] = Interaction(where)
        person = self.person(author)
        who = {"user": person} if where in self._directs else {"member": {**payloads.member([]), "user": person}}
        more |= {"channel": self._channel(where), "channel_id": str(where), "locale": self.locales.get(author, "en-US")}
        event = payloads.interaction(id, APPLICATION, kind, f"token-{id}", data, **who, **more)
        self.tell("INTERACTION_CREATE", event | self._of_guild(where))

    def seen(self, channel: str = "general", thread: str | None = None) -> list[Seen]:
        is_direct = thread is None and ("direct", channel) in self._ids and ("channel", channel) not in self._ids
        where = self.direct(channel) if is_direct else self.thread(channel, thread) if thread else self.channel(channel)
        return [
            Seen(
                id=message["id"],
                author=message["author"]["username"],
                markdown=message["content"],
                visible=visible(message["content"]),
                actions=frozenset(Action(name) for name in _buttons(message)),
                reply_to=message.get("message_reference", {}).get("message_id"),
            )
            for message in self.messages.values()
            if message["channel_id"] == str(where) and message["content"]
        ]

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                # What is waited for may also happen beside the server.
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.02)

    async def disconnect(self, *, resumable: bool = True) -> None:
        sessions = list(self._sessions.values())
        if not resumable:
            self._sessions.clear()
        for session in sessions:
            if session.socket is not None:
                await session.socket.close(code=WSCloseCode.GOING_AWAY)

    @property
    def is_connected(self) -> bool:
        return any(session.socket is not None for session in self._sessions.values())

    @property
    def unanswered(self) -> int:
        """How many commands and buttons got no word of the bot's."""
        return sum(not each.is_answered for each in self._interactions.values())

    def person(self, name: str) -> Json:
        return payloads.user(self._id("person", name), name, is_bot=name.endswith("bot"))

    def channel(self, name: str) -> int:
        return self._id("channel", name)

    def thread(self, channel: str, name: str) -> int:
        is_new = ("thread", channel, name) not in self._ids
        id = self._id("thread", channel, name)
        if is_new:
            self._threads[id] = self.channel(channel)
            if not self.is_quiet:
                self.tell("THREAD_CREATE", self._channel(id))
        return id

    def direct(self, name: str) -> int:
        id = self._id("direct", name)
        self._directs[id] = self._id("person", name)
        return id

    @property
    def bot(self) -> Json:
        return payloads.user(BOT, "bot", is_bot=True)

    def _id(self, *name: str) -> int:
        is_new = name not in self._ids
        id = self._ids.setdefault(name, _FIRST_ID + 100 + len(self._ids))
        if is_new and name[0] == "channel":
            self.tell("CHANNEL_CREATE", self._channel(id))
        return id

    def _new_id(self) -> int:
        self._last_id = max(self._last_id + 1, (time.time_ns() // 1_000_000 - _EPOCH) << 22)
        return self._last_id

    def _of_guild(self, channel: int) -> Json:
        return {} if channel in self._directs else {"guild_id": str(GUILD)}

    def _channel(self, id: int) -> Json:
        last = max((int(each["id"]) for each in self.messages.values() if each["channel_id"] == str(id)), default=None)
        name = next(name[-1] for name, known in self._ids.items() if known == id)
        if id in self._directs:
            return payloads.direct_channel(id, payloads.user(self._directs[id], name))
        if id in self._threads:
            return payloads.thread(id, GUILD, self._threads[id], name, BOT, last)
        return payloads.text_channel(id, GUILD, name, last)

    def forget_interactions(self) -> None:
        self._interactions.clear()

    def _guild(self) -> Json:
        rooms = [id for name, id in self._ids.items() if name[0] == "channel"]
        roles = [payloads.role(GUILD, "@everyone"), payloads.role(BOT_ROLE, "bot", {"bot_id": str(BOT)})]
        me = {**payloads.member([BOT_ROLE]), "user": self.bot}
        return payloads.guild(
            GUILD,
            "A server",
            [self._channel(id) for id in rooms],
            [self._channel(id) for id in self._threads],
            roles,
            me,
        )

    def _keep(self, message: Json) -> None:
        self.messages[int(message["id"])] = message
        self._changed.set()

    # The gateway

    def tell(self, name: str, data: Any) -> None:
        """Let the bot hear of an event."""
        for session in self._sessions.values():
            self._event(session, name, self._for_session(session, name, data))
        self._changed.set()

    def _for_session(self, session: Session, name: str, data: Any) -> Any:
        if not name.startswith("MESSAGE_") or not isinstance(data, dict) or "channel_id" not in data:
            return data
        where = int(data["channel_id"])
        if "author" not in data:
            return data
        shown = self._shown(data, bool(session.intents & MESSAGE_CONTENT))
        person = {} if where in self._directs else {"member": payloads.member([])}
        return {**shown, **self._of_guild(where), **person}

    def _shown(self, message: Json, reads_all: bool) -> Json:
        """A message as the bot may read it."""
        is_mentioned = any(user["id"] == str(BOT) for user in message["mentions"])
        is_own = message["author"]["id"] == str(BOT)
        shown = dict(message)
        if not (reads_all or is_mentioned or is_own or int(message["channel_id"]) in self._directs):
            shown |= {"content": "", "attachments": [], "embeds": [], "components": []}
        if shown.get("referenced_message"):
            shown["referenced_message"] = self._shown(shown["referenced_message"], reads_all)
        return shown

    def _event(self, session: Session, name: str, data: Any) -> None:
        session.events.append(json.dumps({"op": 0, "t": name, "s": len(session.events) + 1, "d": data}))
        session.more.set()

    async def _gateway(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.silences:
            self.silences -= 1
            await socket.close(code=4000)
            return socket
        deflate = zlib.compressobj() if request.query.get("compress") == "zlib-stream" else None

        async def send(text: str) -> None:
            if deflate is None:
                await socket.send_str(text)
            else:
                await socket.send_bytes(deflate.compress(text.encode()) + deflate.flush(zlib.Z_SYNC_FLUSH))

        await send(json.dumps({"op": 10, "d": {"heartbeat_interval": 41250}}))
        session: Session | None = None
        telling: asyncio.Task[None] | None = None
        try:
            async for frame in socket:
                if frame.type is not WSMsgType.TEXT:
                    break
                said = json.loads(frame.data)
                match said["op"]:
                    case 1:
                        await send(json.dumps({"op": 11, "d": None}))
                    case 2:
                        session = await self._identify(socket, said["d"])
                        if session is not None:
                            telling = asyncio.create_task(_tell_all(session, send, 0))
                    case 6:
                        session = self._sessions.get(said["d"]["session_id"])
                        if session is None or session.socket is not None:
                            session = None
                            await send(json.dumps({"op": 9, "d": False}))
                            continue
                        session.socket = socket
                        self.resumed += 1
                        self._event(session, "RESUMED", {})
                        telling = asyncio.create_task(_tell_all(session, send, said["d"]["seq"]))
        finally:
            if session is not None:
                session.socket = None
            if telling is not None:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
        return socket

    async def _identify(self, socket: web.WebSocketResponse, said: Json) -> Session | None:
        self.identified.append(said)
        now = self._clock.now()
        if now < self._last_identify + 5:
            self.violations.append("a second IDENTIFY within 5 s")
        self._last_identify = now
        if self.closes_with:
            await socket.close(code=self.closes_with.pop(0))
            return None
        if said["token"] != self.known_token:
            await socket.close(code=4004)
            return None
        if said["intents"] & MESSAGE_CONTENT and not self.allows_content:
            await socket.close(code=4014)
            return None
        session = Session(f"session-{len(self.identified)}", said["intents"], socket=socket)
        ready = {
            "v": 10,
            "user": self.bot,
            "guilds": [{"id": str(GUILD), "unavailable": True}],
            "session_id": session.id,
            "resume_gateway_url": f"{self._url.replace('http', 'ws')}/gateway",
            "application": {"id": str(APPLICATION), "flags": self._flags},
        }
        self._event(session, "READY", ready)
        self._event(session, "GUILD_CREATE", self._guild())
        self._sessions[session.id] = session
        self._changed.set()
        return session

    @property
    def _flags(self) -> int:
        return 1 << 19 if self.allows_content else 0

    # The REST API

    async def _rest(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/api/v10")
        self.calls.append(f"{request.method} {path}")
        if self.refusals.get(path):
            self.refusals[path] -= 1
            return _error(500, 0, "500: Internal Server Error")
        if self.waits.get(path):
            self.waits[path] -= 1
            return _json({"message": "You are being rate limited.", "retry_after": 2.0, "global": False}, 429)
        is_public = path.startswith(("/interactions/", "/webhooks/"))
        if not is_public and request.headers.get("Authorization") != f"Bot {self.known_token}":
            return _error(401, 0, "401: Unauthorized")
        body: Json = await request.json() if request.can_read_body else {}
        match path[1:].split("/"), request.method:
            case ["users", "@me"], "GET":
                return _json(self.bot)
            case ["oauth2", "applications", "@me"] | ["applications", "@me"], "GET":
                owner = payloads.user(1, "owner")
                return _json({**payloads.application(APPLICATION, owner, self._flags), **self.application})
            case ["applications", _, "commands"], "PUT":
                self.commands = [{**each, "id": "1", "application_id": "1", "version": "1"} for each in _rows(body)]
                return _json(self.commands)
            case ["users", "@me", "guilds"], "GET":
                return _json([] if self.is_alone else [self._guild()])
            case ["applications", _, "guilds", guild, "commands"], "GET":
                return _error(403, 50001, "Missing Access") if int(guild) in self.guilds_without_commands else _json([])
            case ["channels", channel], "GET":
                return self._unreachable(int(channel)) or _json(self._channel(int(channel)))
            case ["channels", channel, "messages"], "GET":
                return self._unreachable(int(channel)) or self._history(int(channel), request.query)
            case ["channels", channel, "messages"], "POST":
                return await self._write(request, "send", int(channel), lambda: self._send(int(channel), body))
            case ["channels", channel, "messages", id], "PATCH":
                return await self._write(request, "edit", int(channel), lambda: self._change(int(id), body))
            case ["channels", channel, "messages", id], "DELETE":
                return await self._write(request, "delete", int(channel), lambda: self._remove(int(id)))
            case ["interactions", id, token, "callback"], "POST":
                return self._callback(int(id), token, body)
            case ["webhooks", _, token, "messages", "@original"], method:
                return await self._original(request, token, method, body)
        self.violations.append(f"no such call: {request.method} {path}")
        return _error(404, 0, "404: Not Found")

    def _unreachable(self, channel: int) -> web.Response | None:
        if channel in self.forbidden:
            return _error(403, 50001, "Missing Access")
        return None if channel in self._ids.values() else _error(404, 10003, "Unknown Channel")

    def _history(self, channel: int, query: Mapping[str, str]) -> web.Response:
        after, before = int(query.get("after", 0)), int(query.get("before", 1 << 63))
        found = [
            {**self._shown(each, self.allows_content)}
            for each in self.messages.values()
            if each["channel_id"] == str(channel) and after < int(each["id"]) < before and not each["flags"] & EPHEMERAL
        ]
        limit = int(query.get("limit", 50))
        if limit > 100:
            self.violations.append(f"history of {limit} messages in a call")
        found = found[:limit] if "after" in query else found[-limit:]
        return _json(found[::-1])

    async def _write(
        self, request: web.Request, name: str, channel: int, work: Callable[[], web.Response]
    ) -> web.Response:
        now = self._clock.now()
        if now < max(self._not_before.get(channel, now), self._not_before.get(0, now)):
            self.violations.append(f"{name} before Retry-After")
        trouble = self.script(self.writes, name)
        self.writes += 1
        refused = await self._refused(trouble, channel)
        if refused is not None:
            return refused
        response = self._unreachable(channel) or work()
        self._changed.set()
        if trouble is not None and trouble.kind == "lost" and request.transport is not None:
            request.transport.close()
        return response

    async def _refused(self, trouble: Trouble | None, channel: int) -> web.Response | None:
        if trouble is None or trouble.kind == "lost":
            return None
        if trouble.kind == "timeout":
            await self._closing.wait()
        if trouble.kind == "429":
            self._not_before[0 if self.is_global or self.is_terse else channel] = self._clock.now() + trouble.seconds
            body = {"message": "You are being rate limited.", "retry_after": trouble.seconds, "global": self.is_global}
            if self.is_terse:
                return web.Response(status=429, text="<html>", headers={"Retry-After": str(trouble.seconds)})
            return _json(body, 429, {"Retry-After": str(trouble.seconds), "Via": "1.1 google"})
        return _error(500, 0, "500: Internal Server Error")

    def _send(self, channel: int, body: Json) -> web.Response:
        self.attempts.append(("send", body))
        nonce = str(body["nonce"])
        if len(nonce) > 25:
            return _error(400, 50035, "nonce: Must be 25 or fewer in length.")
        if body.get("enforce_nonce") and nonce in self._nonces:
            return _json(self.messages.get(self._nonces[nonce]) or {}, 200)
        refused = self._checked(body)
        if refused is not None:
            return refused
        reference = body.get("message_reference")
        if reference is not None and int(reference["message_id"]) not in self.messages:
            if reference.get("fail_if_not_exists", True):
                return _error(400, 50035, "message_reference: Unknown message")
            reference = None
        reference = reference and {**reference, "message_id": str(reference["message_id"])}
        more = {} if reference is None else {"message_reference": reference, "type": 19}
        message = payloads.message(
            self._new_id(),
            channel,
            self.bot,
            body["content"],
            components=body.get("components", []),
            flags=body.get("flags", 0),
            **more,
        )
        self._nonces[nonce] = int(message["id"])
        self._keep(message)
        self.tell("MESSAGE_CREATE", message)
        return _json(message)

    def _change(self, id: int, body: Json) -> web.Response:
        self.attempts.append(("edit", body))
        message = self.messages.get(id)
        if message is None or message["flags"] & EPHEMERAL:
            return _error(404, 10008, "Unknown Message")
        if message["author"]["id"] != str(BOT):
            return _error(403, 50005, "Cannot edit a message authored by another user")
        refused = self._checked(body)
        if refused is not None:
            return refused
        message |= {"content": body["content"], "components": body["components"], "edited_timestamp": payloads.now()}
        self.tell("MESSAGE_UPDATE", message)
        return _json(message)

    def _remove(self, id: int) -> web.Response:
        message = self.messages.pop(id, None)
        if message is None:
            return _error(404, 10008, "Unknown Message")
        where = {"channel_id": message["channel_id"], **self._of_guild(int(message["channel_id"]))}
        self.tell("MESSAGE_DELETE", {"id": str(id), **where})
        return web.Response(status=204)

    def _checked(self, body: Json) -> web.Response | None:
        content = body.get("content") or ""
        if body.get("allowed_mentions", {}).get("parse", ["everyone"]) != []:
            self.violations.append("a message that may mention everyone")
        if len(content) > 2000:
            self.violations.append("a text over the limit")
            return _error(400, 50035, "content: Must be 2000 or fewer in length.")
        if not content.strip():
            self.violations.append("an empty text")
            return _error(400, 50006, "Cannot send an empty message")
        return None

    def _callback(self, id: int, token: str, body: Json) -> web.Response:
        interaction = self._interactions[token]
        if interaction.is_expired:
            return _error(404, 10062, "Unknown interaction")
        if interaction.is_answered:
            return _error(400, 40060, "Interaction has already been acknowledged.")
        interaction.is_answered = True
        answer: Json = {"interaction": {"id": str(id), "type": 2, "response_message_ephemeral": False}}
        if body["type"] in (4, 5):
            data = body.get("data") or {}
            flags = data.get("flags", 0)
            content = data.get("content") or ""
            message = payloads.message(self._new_id(), interaction.channel, self.bot, content, flags=flags, type=20)
            interaction.response = int(message["id"])
            self._keep(message)
            answer["interaction"]["response_message_id"] = message["id"]
            answer["resource"] = {"type": body["type"], "message": message}
        self._changed.set()
        return _json(answer)

    async def _original(self, request: web.Request, token: str, method: str, body: Json) -> web.Response:
        interaction = self._interactions[token]
        message = self.messages.get(interaction.response or 0)
        if message is None:
            return _error(404, 10008, "Unknown Message")

        def work() -> web.Response:
            if interaction.is_expired:
                return _error(401, 50027, "Invalid Webhook Token")
            if method == "DELETE":
                del self.messages[int(message["id"])]
                return web.Response(status=204)
            if method == "PATCH":
                refused = self._checked(body)
                if refused is not None:
                    return refused
                message.update(content=body["content"])
            return _json(message)

        return await self._write(request, "edit", interaction.channel, work)

    def expire(self) -> None:
        """Let all commands be too old to be responded to."""
        for interaction in self._interactions.values():
            interaction.is_answered = interaction.is_expired = True

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/gateway", self._gateway)
        app.router.add_get("/gateway/", self._gateway)
        app.router.add_route("*", "/api/v10/{path:.*}", self._rest)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.unanswered:
            self.violations.append(f"{self.unanswered} interactions without an answer")
        self._closing.set()
        await self.disconnect(resumable=False)
        await self._runner.cleanup()


async def _tell_all(session: Session, send: Any, told: int) -> None:
    while True:
        while told < len(session.events):
            await send(session.events[told])
            told += 1
        session.more.clear()
        await session.more.wait()


def _buttons(message: Json) -> list[str]:
    return [each["custom_id"] for row in message["components"] for each in row["components"]]


def _rows(body: Any) -> list[Json]:
    return list(body)


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    # Exactly this content type: the library reads no other as JSON.
    return web.Response(
        body=json.dumps(value).encode(), status=status, headers=headers, content_type="application/json"
    )


def _error(status: int, code: int, message: str) -> web.Response:
    return _json({"message": message, "code": code}, status)
