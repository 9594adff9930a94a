"""A loopback Discord: REST API, gateway, and the users of one server."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from pydantic import SecretStr

from bot.adapters.discord.adapter import DiscordAdapter
from bot.adapters.discord.settings import DiscordSection
from bot.domain import Action
from bot.util.clock import Clock
from tests.harness.platform import TIMEOUT, LoopbackPlatform, Seen, visible_text
from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord_gateway import DIRECT_REACTIONS, REACTIONS, TOKEN
from tests.harness.servers.discord_payloads import Json
from tests.harness.servers.discord_users import DiscordUsers, action_buttons
from tests.harness.servers.discord_world import BOT
from tests.harness.servers.fault_gate import FaultGate
from tests.harness.servers.file_shelf import FileShelf


class DiscordPlatform(DiscordUsers):
    """A LoopbackPlatform with more settings."""

    name = "discord"

    def __init__(self) -> None:
        super().__init__()
        self.gate = FaultGate()
        self.shelf = FileShelf()
        self.server_port = 0
        self.call_seconds = 20.0  # timeout of the bot's calls
        self.cut_off_seconds = 60.0  # the bot starts a new session after an outage of this length

    def adapter(self, clock: Clock, **settings: Any) -> DiscordAdapter:
        self.clock = clock
        self._last_hello = -1e9  # times of another clock cannot be compared
        return DiscordAdapter(
            self.settings(**settings), clock, server_seconds=0.05, cut_off_seconds=self.cut_off_seconds
        )

    def settings(self, **more: Any) -> DiscordSection:
        return DiscordSection(
            **{
                "token": SecretStr(TOKEN),
                "api_url": f"{self.url}/api/v10",
                "gateway_url": f"{self.url.replace('http', 'ws')}/gateway",
                "call_seconds": self.call_seconds,
                **more,
            }
        )

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
        self.send_event("MESSAGE_CREATE", said)
        return str(said["id"])

    def file(self, name: str, data: bytes, media_type: str = "") -> Json:
        """Return an attachment for `say(…, attachments=[…])`."""
        id = self._new_id()
        self.shelf.files[f"{id}/{name}"] = data
        url = f"{self.url}/attachments/{id}/{name}"
        facts: Json = {"id": str(id), "filename": name, "size": len(data), "url": url, "proxy_url": url}
        return facts | ({"content_type": media_type} if media_type else {})

    async def edit(self, message_id: str, text: str) -> None:
        message = self.messages[int(message_id)]
        mention = f"<@{BOT}> " if message["content"].startswith(f"<@{BOT}> ") else ""
        message |= {"content": mention + text, "edited_timestamp": payloads.now()}
        self.send_event("MESSAGE_UPDATE", message)

    async def delete(self, message_id: str) -> None:
        message = self.messages.pop(int(message_id))
        where = {"channel_id": message["channel_id"], **self._of_guild(int(message["channel_id"]))}
        self.send_event("MESSAGE_DELETE", {"id": message["id"], **where})

    async def react(self, message_id: str, emoji: str, *, author: str = "Mei", is_added: bool = True) -> None:
        """Add or remove a person's reaction; Discord tells sessions with the intent."""
        where = int(self.messages[int(message_id)]["channel_id"])
        person, is_direct = self.person(author), where in self._directs
        event = {"user_id": person["id"], "channel_id": str(where), "message_id": message_id, "type": 0, "burst": False}
        event |= {"emoji": {"id": None, "name": emoji}, **self._of_guild(where)}
        if is_added and not is_direct:
            event["member"] = payloads.member([]) | {"user": person}
        for session in self._sessions.values():
            if session.intents & (DIRECT_REACTIONS if is_direct else REACTIONS):
                self._event(session, f"MESSAGE_REACTION_{'ADD' if is_added else 'REMOVE'}", event)

    def seen(self, channel: str = "general", thread: str | None = None) -> list[Seen]:
        if thread is not None and ("thread", channel, thread) not in self._ids:
            return []
        known = [("channel", channel), ("direct", channel), ("guest", channel)]
        found = next((self._ids[name] for name in known if name in self._ids), None)
        where = self.thread(channel, thread) if thread else found or self.channel(channel)
        return [
            Seen(
                id=message["id"],
                author=message["author"]["username"],
                markdown=message["content"],
                visible=visible_text(message["content"]),
                actions=frozenset(Action(name) for name in action_buttons(message)),
                reply_to=message.get("message_reference", {}).get("message_id"),
            )
            for message in self.messages.values()
            if message["channel_id"] == str(where) and message["content"]
        ]

    async def until(self, condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                # The condition may also depend on the bot, so check it without a change too.
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.02)

    async def __aenter__(self) -> Self:
        app = self.gate.app()
        app.router.add_get("/gateway", self.gateway)
        app.router.add_get("/gateway/", self.gateway)
        app.router.add_route("*", "/api/v10/{path:.*}", self.rest)
        app.router.add_get("/attachments/{path:.*}", self.shelf.hand_out)
        self._runner = web.AppRunner(app, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.set_port(port)
        return self

    def set_port(self, port: int) -> None:
        """Direct the bot to another port, of a proxy for example."""
        self.server_port, self.url = port, f"http://127.0.0.1:{port}"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.unanswered:
            self.violations.append(f"{self.unanswered} interactions without an answer")
        self.closing.set()
        await self.disconnect(resumable=False)
        await self._runner.cleanup()


_IS_ONE: type[LoopbackPlatform] = DiscordPlatform
