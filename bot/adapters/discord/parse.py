"""Discord messages and interactions as IncomingMessages."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import discord
import structlog
from discord.state import ConnectionState

from bot.adapters.malformed import PARSE_ERRORS, describe_error
from bot.domain import Author, ChannelKey, IncomingMessage

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PLATFORM = "discord"

# The fields of a message that are needed, and the others that the library reads.
_FIELDS = [
    "id",
    "channel_id",
    "guild_id",
    "author",
    "member",
    "content",
    "timestamp",
    "edited_timestamp",
    "type",
    "mentions",
    "mention_roles",
    "webhook_id",
]
_OPTIONAL = [
    "referenced_message",
    "message_snapshots",
    "message_reference",
    "poll",
    "embeds",
    "attachments",
    "components",
    "sticker_items",
    "reactions",
    "flags",
    "thread",
    "interaction",
    "interaction_metadata",
    "call",
    "application",
    "role_subscription_data",
    "purchase_notification",
]
_INTERACTION_FIELDS = ["id", "application_id", "type", "token", "data", "guild_id", "member", "user", "locale"]
_THREAD_TYPES = frozenset(kind.value for kind in discord.ChannelType if "thread" in kind.name)

# The other types are system messages: joins, pins, boosts.
_USER_MESSAGES = frozenset({discord.MessageType.default, discord.MessageType.reply})


def channel_key(channel: object, channel_id: int) -> ChannelKey:
    """Return the conversation's key; `channel` is the library's object, or None if it is not cached."""
    if isinstance(channel, discord.Thread):
        return ChannelKey(PLATFORM, str(channel.parent_id), str(channel.id))
    return ChannelKey(PLATFORM, str(channel_id))


def channel_id(channel: ChannelKey) -> int:
    """Return the API's id of the conversation: a thread is a channel there."""
    return int(channel.thread or channel.channel)


def is_user_message(message: discord.Message) -> bool:
    """Return whether a person wrote it, rather than a bot, a webhook or the system."""
    return not message.author.bot and message.webhook_id is None and message.type in _USER_MESSAGES


def is_direct_or_mention(message: discord.Message, me: discord.ClientUser) -> bool:
    """Return whether it is a direct message or mentions the bot: their text needs no intent."""
    return message.guild is None or any(user.id == me.id for user in message.mentions)


def is_reply_or_role_mention(message: discord.Message, me: discord.ClientUser) -> bool:
    """Return whether it replies to the bot or mentions its role: their text may need the intent."""
    replied = _replied_to(message)
    if replied is not None and replied.author.id == me.id:
        return True
    role = message.guild.self_role if message.guild else None
    return role is not None and role.id in message.raw_role_mentions


def parse_message(message: discord.Message, me: discord.ClientUser, channel: ChannelKey) -> IncomingMessage:
    replied = _replied_to(message)
    is_quote = replied is not None and replied.author.id != me.id
    return IncomingMessage(
        id=str(message.id),
        channel=channel,
        author=parse_user(message.author),
        text=_text(message, me),
        sent_at=message.created_at,
        server=str(message.guild.id) if message.guild else None,
        is_direct=message.guild is None,
        quoted=(_text(replied, me) or None) if replied is not None and is_quote else None,
    )


def without_unreadable(data: Mapping[str, Any], build: Callable[[Any], T]) -> T:
    """Build a message; without a part of it if the library cannot read that part.

    Raises:
        One of PARSE_ERRORS: It cannot be read without these parts either.
    """
    try:
        return build(data)
    except PARSE_ERRORS as error:
        for part in _OPTIONAL:
            with suppress(*PARSE_ERRORS):
                if part in data:
                    built = build({name: value for name, value in data.items() if name != part})
                    log.warning("part of a message skipped", part=part, **describe_error(error))
                    return built
        built = build({name: data[name] for name in _FIELDS if name in data})
        log.warning("parts of a message skipped", **describe_error(error))
        return built


@dataclass(frozen=True, slots=True)
class Use:
    """The use of a slash command or button; `channel` is None if its channel may be a thread or is unknown."""

    interaction: discord.Interaction
    channel_id: int | None
    channel: ChannelKey | None
    message_id: int | None


def parse_interaction(data: Mapping[str, Any], state: ConnectionState[Any]) -> Use:
    """Read the needed fields of an interaction; the library fails where others are missing.

    Raises:
        One of PARSE_ERRORS: A needed one is missing.
    """
    fields: dict[str, Any] = {"version": 1, "attachment_size_limit": 0}
    fields |= {name: data[name] for name in _INTERACTION_FIELDS if name in data}
    interaction = discord.Interaction[Any](data=fields, state=state)  # type: ignore[arg-type]  # as it came
    channel, message = _fields(data, "channel"), _fields(data, "message")
    id = channel.get("id") or data.get("channel_id") or message.get("channel_id")
    channel_id = int(id) if id else None
    key = None
    if channel_id is not None:
        cached = interaction.guild and interaction.guild.get_channel_or_thread(channel_id)
        if channel.get("type") in _THREAD_TYPES and channel.get("parent_id"):
            key = ChannelKey(PLATFORM, str(int(channel["parent_id"])), str(channel_id))
        elif cached is not None or "type" in channel or not interaction.guild_id:
            key = channel_key(cached, channel_id)
    return Use(interaction, channel_id, key, int(message["id"]) if message.get("id") else None)


def _fields(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, Mapping) else {}


def parse_command(interaction: discord.Interaction, name: str, channel: ChannelKey) -> IncomingMessage:
    """Return a slash command as the message that has the same effect."""
    return IncomingMessage(
        id=str(interaction.id),
        channel=channel,
        author=parse_user(interaction.user),
        text=f"/{name}",
        sent_at=interaction.created_at,
        server=str(interaction.guild_id) if interaction.guild_id else None,
        is_direct=interaction.guild_id is None,
        locale=str(interaction.locale),
    )


def parse_user(user: discord.User | discord.Member) -> Author:
    roles = user.roles if isinstance(user, discord.Member) else []
    return Author(PLATFORM, str(user.id), user.display_name, frozenset(str(role.id) for role in roles), bool(user.bot))


def _replied_to(message: discord.Message) -> discord.Message | None:
    resolved = message.reference.resolved if message.reference else None
    return resolved if isinstance(resolved, discord.Message) else None


def _text(message: discord.Message, me: discord.ClientUser) -> str:
    """Return the text with names instead of ids, without the mention of the bot."""
    role = message.guild.self_role if message.guild else None
    own = rf"<@!?{me.id}>" if role is None else rf"<@!?{me.id}>|<@&{role.id}>"
    text = re.sub(rf"[ \t]*(?:{own})[ \t]*", " ", message.content)
    names = {f"@{user.id}": f"@{user.display_name}" for user in message.mentions}
    names |= {f"@&{role.id}": f"@{role.name}" for role in message.role_mentions}
    names |= {f"#{channel.id}": f"#{channel.name}" for channel in message.channel_mentions}
    text = re.sub(r"<(@!?|@&|#)(\d+)>", lambda found: _name(found, names), text)
    return re.sub(r"<a?(:\w+:)\d+>", r"\1", text).strip()


def _name(found: re.Match[str], names: dict[str, str]) -> str:
    return names.get(found[1].replace("!", "") + found[2], found[0])
