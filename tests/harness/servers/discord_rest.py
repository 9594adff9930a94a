"""Discord's REST API with its limits and errors."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.harness.platform import Fault, FaultScript
from tests.harness.servers import discord_components as components
from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord_answers import error, json_answer
from tests.harness.servers.discord_interactions import DiscordInteractionRest
from tests.harness.servers.discord_payloads import Json
from tests.harness.servers.discord_world import APPLICATION, BOT, EPHEMERAL
from tests.harness.servers.fault_gate import is_client_connected


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A 429: when its Retry-After is over, and the connection that it was sent on."""

    until: float
    connection: asyncio.Transport

    def is_binding(self, now: float) -> bool:
        """Return whether a call now is too early; a client that timed out has closed the connection, and did not read it."""
        return now < self.until and not self.connection.is_closing()


class DiscordRest(DiscordInteractionRest):
    """Discord's API, with the strictness of the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.script: FaultScript = lambda number, name: None
        self.calls: list[str] = []
        self.sessions_left: Json | None = {
            "total": 1000,
            "remaining": 999,
            "reset_after": 60_000_000,
            "max_concurrency": 1,
        }
        self.writes = 0
        self.typing: list[int] = []  # channels in which the bot showed that it writes
        self.attempts: list[tuple[str, Json]] = []
        self.is_rate_limit_global = False
        self.bare_retry_after = ""  # the Retry-After of a 429 without a body
        self.commands: list[Json] = []
        self.application: Json = {}
        self.garbled: list[tuple[int, str, bytes]] = []  # status, type and body that replace a write's response
        self.refused_titles: list[int] = []  # error codes of the next threads; 0 lets one through
        self.is_in_no_server = False  # the bot is in no server
        self.forbidden: set[int] = set()
        self.guilds_without_commands: set[int] = set()
        self.failures: dict[str, int] = {}  # remaining 500 responses by path
        self.rate_limits: dict[str, int] = {}  # remaining 429 responses by path
        self.closing = asyncio.Event()
        self.directs_are_open = asyncio.Event()  # while cleared, reading a direct channel blocks
        self.directs_are_open.set()
        self._nonces: dict[str, int] = {}
        self._refused: dict[int, _Refusal] = {}

    def forget_nonces(self) -> None:
        """Discord keeps them for a few minutes."""
        self._nonces.clear()

    async def rest(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/api/v10")
        self.calls.append(f"{request.method} {path}")
        if self.failures.get(path):
            self.failures[path] -= 1
            return error(500, 0, "500: Internal Server Error")
        if self.rate_limits.get(path):
            self.rate_limits[path] -= 1
            return json_answer({"message": "You are being rate limited.", "retry_after": 2.0, "global": False}, 429)
        is_public = path.startswith(("/interactions/", "/webhooks/"))
        if not is_public and request.headers.get("Authorization") != f"Bot {self.known_token}":
            return error(401, 0, "401: Unauthorized")
        body: Json = await request.json() if request.body_exists else {}
        match path[1:].split("/"), request.method:
            case ["users", "@me"], "GET":
                return json_answer(self.bot)
            case ["oauth2", "applications", "@me"] | ["applications", "@me"], "GET":
                owner = payloads.user(1, "owner")
                return json_answer({**payloads.application(APPLICATION, owner, self._flags), **self.application})
            case ["applications", _, "commands"], "PUT":
                if (refused := components.refused_commands(_rows(body), self.installs)) is not None:
                    return error(400, 50035, refused)
                self.commands = [{**each, "id": "1", "application_id": "1", "version": "1"} for each in _rows(body)]
                return json_answer(self.commands)
            case ["gateway", "bot"], "GET":
                return json_answer(
                    {"url": "wss://gateway.invalid", "shards": 1, "session_start_limit": self.sessions_left}
                )
            case ["users", "@me", "guilds"], "GET":
                return json_answer([] if self.is_in_no_server else [self._guild()])
            case ["users", "@me", "channels"], "POST":
                return self._open_direct(int(body["recipient_id"]))
            case ["guilds", _, "members", person], "GET":
                return json_answer(self.member(int(person)))
            case ["applications", _, "guilds", guild, "commands"], "GET":
                return (
                    error(403, 50001, "Missing Access")
                    if int(guild) in self.guilds_without_commands
                    else json_answer([])
                )
            case ["channels", channel], "GET":
                if int(channel) in self._directs:
                    await self.directs_are_open.wait()
                return self._unreachable(int(channel)) or json_answer(self._channel(int(channel)))
            case ["channels", channel, "typing"], "POST":
                self.typing.append(int(channel))
                return self._unreachable(int(channel)) or web.Response(status=204)
            case ["channels", channel, "messages"], "GET":
                return self._unreachable(int(channel)) or self._history(int(channel), request.query)
            case ["channels", channel, "messages"], "POST":
                return await self._write(request, "send", int(channel), lambda: self._send(int(channel), body))
            case ["channels", channel, "messages", id], "GET":
                return self._unreachable(int(channel)) or self._message(int(channel), int(id))
            case ["channels", channel, "messages", id, "threads"], "POST":
                return await self._write(
                    request, "thread", int(channel), lambda: self._open(int(channel), int(id), body)
                )
            case ["channels", channel, "messages", id], "PATCH":
                return await self._write(request, "edit", int(channel), lambda: self._change(int(id), body))
            case ["channels", channel, "messages", id], "DELETE":
                return await self._write(request, "delete", int(channel), lambda: self._remove(int(id)))
            case ["interactions", id, token, "callback"], "POST":
                return self._callback(int(id), token, body)
            case ["webhooks", _, token], "POST":
                return await self._follow_up(request, token, body)
            case ["webhooks", _, token, "messages", name], method:
                return await self._shown_by_token(request, token, name, method, body)
        self.violations.append(f"no such call: {request.method} {path}")
        return error(404, 0, "404: Not Found")

    def _open_direct(self, person: int) -> web.Response:
        channel = self.direct(self.name_of(person))
        if channel in self.forbidden:
            return error(403, 50007, "Cannot send messages to this user")
        return json_answer(self._channel(channel))

    def _unreachable(self, channel: int) -> web.Response | None:
        if channel in self.forbidden:
            return error(403, 50001, "Missing Access")
        if channel in self.guest_places:
            self.violations.append("a call for a channel where the bot is no member")
            return error(403, 50001, "Missing Access")
        return None if channel in self._ids.values() else error(404, 10003, "Unknown Channel")

    def _message(self, channel: int, id: int) -> web.Response:
        message = self.messages.get(id)
        if message is None or message["channel_id"] != str(channel) or message["flags"] & EPHEMERAL:
            return error(404, 10008, "Unknown Message")
        return json_answer(self._shown(message, self.allows_content))

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
        return json_answer(found[::-1])

    async def _write(
        self, request: web.Request, name: str, channel: int, work: Callable[[], web.Response]
    ) -> web.Response:
        now = self.clock.now()
        if any(self._refused[each].is_binding(now) for each in (channel, 0) if each in self._refused):
            self.violations.append(f"{name} before Retry-After")
        fault = self.script(self.writes, name)
        self.writes += 1
        injected = await self._inject(request, fault, channel)
        if injected is not None:
            return injected
        locked = error(403, 160005, "Thread is locked") if channel in self.locked else None
        by_token = request.path.startswith("/api/v10/webhooks/")
        response = (None if by_token else self._unreachable(channel)) or locked or work()
        self.changed.set()
        if self.garbled:
            status, kind, garbled = self.garbled.pop(0)
            return web.Response(status=status, body=garbled, headers={"Content-Type": kind})
        if fault is not None and fault.kind == "lost" and request.transport is not None:
            request.transport.close()
        return response

    async def _inject(self, request: web.Request, fault: Fault | None, channel: int) -> web.Response | None:
        if fault is None or fault.kind == "lost":
            return None
        if fault.kind == "timeout":
            await self.closing.wait()
        if fault.kind == "429":
            if await is_client_connected(request) and request.transport is not None:
                target = 0 if self.is_rate_limit_global or self.bare_retry_after else channel
                self._refused[target] = _Refusal(self.clock.now() + fault.seconds, request.transport)
            body = {
                "message": "You are being rate limited.",
                "retry_after": fault.seconds,
                "global": self.is_rate_limit_global,
            }
            if self.bare_retry_after:
                return web.Response(status=429, text="<html>", headers={"Retry-After": self.bare_retry_after})
            return json_answer(body, 429, {"Retry-After": str(fault.seconds), "Via": "1.1 google"})
        return error(500, 0, "500: Internal Server Error")

    def _send(self, channel: int, body: Json) -> web.Response:
        self.attempts.append(("send", body))
        nonce = str(body["nonce"])
        if len(nonce) > 25:
            return error(400, 50035, "nonce: Must be 25 or fewer in length.")
        if body.get("enforce_nonce") and nonce in self._nonces:
            return json_answer(self.messages.get(self._nonces[nonce]) or {}, 200)
        refused = self._validate(body)
        if refused is not None:
            return refused
        reference = body.get("message_reference")
        referred = self.messages.get(int(reference["message_id"])) if reference else None
        if referred is not None and referred["channel_id"] != str(channel):
            self.violations.append("a reply to a message of another channel")
            return error(400, 50035, "message_reference: Cannot reply to a message in a different channel")
        if reference is not None and int(reference["message_id"]) not in self.messages:
            if reference.get("fail_if_not_exists", True):
                return error(400, 50035, "message_reference: Unknown message")
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
        self.send_event("MESSAGE_CREATE", message)
        return json_answer(message)

    def _open(self, channel: int, id: int, body: Json) -> web.Response:
        """Make a thread from a message."""
        if channel in self._threads or channel in self._directs:
            return error(400, 50024, "Cannot execute action on this channel type")
        if not self.bot_permissions & payloads.ADMINISTRATOR and payloads.THREADS & ~self.bot_permissions:
            self.violations.append("a thread without the permission")
            return error(403, 50013, "Missing Permissions")
        if id not in self.messages or self.messages[id]["channel_id"] != str(channel):
            return error(404, 10008, "Unknown Message")
        if self.refused_titles and (code := self.refused_titles.pop(0)):
            return error(400, code, "refused")
        if not 0 < len(str(body["name"]).strip()) <= 100 or body["auto_archive_duration"] not in (
            60,
            1440,
            4320,
            10080,
        ):
            self.violations.append("an invalid thread")
            return error(400, 50035, "Invalid Form Body")
        if id in self._threads:
            return error(400, 160004, "A thread has already been created for this message")
        return json_answer(self.open_thread(channel, str(body["name"]), id), 201)

    def _change(self, id: int, body: Json) -> web.Response:
        self.attempts.append(("edit", body))
        message = self.messages.get(id)
        if message is None or message["flags"] & EPHEMERAL:
            return error(404, 10008, "Unknown Message")
        if message["author"]["id"] != str(BOT):
            return error(403, 50005, "Cannot edit a message authored by another user")
        refused = self._validate(body)
        if refused is not None:
            return refused
        message |= {"content": body["content"], "components": body["components"], "edited_timestamp": payloads.now()}
        self.send_event("MESSAGE_UPDATE", message)
        return json_answer(message)

    def _remove(self, id: int) -> web.Response:
        message = self.messages.pop(id, None)
        if message is None:
            return error(404, 10008, "Unknown Message")
        where = {"channel_id": message["channel_id"], **self._of_guild(int(message["channel_id"]))}
        self.send_event("MESSAGE_DELETE", {"id": str(id), **where})
        return web.Response(status=204)

    def _validate(self, body: Json) -> web.Response | None:
        content = body.get("content") or ""
        if body.get("allowed_mentions", {}).get("parse", ["everyone"]) != []:
            self.violations.append("a message that may mention everyone")
        if len(content) > 2000:
            self.violations.append("a text over the limit")
            return error(400, 50035, "content: Must be 2000 or fewer in length.")
        if not content.strip():
            self.violations.append("an empty text")
            return error(400, 50006, "Cannot send an empty message")
        return None


def _rows(body: Any) -> list[Json]:
    return list(body)
