"""Users, channels and messages of one Discord server."""

import asyncio
import time
from typing import Any

from bot.util.clock import Clock, MonotonicClock
from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord_payloads import Json

# As long as real ids: the library does not find shorter ones in a text.
_FIRST_ID = 100_000_000_000_000_000
BOT, APPLICATION, GUILD, BOT_ROLE, MANAGER_ROLE, OTHER_GUILD = (_FIRST_ID + number for number in range(6))
EPHEMERAL, HAS_THREAD = 64, 1 << 5
_EPOCH = 1420070400000


class DiscordWorld:
    """The state of Discord, without an API.

    `allows_content`: the Message Content intent is enabled.
    """

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.allows_content = True
        self.hides_threads = False  # no THREAD_CREATE events
        self.managers: set[str] = set()  # names of people who may manage channels
        self.channel_managers: dict[str, set[str]] = {}  # those who may manage one channel, by its name
        self.bot_permissions = int(payloads.PERMISSIONS)  # those of the bot's role
        self.locked: set[int] = set()  # threads in which the bot may not write
        self.archived: set[int] = set()  # threads that GUILD_CREATE omits
        self.messages: dict[int, Json] = {}
        self.clock: Clock = MonotonicClock()
        self.changed = asyncio.Event()
        self._ids: dict[tuple[str, ...], int] = {}
        self._threads: dict[int, int] = {}
        self._directs: dict[int, int] = {}  # channel: person
        self.guest_places: dict[int, Json] = {}  # channels where the bot is no member, as interactions describe them
        self._last_id = 0

    def send_event(self, name: str, data: Any) -> None:
        """Send an event to all sessions."""
        raise NotImplementedError

    def person(self, name: str) -> Json:
        return payloads.user(self._id("person", name), name, is_bot=name.endswith("bot"))

    def channel(self, name: str) -> int:
        return self._id("channel", name)

    def thread(self, channel: str, name: str) -> int:
        is_new = ("thread", channel, name) not in self._ids
        id = self._id("thread", channel, name)
        if is_new:
            self._threads[id] = self.channel(channel)
            if not self.hides_threads:
                self.send_event("THREAD_CREATE", self._channel(id))
        return id

    def threads(self, channel: str) -> list[str]:
        """Return the names of a channel's threads."""
        return [name[2] for name in self._ids if name[:2] == ("thread", channel)]

    def make_thread(self, channel: str, name: str, message_id: str) -> None:
        """Make a thread from a message, whose id it takes."""
        id = self._ids["thread", channel, name] = int(message_id)
        self._threads[id] = self.channel(channel)
        self.send_event("THREAD_CREATE", self._channel(id))

    def open_thread(self, channel: int, name: str, message_id: int) -> Json:
        """Make a thread from a message as a bot; one whose name is taken is named by its id too."""
        parent = next(known[-1] for known, id in self._ids.items() if id == channel)
        key = ("thread", parent, name)
        self.make_thread(parent, f"{name} {message_id}" if key in self._ids else name, str(message_id))
        self.messages[message_id]["flags"] |= HAS_THREAD
        self.send_event("MESSAGE_UPDATE", self.messages[message_id])
        return self._channel(message_id)

    def direct(self, name: str) -> int:
        id = self._id("direct", name)
        self._directs[id] = self._id("person", name)
        return id

    def guest_place(self, name: str, *, in_server: bool) -> int:
        """Return a channel of a server without the bot, or a chat between people."""
        id = self._id("guest", name)
        where: Json = {"type": 0, "guild_id": str(OTHER_GUILD)} if in_server else {"type": 3, "recipients": []}
        self.guest_places.setdefault(id, {"id": str(id), "name": name, **where})
        return id

    def member(self, id: int) -> Json:
        """Return a person as a member of the server, with the roles that they have now."""
        name = self.name_of(id)
        return {**payloads.member([MANAGER_ROLE] if name in self.managers else []), "user": self.person(name)}

    def name_of(self, id: int) -> str:
        """Return the name of a person."""
        return next(name[-1] for name, known in self._ids.items() if known == id and name[0] == "person")

    @property
    def bot(self) -> Json:
        return payloads.user(BOT, "bot", is_bot=True)

    def _id(self, *name: str) -> int:
        is_new = name not in self._ids
        id = self._ids.setdefault(name, _FIRST_ID + 100 + len(self._ids))
        if is_new and name[0] == "channel":
            self.send_event("CHANNEL_CREATE", self._channel(id))
        return id

    def _new_id(self) -> int:
        self._last_id = max(self._last_id + 1, (time.time_ns() // 1_000_000 - _EPOCH) << 22)
        return self._last_id

    def _of_guild(self, channel: int) -> Json:
        if channel in self.guest_places:
            place = self.guest_places[channel]
            return {name: place[name] for name in ("guild_id",) if name in place}
        return {} if channel in self._directs else {"guild_id": str(GUILD)}

    def _channel(self, id: int) -> Json:
        last = max((int(each["id"]) for each in self.messages.values() if each["channel_id"] == str(id)), default=None)
        name = next(name[-1] for name, known in self._ids.items() if known == id)
        if id in self.guest_places:
            return self.guest_places[id]
        if id in self._directs:
            return payloads.direct_channel(id, payloads.user(self._directs[id], name))
        if id in self._threads:
            thread = payloads.thread(id, GUILD, self._threads[id], name, BOT, last)
            thread["thread_metadata"]["locked"] = id in self.locked
            return thread
        managers = [self._id("person", each) for each in sorted(self.channel_managers.get(name, ()))]
        return payloads.text_channel(id, GUILD, name, last, managers)

    def _guild(self) -> Json:
        rooms = [id for name, id in self._ids.items() if name[0] == "channel"]
        roles = [
            payloads.role(GUILD, "@everyone", permissions=payloads.MEMBERS),
            payloads.role(BOT_ROLE, "bot", {"bot_id": str(BOT)}, permissions=str(self.bot_permissions)),
            payloads.role(MANAGER_ROLE, "manager", permissions=payloads.MANAGE_CHANNELS),
        ]
        me = {**payloads.member([BOT_ROLE]), "user": self.bot}
        return payloads.guild(
            GUILD,
            "A server",
            [self._channel(id) for id in rooms],
            [self._channel(id) for id in self._threads if id not in self.archived],
            roles,
            me,
        )

    def _keep(self, message: Json) -> None:
        self.messages[int(message["id"])] = message
        self.changed.set()

    def _shown(self, message: Json, reads_all: bool) -> Json:
        """Return a message with the fields that the bot may read."""
        is_mentioned = any(user["id"] == str(BOT) for user in message["mentions"])
        is_own = message["author"]["id"] == str(BOT)
        shown = dict(message)
        if not (reads_all or is_mentioned or is_own or int(message["channel_id"]) in self._directs):
            shown |= {"content": "", "attachments": [], "embeds": [], "components": []}
        if shown.get("referenced_message"):
            shown["referenced_message"] = self._shown(shown["referenced_message"], reads_all)
        return shown

    @property
    def _flags(self) -> int:
        return 1 << 19 if self.allows_content else 0
