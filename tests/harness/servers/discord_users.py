"""What users do on Discord beside writing: commands, buttons, menus, modals."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from bot.domain import Action
from tests.harness.platform import TIMEOUT
from tests.harness.servers import discord_components as components
from tests.harness.servers import discord_payloads as payloads
from tests.harness.servers.discord_interactions import Interaction
from tests.harness.servers.discord_payloads import Json
from tests.harness.servers.discord_rest import DiscordRest
from tests.harness.servers.discord_world import APPLICATION, BOT

# Where the bot is no member: a channel of a server without it, or a chat between people.
Guest = Literal["server", "chat"]
_ATTACHMENT = 11


class DiscordUsers(DiscordRest):
    """The users of the server, and of places where the bot is no member."""

    def __init__(self) -> None:
        super().__init__()
        self.locales: dict[str, str] = {}
        self.is_late = False  # interactions expire before the bot receives them
        self.omitted: frozenset[str] = frozenset()  # fields that interactions lack
        self.allows_external_apps = True  # else only a person sees the responses to it in servers without the bot
        self.user_permissions = int(payloads.PERMISSIONS)  # of people, in the channels where they use the bot
        self.permissions_here = int(payloads.PERMISSIONS)  # of the bot, as interactions tell them
        self._last_interaction: Json = {}

    async def until(self, condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
        raise NotImplementedError

    async def command(
        self,
        name: str,
        *,
        author: str = "Mei",
        channel: str = "general",
        thread: str | None = None,
        direct: bool = False,
        guest: Guest | None = None,
        files: Sequence[Json] = (),
    ) -> None:
        """Use a slash command; words after its name fill the options with which it is registered.

        As a `guest` the bot is used in a channel of a server without it, or in a chat between people.
        """
        name, _, words = name.partition(" ")
        data = await self._use(name, words)
        if files:
            assert any(each["type"] == _ATTACHMENT for each in self._known(name)["options"]), "it takes no file"
            data["options"].append({"type": _ATTACHMENT, "name": "file", "value": files[0]["id"]})
            data["resolved"] = {"attachments": {each["id"]: each for each in files}}
        where = self._place(author, channel, direct=direct, guest=guest)
        self._interact(2, data, author, where if thread is None else self.thread(channel, thread))

    async def open_menu(
        self, name: str, message_id: str, *, author: str = "Mei", channel: str = "general", guest: Guest | None = None
    ) -> None:
        """Use a command in the menu of a message; in a guest place this is the message's text."""
        await self.until(lambda: any(each["name"] == name for each in self.commands))
        where = self._place(author, channel, direct=False, guest=guest)
        if guest is None:
            message = self.messages[int(message_id)]
            where = int(message["channel_id"])
        else:
            message = payloads.message(self._new_id(), where, self.person("Jo"), message_id)
        target = message["id"]
        resolved = {"messages": {target: message}}
        self._interact(
            2, {"id": "1", "name": name, "type": 3, "target_id": target, "resolved": resolved}, author, where
        )

    def _place(self, author: str, channel: str, *, direct: bool, guest: Guest | None) -> int:
        if guest is not None:
            return self.guest_place(channel, in_server=guest == "server")
        return self.direct(author) if direct else self.channel(channel)

    def _known(self, name: str) -> Json:
        return next(each for each in self.commands if each["name"] == name)

    async def type_option(self, text: str, *, author: str = "Mei", channel: str = "general") -> list[str]:
        """Type a command's last option; return what the bot offers for it."""
        name, _, words = text.partition(" ")
        count = len(self.offered)
        self._interact(4, await self._use(name, words), author, self.channel(channel))
        await self.until(lambda: len(self.offered) > count)
        return self.offered[-1]

    async def _use(self, name: str, words: str) -> Json:
        await self.until(lambda: any(each["name"] == name for each in self.commands))
        options = _filled(self._known(name).get("options", []), words)
        return {"id": "1", "name": name, "type": 1, "options": options}

    async def press(self, message_id: str, action: Action, *, author: str = "Mei") -> None:
        message = self.messages[int(message_id)]
        assert action.value in action_buttons(message), "there is no such button"
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
        (opened_by, modal), origin = self.modals[-1], self._opened[-1]
        more = {} if opened_by is None else {"message": self.messages[opened_by]}
        self._interact(5, components.submitted(modal, values), author, origin.channel, **more)

    def interact(self, kind: int, data: Json, author: str, channel: str, **more: Any) -> None:
        """Send an interaction of any kind."""
        self._interact(kind, data, author, self.channel(channel), **more)

    def interact_in(self, where: int, kind: int, data: Json, author: str, **more: Any) -> None:
        """Send an interaction of any kind from any place."""
        self._interact(kind, data, author, where, **more)

    def _interact(self, kind: int, data: Json, author: str, where: int, **more: Any) -> None:
        id = self._new_id()
        origin = int(more["message"]["id"]) if "message" in more else None
        is_guest = where in self.guest_places
        assert not is_guest or 1 in self.installs, "a user cannot install the application"
        known = Interaction(where, kind, origin, self.seconds_passed, is_guest, self.is_late, self.is_late)
        self._interactions[f"token-{id}"] = known
        person, server = self.person(author), self._of_guild(where).get("guild_id")
        may = str(self.user_permissions & ~(0 if self.allows_external_apps else payloads.USE_EXTERNAL_APPS))
        member = {**payloads.member([]), "permissions": may, "user": person}
        known.is_private = is_guest and server is not None and not self.allows_external_apps
        who = {"member": member} if server else {"user": person}
        owners = {"1": person["id"]} if is_guest else {"0": server or "0"}
        more |= {"channel": self._channel(where), "channel_id": str(where), "locale": self.locales.get(author, "en-US")}
        more |= {"context": 0 if server else 2 if is_guest else 1, "authorizing_integration_owners": owners}
        more |= {"app_permissions": str(self.permissions_here)}
        event = payloads.interaction(id, APPLICATION, kind, f"token-{id}", data, **who, **more)
        event = {name: value for name, value in event.items() if name not in self.omitted}
        self._last_interaction = event | self._of_guild(where)
        self.repeat_press()

    def repeat_press(self) -> None:
        """Send the last interaction again, as after a RESUME."""
        self.send_event("INTERACTION_CREATE", self._last_interaction)


def _filled(options: list[Json], words: str) -> list[Json]:
    """Return options as an interaction has them, from the words that were typed."""
    first, _, rest = words.partition(" ")
    for option in options:
        if option["type"] == 1 and option["name"] == first:
            return [{"type": 1, "name": first, "options": _filled(option["options"], rest)}]
        if option["type"] == 3 and words:
            assert len(words) <= option.get("max_length", 6000), "more than can be typed"
            assert words in [each["value"] for each in option.get("choices", [{"value": words}])], words
            return [{"type": 3, "name": option["name"], "value": words}]
    assert not words, f"there is no option for {words!r}"
    assert all(option["type"] != 1 for option in options), "a command with subcommands cannot be used without one"
    return []


def action_buttons(message: Json) -> list[str]:
    """Return the actions of the buttons below a message of the bot."""
    if message["author"]["id"] != str(BOT):
        return []
    return [name for name in components.buttons(message) if name in list(Action)]
