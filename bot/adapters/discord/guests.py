"""Guest places: where the bot is no member, and can only reply with the token of an interaction.

A guest place has a conversation of its own, apart from that of the same channel once the bot is a member there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import discord
from discord.state import ConnectionState

from bot.domain import ChannelKey, IncomingMessage

# The thread of a guest place ends so; other threads have numbers.
_GUEST = "guest"
# A private chat between people, of two or more; the bot's own chats and servers have other contexts.
_PRIVATE_CHANNEL = 2
# What `reply_address` says of a question that the response to its interaction shows in the channel.
SHOWN = "shown"
_GUEST_ADDRESS = "token:"


def guest_key(channel: ChannelKey, only_for: str = "") -> ChannelKey:
    """Return the key of a guest place, or of what is `only_for` one person there.

    >>> str(guest_key(ChannelKey("discord", "1"))), str(guest_key(ChannelKey("discord", "1", "2"), "3"))
    ('discord:1:guest', 'discord:1:2-3-guest')
    """
    return replace(channel, thread="-".join(filter(None, [channel.thread, only_for, _GUEST])))


def only_reader(data: Mapping[str, Any]) -> str:
    """Return the id of the person who alone sees the response to an interaction in a guest place, "" if others do.

    Discord shows responses so in a server where the person may not use external applications.

    Raises:
        One of PARSE_ERRORS: It has another form.
    """
    member = data.get("member")
    if not isinstance(member, Mapping) or "permissions" not in member:
        return ""
    may = discord.Permissions(int(member["permissions"])).use_external_apps
    return "" if may else str(int(member["user"]["id"]))


def is_guest(channel: ChannelKey) -> bool:
    return channel.thread is not None and channel.thread.endswith(_GUEST)


def is_in_guest_place(data: Mapping[str, Any], state: ConnectionState[Any], *, in_thread: bool) -> bool:
    """Return whether an interaction comes from where the bot cannot write messages.

    Raises:
        One of PARSE_ERRORS: It has another form.
    """
    server = data.get("guild_id")
    if not server:
        return bool(data.get("context") == _PRIVATE_CHANNEL)
    if state._get_guild(int(server)) is None:
        return True
    if "app_permissions" not in data:
        return False
    may = discord.Permissions(int(data["app_permissions"]))
    writes = may.send_messages_in_threads if in_thread else may.send_messages
    return not (may.administrator or (may.view_channel and writes))


@dataclass(frozen=True, slots=True)
class InteractionToken:
    """What Discord takes calls with for 15 minutes after an interaction.

    Its response is a message of its own, or `pressed`: the message whose button was pressed.

    >>> token = InteractionToken("aW50:ZXI", "175928847299117063", "41771983423143937")
    >>> InteractionToken.at(token.address) == token
    True
    """

    token: str = field(repr=False)
    interaction: str
    pressed: str = ""

    @property
    def address(self) -> str:
        """The reply address of a question that is answered with this token."""
        return f"{_GUEST_ADDRESS}{self.interaction}:{self.pressed}:{self.token}"

    @staticmethod
    def at(address: str) -> "InteractionToken":
        interaction, pressed, token = address.removeprefix(_GUEST_ADDRESS).split(":", 2)
        return InteractionToken(token, interaction, pressed)


def token_of(message: IncomingMessage) -> InteractionToken | None:
    """Return the token that a question of a guest place was stored with."""
    address = message.reply_address or ""
    return InteractionToken.at(address) if address.startswith(_GUEST_ADDRESS) else None
