"""Loopback platforms that also send malformed events and frames."""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Protocol

from aiohttp import web

from bot.domain import Action
from tests.chaos.junk import garbage, mutated, raw, text
from tests.harness.platform import LoopbackPlatform
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.slack_wire import Envelope
from tests.harness.servers.telegram import TelegramPlatform

Json = dict[str, Any]


class HostilePlatform(LoopbackPlatform, Protocol):
    """A platform that sends junk on request.

    `real` are the events it sent so far; `raw_share` is the share of junk that may be
    frames which end a connection.
    """

    raw_share: float

    @property
    def real(self) -> list[Any]: ...

    async def send_wrong(self, event: Any) -> None:
        """Send an event unchanged."""
        ...

    async def send_raw(self, chance: random.Random) -> None:
        """Send a random frame that is not an event."""
        ...

    def texts(self) -> list[str]:
        """Return the texts of all the bot's messages."""
        ...


class HostileDiscord(DiscordPlatform):
    """Malformed events over the compressed gateway."""

    raw_share = 0.004

    @property
    def real(self) -> list[Any]:
        events = [json.loads(event) for each in self._sessions.values() for event in each.events if event[:1] == "{"]
        # The bot must believe READY: a wrong identity in it cannot be detected.
        return [event for event in events if event.get("t") not in ("READY", "RESUMED")]

    async def send_wrong(self, event: Any) -> None:
        if isinstance(event, dict) and event.get("op") != 0:
            event = {**event, "op": 0}  # the envelope is Discord's; only its content is user input
        self._tell(json.dumps(event))

    async def send_raw(self, chance: random.Random) -> None:
        control = [
            {"op": op, "d": chance.choice([None, True, False]), "s": None, "t": None} for op in (1, 7, 9, 11, 99)
        ]
        frames: list[str | bytes] = [raw(chance), garbage(chance), json.dumps(chance.choice(control))]
        self._tell(chance.choice(frames), fleeting=True)

    def texts(self) -> list[str]:
        return [each["content"] for each in self.messages.values() if each["author"]["id"] == self.bot["id"]]

    def _tell(self, frame: str | bytes, *, fleeting: bool = False) -> None:
        for session in self._sessions.values():
            if session.socket is not None:
                if fleeting:
                    session.unreplayed.add(len(session.events))
                session.events.append(frame)
                session.more.set()

    def _callback(self, id: int, token: str, body: Json) -> web.Response:
        if token not in self._interactions:
            return web.json_response({"message": "Unknown interaction", "code": 10062}, status=404)
        return super()._callback(id, token, body)


class HostileTelegram(TelegramPlatform):
    """Malformed updates in a poll, and malformed responses."""

    raw_share = 0.02

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.now = datetime.now(UTC)  # old questions would be settled with a notice
        self._real: list[Any] = []
        self._wrong: list[Any] = []

    @property
    def real(self) -> list[Any]:
        return list(self._real)

    def push(self, update: Json) -> None:
        super().push(update)
        self._real.append(self.pending[-1])

    async def send_wrong(self, event: Any) -> None:
        if isinstance(event, dict) and isinstance(event.get("update_id"), int):
            # A future number would confirm updates that were never delivered.
            event["update_id"] = min(event["update_id"], self.pending[0]["update_id"] if self.pending else 500_000)
        self._wrong.append(event)
        self._wake()

    async def send_raw(self, chance: random.Random) -> None:
        refusal = json.dumps(
            {"ok": False, "error_code": chance.choice([400, 409, 429, 500]), "description": text(chance)}
        )
        answers = [
            raw(chance),
            refusal,
            '{"ok": true}',
            '{"ok": true, "result": 7}',
            '{"ok": true, "result": {"a": []}}',
        ]
        self.garbage.append(chance.choice([chance.choice(answers).encode("utf-8", "replace"), garbage(chance)]))
        self._wake()

    def texts(self) -> list[str]:
        return [message.text for message in self.messages.values() if message.is_the_bots]

    async def _answer(self, request: web.Request) -> web.Response:
        # Junk is sent as events only, not as responses to other calls.
        kept, self.garbage = self.garbage, self.garbage if request.match_info["method"] == "getUpdates" else []
        try:
            return await super()._answer(request)
        finally:
            if kept is not self.garbage:
                self.garbage = kept + self.garbage

    async def _get_updates(self, request: web.Request, form: Json) -> list[Json]:
        updates = await super()._get_updates(request, form | ({"timeout": 0} if self._wrong else {}))
        room = 99 - len(updates)
        wrong, self._wrong = self._wrong[:room], self._wrong[room:]
        return wrong + updates


class HostileSlack(SlackServer):
    """Malformed envelopes over web sockets."""

    raw_share = 0.05

    @property
    def real(self) -> list[Any]:
        return [{"type": each.kind, "payload": each.payload} for each in self._envelopes.values() if each.payload]

    async def send_wrong(self, event: Any) -> None:
        if isinstance(event, dict):
            envelope = Envelope("", {}, f"junk-{next(self._numbers)}")
            self._envelopes[envelope.id] = envelope  # allows its acknowledgement
            event = {"envelope_id": envelope.id} | event
        await self._send_frame(json.dumps(event))

    async def send_raw(self, chance: random.Random) -> None:
        frames: list[str | bytes] = [raw(chance), garbage(chance)]
        await self._send_frame(chance.choice(frames))

    def texts(self) -> list[str]:
        return [message.markdown for message in self.workspace.messages.values() if message.user == "UBOT"]

    async def _send_frame(self, frame: str | bytes) -> None:
        await self.until(lambda: self.sockets > 0)
        for line in self._sockets[:1]:
            with suppress(ConnectionError):
                await (line.send_str(frame) if isinstance(frame, str) else line.send_bytes(frame))


HOSTILE: dict[str, Callable[[], HostilePlatform]] = {
    "discord": HostileDiscord,
    "telegram": HostileTelegram,
    "slack": HostileSlack,
}


async def send_every_kind(platform: HostilePlatform) -> None:
    """Cause a real event of each kind."""
    first = await platform.say("warm 1")
    await platform.say("warm 2", thread=None, mention=False)
    await platform.say("warm 3", author="Ann", direct=True)
    await platform.say("warm 4", reply_to=first, mention=False)
    await platform.until(lambda: len(platform.texts()) >= 2)
    await platform.command("status", channel="random")
    await platform.until(lambda: any(Action.RETRY in seen.actions for seen in platform.seen()))
    shown = next(seen for seen in platform.seen() if Action.RETRY in seen.actions)
    await platform.press(shown.id, Action.RETRY)
    await platform.edit(first, "warm 5")
    await platform.delete(await platform.say("warm 6", mention=False))


def malformed(platform: HostilePlatform, templates: list[Any], chance: random.Random) -> Any:
    """Return a real event with faults, or unchanged: a duplicate."""
    event = chance.choice(templates)
    return event if chance.random() < 0.05 else mutated(event, chance)
