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
from tests.harness.servers import discord_components as components
from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord_gateway import TOKEN
from tests.harness.servers.discord_payloads import Json
from tests.harness.servers.discord_rest import DiscordRest, Interaction
from tests.harness.servers.discord_world import APPLICATION, BOT
from tests.harness.servers.fault_gate import FaultGate
from tests.harness.servers.file_shelf import FileShelf


class DiscordPlatform(DiscordRest):
    """A LoopbackPlatform with more settings."""

    name = "discord"

    def __init__(self) -> None:
        super().__init__()
        self.gate = FaultGate()
        self.shelf = FileShelf()
        self.server_port = 0
        self.call_seconds = 20.0  # timeout of the bot's calls
        self.cut_off_seconds = 60.0  # the bot starts a new session after an outage of this length
        self.locales: dict[str, str] = {}
        self.is_late = False  # interactions expire before the bot receives them
        self._last_interaction: Json = {}
        self.omitted: frozenset[str] = frozenset()  # fields that interactions lack

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

    async def command(self, name: str, *, author: str = "Mei", channel: str = "general", direct: bool = False) -> None:
        """Use a slash command; words after its name fill the options with which it is registered."""
        name, _, words = name.partition(" ")
        where = self.direct(author) if direct else self.channel(channel)
        self._interact(2, await self._use(name, words), author, where)

    async def type_option(self, text: str, *, author: str = "Mei", channel: str = "general") -> list[str]:
        """Type a command's last option; return what the bot offers for it."""
        name, _, words = text.partition(" ")
        count = len(self.offered)
        self._interact(4, await self._use(name, words), author, self.channel(channel))
        await self.until(lambda: len(self.offered) > count)
        return self.offered[-1]

    async def _use(self, name: str, words: str) -> Json:
        await self.until(lambda: any(each["name"] == name for each in self.commands))
        known = next(each for each in self.commands if each["name"] == name)
        return {"id": "1", "name": name, "type": 1, "options": _filled(known.get("options", []), words)}

    async def press(self, message_id: str, action: Action, *, author: str = "Mei") -> None:
        message = self.messages[int(message_id)]
        assert action.value in _buttons(message), "there is no such button"
        data = {"custom_id": action.value, "component_type": 2}
        self._interact(3, data, author, int(message["channel_id"]), message=message)

    async def choose(self, message_id: str, menu: str, value: str, *, author: str = "Mei") -> None:
        """Choose a value of a menu below one of the bot's messages."""
        message = self.messages[int(message_id)]
        data = components.selected(message, menu, value)
        self._interact(3, data, author, int(message["channel_id"]), message=message)

    async def click(self, message_id: str, button: str, *, author: str = "Mei") -> None:
        """Press a button that is no action."""
        message = self.messages[int(message_id)]
        assert button in components.buttons(message), f"there is no button {button}"
        data = {"custom_id": button, "component_type": 2}
        self._interact(3, data, author, int(message["channel_id"]), message=message)

    async def submit(self, values: dict[str, str], *, author: str = "Mei") -> None:
        """Submit the modal that was shown last, with these values in place of those that it has."""
        opened_by, modal = self.modals[-1]
        assert opened_by is not None, "a modal of a command"
        message = self.messages[opened_by]
        self._interact(5, components.submitted(modal, values), author, int(message["channel_id"]), message=message)

    def interact(self, kind: int, data: Json, author: str, channel: str, **more: Any) -> None:
        """Send an interaction of any kind."""
        self._interact(kind, data, author, self.channel(channel), **more)

    def _interact(self, kind: int, data: Json, author: str, where: int, **more: Any) -> None:
        id = self._new_id()
        origin = int(more["message"]["id"]) if "message" in more else None
        known = Interaction(where, kind, origin, is_answered=self.is_late, is_expired=self.is_late)
        self._interactions[f"token-{id}"] = known
        person = self.person(author)
        who = {"user": person} if where in self._directs else {"member": {**payloads.member([]), "user": person}}
        more |= {"channel": self._channel(where), "channel_id": str(where), "locale": self.locales.get(author, "en-US")}
        event = payloads.interaction(id, APPLICATION, kind, f"token-{id}", data, **who, **more)
        event = {name: value for name, value in event.items() if name not in self.omitted}
        self._last_interaction = event | self._of_guild(where)
        self.repeat_press()

    def repeat_press(self) -> None:
        """Send the last interaction again, as after a RESUME."""
        self.send_event("INTERACTION_CREATE", self._last_interaction)

    def seen(self, channel: str = "general", thread: str | None = None) -> list[Seen]:
        if thread is not None and ("thread", channel, thread) not in self._ids:
            return []
        is_direct = thread is None and ("direct", channel) in self._ids and ("channel", channel) not in self._ids
        where = self.direct(channel) if is_direct else self.thread(channel, thread) if thread else self.channel(channel)
        return [
            Seen(
                id=message["id"],
                author=message["author"]["username"],
                markdown=message["content"],
                visible=visible_text(message["content"]),
                actions=frozenset(Action(name) for name in _buttons(message)),
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


def _filled(options: list[Json], words: str) -> list[Json]:
    """Return options as an interaction has them, from the words that were typed."""
    first, _, rest = words.partition(" ")
    for option in options:
        if option["type"] == 1 and option["name"] == first:
            return [{"type": 1, "name": first, "options": _filled(option["options"], rest)}]
        if option["type"] == 3 and words:
            assert words in [each["value"] for each in option.get("choices", [{"value": words}])], words
            return [{"type": 3, "name": option["name"], "value": words}]
    assert not words, f"there is no option for {words!r}"
    assert all(option["type"] != 1 for option in options), "a command with subcommands cannot be used without one"
    return []


def _buttons(message: Json) -> list[str]:
    if message["author"]["id"] != str(BOT):
        return []
    return [name for name in components.buttons(message) if name in list(Action)]


_IS_ONE: type[LoopbackPlatform] = DiscordPlatform
