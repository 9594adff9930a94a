"""Discord's gateway: sessions, events, and their replay after a RESUME."""

import asyncio
import json
import zlib
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord_payloads import Json
from tests.harness.servers.discord_world import APPLICATION, BOT, BOT_ROLE, GUILD, DiscordWorld

TOKEN = "the-token-of-the-bot"
REACTIONS, DIRECT_REACTIONS, MESSAGE_CONTENT = 1 << 10, 1 << 13, 1 << 15
_IDENTIFY_INTERVAL = 5.0  # seconds
_HEARTBEAT_ACK = json.dumps({"op": 11, "d": None})


@dataclass(eq=False)
class Session:
    """A gateway session with all its events, and its socket."""

    id: str
    intents: int
    events: list[str | bytes] = field(default_factory=list)  # bytes are sent as they are
    more: asyncio.Event = field(default_factory=asyncio.Event)
    unreplayed: set[int] = field(default_factory=set)  # indices of frames that are not replayed
    socket: web.WebSocketResponse | None = None


class DiscordGateway(DiscordWorld):
    """HELLO, IDENTIFY, RESUME and events, compressed on request."""

    def __init__(self) -> None:
        super().__init__()
        self.known_token = TOKEN
        self.url = ""
        self.close_codes: list[int] = []  # close codes for the next IDENTIFYs
        self.is_unreachable = False  # connections are rejected
        self.rejected = 0
        self.silent_closes = 0  # the next sockets that are closed without HELLO
        self.identified: list[Json] = []
        self.resumed = 0
        self._sessions: dict[str, Session] = {}
        self._last_hello = -1e9

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

    def send_event(self, name: str, data: Any) -> None:
        """Send an event to all sessions."""
        for session in self._sessions.values():
            self._event(session, name, self._for_session(session, name, data))
        self.changed.set()

    def _for_session(self, session: Session, name: str, data: Any) -> Any:
        if not name.startswith("MESSAGE_") or not isinstance(data, dict) or "channel_id" not in data:
            return data
        where = int(data["channel_id"])
        if "author" not in data:
            return data
        shown = self._shown(data, bool(session.intents & MESSAGE_CONTENT))
        roles = [BOT_ROLE] if data["author"]["id"] == str(BOT) else []
        person = {} if where in self._directs else {"member": payloads.member(roles)}
        return {**shown, **self._of_guild(where), **person}

    def _event(self, session: Session, name: str, data: Any) -> None:
        session.events.append(json.dumps({"op": 0, "t": name, "s": len(session.events) + 1, "d": data}))
        session.more.set()

    def send_as_it_is(self, name: str, data: Any) -> None:
        """Send an event that may be malformed."""
        for session in self._sessions.values():
            self._event(session, name, data)

    def send_malformed_frame(self) -> None:
        """Send a frame that is not JSON."""
        for session in self._sessions.values():
            session.events.append("{")
            session.more.set()

    async def gateway(self, request: web.Request) -> web.WebSocketResponse:
        if self.is_unreachable:
            self.rejected += 1
            raise web.HTTPServiceUnavailable
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.silent_closes:
            self.silent_closes -= 1
            await socket.close(code=4000)
            return socket
        deflate = zlib.compressobj() if request.query.get("compress") == "zlib-stream" else None

        async def send(text: str | bytes) -> None:
            if isinstance(text, bytes):
                await socket.send_bytes(text)
            elif deflate is None:
                await socket.send_str(text)
            else:
                await socket.send_bytes(deflate.compress(text.encode()) + deflate.flush(zlib.Z_SYNC_FLUSH))

        hello = self.clock.now()
        await send(json.dumps({"op": 10, "d": {"heartbeat_interval": 41250}}))
        session: Session | None = None
        sending: asyncio.Task[None] | None = None
        try:
            async for frame in socket:
                if frame.type is not WSMsgType.TEXT:
                    break
                said = json.loads(frame.data)
                match said["op"]:
                    case 1:
                        await send(json.dumps({"op": 11, "d": None}))
                    case 2:
                        session = await self._identify(socket, said["d"], hello)
                        if session is not None:
                            sending = asyncio.create_task(_send_events(session, send, 0))
                    case 6:
                        session = self._sessions.get(said["d"]["session_id"])
                        if session is None or session.socket is not None or not _is_known(session, said["d"]["seq"]):
                            session = None
                            await send(json.dumps({"op": 9, "d": False}))
                            continue
                        session.socket = socket
                        self.resumed += 1
                        self._event(session, "RESUMED", {})
                        sending = asyncio.create_task(_send_events(session, send, said["d"]["seq"]))
        finally:
            if session is not None:
                session.socket = None
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return socket

    async def _identify(self, socket: web.WebSocketResponse, said: Json, hello: float) -> Session | None:
        self.identified.append(said)
        now = self.clock.now()
        # The previous IDENTIFY was sent after its HELLO, so a shorter time proves a violation.  The times
        # of arrival prove nothing: on a fast clock a delay in transit looks like seconds.
        if now < self._last_hello + _IDENTIFY_INTERVAL:
            self.violations.append("a second IDENTIFY within 5 s")
        self._last_hello = hello
        if self.close_codes:
            await socket.close(code=self.close_codes.pop(0))
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
            "resume_gateway_url": f"{self.url.replace('http', 'ws')}/gateway",
            "application": {"id": str(APPLICATION), "flags": self._flags},
        }
        self._event(session, "READY", ready)
        self._event(session, "GUILD_CREATE", self._guild())
        self._sessions[session.id] = session
        self.changed.set()
        return session


def _is_known(session: Session, seq: object) -> bool:
    return isinstance(seq, int) and 0 <= seq <= len(session.events)


async def _send_events(session: Session, send: Any, sent: int) -> None:
    while True:
        while sent < len(session.events):
            frame = session.events[sent]
            if sent in session.unreplayed:
                session.events[sent] = _HEARTBEAT_ACK
            await send(frame)
            sent += 1
        session.more.clear()
        await session.more.wait()
