"""Discord messages and interactions as IncomingMessages."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import discord
import structlog
from discord.state import ConnectionState

from bot.adapters.discord.commands import command_text
from bot.adapters.discord.files import files_of, has_text_file
from bot.adapters.discord.guests import InteractionToken, guest_key, is_guest, is_in_guest_place, only_reader
from bot.adapters.discord.text import plain_text
from bot.adapters.malformed import PARSE_ERRORS, bounded, describe_error
from bot.adapters.quotation import NO_QUOTATION, Quotation
from bot.domain import Author, ChannelKey, IncomingMessage

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PLATFORM = "discord"
# Characters of a message that people send, most of them; of a longer paste the app makes a file.
LONGEST_TEXT = 2000

_ID = re.compile(r"[0-9]{1,20}")

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
# Without these the library's message lacks the attribute.
_LISTS: Mapping[str, Any] = {"mentions": [], "mention_roles": [], "components": []}
_USER: Mapping[str, Any] = {"username": "", "discriminator": "0", "avatar": None}
_BARE_SNAPSHOT = {"type": 0, "embeds": [], "attachments": [], "timestamp": None, "edited_timestamp": None}
_INTERACTION_FIELDS = ["id", "application_id", "type", "token", "data", "guild_id", "member", "user", "locale"]
_THREAD_TYPES = frozenset(kind.value for kind in discord.ChannelType if "thread" in kind.name)

# The other types are system messages: joins, pins, boosts.
_USER_MESSAGES = frozenset({discord.MessageType.default, discord.MessageType.reply})


def channel_key(channel: object, channel_id: int) -> ChannelKey:
    """Return the conversation's key; `channel` is the library's object, or None if it is not cached."""
    if isinstance(channel, discord.Thread):
        return ChannelKey(PLATFORM, str(channel.parent_id), str(channel.id))
    return ChannelKey(PLATFORM, str(channel_id))


def described_channel(channel: Mapping[str, Any], channel_id: int) -> ChannelKey:
    """Return the conversation's key, from the API's description of the channel.

    Raises:
        One of PARSE_ERRORS: It is something else.
    """
    if channel["type"] in _THREAD_TYPES:
        return ChannelKey(PLATFORM, str(int(channel["parent_id"])), str(channel_id))
    return ChannelKey(PLATFORM, str(channel_id))


def has_ids(channel: ChannelKey, message_id: str) -> bool:
    """Return whether these are ids of Discord's; those of a damaged row may be anything."""
    return all(_ID.fullmatch(id) is not None for id in (channel.thread or channel.channel, message_id))


def channel_id(channel: ChannelKey) -> int:
    """Return the API's id of the conversation: a thread is a channel there."""
    return int(channel.thread or channel.channel)


def is_user_message(message: discord.Message) -> bool:
    """Return whether a person wrote it, rather than a bot, a webhook or the system."""
    return not message.author.bot and message.webhook_id is None and message.type in _USER_MESSAGES


def is_direct_or_mention(message: discord.Message, me: discord.ClientUser) -> bool:
    """Return whether it is a direct message or mentions the bot: their text needs no intent."""
    return server_id(message) is None or any(user.id == me.id for user in message.mentions)


def is_reply_or_role_mention(message: discord.Message, me: discord.ClientUser) -> bool:
    """Return whether it replies to the bot or mentions its role: their text may need the intent."""
    replied = replied_to(message)
    return (replied is not None and replied.author.id == me.id) or mentions_role(message)


def mentions_role(message: discord.Message) -> bool:
    """Return whether it mentions the bot's own role."""
    role = message.guild.self_role if message.guild else None
    return role is not None and role.id in message.raw_role_mentions


def is_for_another(message: discord.Message) -> bool:
    """Return whether a message in a thread has no words, or mentions or replies to another person than the bot.

    Applies to messages that neither mention the bot nor reply to it.
    """
    is_empty = not (message.content.strip() or message.message_snapshots or message.poll or has_text_file(message))
    return is_empty or points_at_another(message)


def points_at_another(message: discord.Message) -> bool:
    """Return whether a message that neither mentions the bot nor replies to it does so with another person."""
    is_reply = message.type is discord.MessageType.reply
    return is_reply or bool(message.mentions or message.raw_role_mentions or message.mention_everyone)


def parse_message(
    message: discord.Message, me: discord.ClientUser, channel: ChannelKey, quotation: Quotation = NO_QUOTATION
) -> IncomingMessage:
    server = server_id(message)
    return IncomingMessage(
        id=str(message.id),
        channel=channel,
        author=parse_user(message.author),
        text=readable_text(message.content, message, me),
        sent_at=message.created_at,
        server=str(server) if server else None,
        is_direct=server is None,
        quoted=quotation.text or None,
        quoted_id=quotation.id,
        quotes_bot=quotation.is_bots,
        files=(*files_of(message), *quotation.files),
        is_forward=bool(message.message_snapshots),
        is_addressed=is_direct_or_mention(message, me) or is_reply_or_role_mention(message, me),
    )


def readable_text(content: str, message: discord.Message, me: discord.ClientUser) -> str:
    """Return a text of the message with names instead of ids, without mentions of the bot."""
    role = message.guild.self_role if message.guild else None
    own = [f"<@{me.id}>", f"<@!{me.id}>", *([f"<@&{role.id}>"] if role else [])]
    return plain_text(bounded(content), {user.id: user.display_name for user in message.mentions}, message.guild, own)


def server_id(message: discord.Message) -> int | None:
    """Return the server's id, also where the library does not know the server; None in a direct chat."""
    return message.guild.id if message.guild else getattr(message.channel, "guild_id", None)


def without_unreadable(data: Mapping[str, Any], build: Callable[[Any], T]) -> T:
    """Build a message; without a part of it if the library cannot read that part.

    Raises:
        One of PARSE_ERRORS: It cannot be read without these parts either.
    """
    data = {**_LISTS, **data, **_people(data)}
    try:
        return build(data)
    except PARSE_ERRORS as error:
        for part in _OPTIONAL:
            if part in data:
                rest = {name: value for name, value in data.items() if name != part}
                for reduced in (*_reduced(part, data[part]), {}):
                    with suppress(*PARSE_ERRORS):
                        built = build({**rest, **reduced})
                        log.warning("part of a message skipped", part=part, **describe_error(error))
                        return built
        fields = {name: data[name] for name in _FIELDS if name in data}
        try:
            built = build(fields)
        except PARSE_ERRORS:  # a member or a role
            built = build({name: value for name, value in fields.items() if name != "member"} | {"mention_roles": []})
        log.warning("parts of a message skipped", **describe_error(error))
        return built


def _people(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the author and the mentioned users with the fields that the library needs.

    Of users after one that it cannot read it loses the mention without an error.
    """
    author, mentions = data.get("author"), data.get("mentions")
    people: dict[str, Any] = {}
    if isinstance(author, Mapping):
        people["author"] = {**_USER, **author}
    if isinstance(mentions, list):
        users = (each for each in mentions if isinstance(each, Mapping) and str(each.get("id")).isdecimal())
        people["mentions"] = [{**_USER, **each} for each in users]
        for user in people["mentions"]:
            if not isinstance(_fields(user, "member").get("roles"), list):
                user.pop("member", None)
    return people


def _reduced(part: str, value: Any) -> Iterator[dict[str, Any]]:
    """Yield a message that is pointed at with its text alone."""
    with suppress(*PARSE_ERRORS):
        if part == "referenced_message":
            yield {part: {**_LISTS, **{name: value[name] for name in _FIELDS if name in value}}}
        if part == "message_snapshots":
            yield {part: [{"message": {**_BARE_SNAPSHOT, "content": each["message"]["content"]}} for each in value]}


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
        if cached is not None or not interaction.guild_id:
            key = channel_key(cached, channel_id)
        elif "type" in channel:
            key = described_channel(channel, channel_id)
        in_thread = isinstance(cached, discord.Thread) or channel.get("type") in _THREAD_TYPES
        if is_in_guest_place(data, state, in_thread=in_thread):
            key = guest_key(key or ChannelKey(PLATFORM, str(channel_id)), only_reader(data))
    return Use(interaction, channel_id, key, int(message["id"]) if message.get("id") else None)


def _fields(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, Mapping) else {}


def parse_command(interaction: discord.Interaction, channel: ChannelKey) -> IncomingMessage:
    """Return a slash command as the message that has the same effect."""
    is_by_guest = is_guest(channel)
    token = InteractionToken(interaction.token, str(interaction.id))
    return IncomingMessage(
        id=str(interaction.id),
        channel=channel,
        author=parse_user(interaction.user),
        text=command_text(interaction.data or {}),
        sent_at=interaction.created_at,
        server=str(interaction.guild_id) if interaction.guild_id else None,
        is_direct=interaction.guild_id is None and not is_by_guest,
        locale=str(interaction.locale),
        reply_address=token.address if is_by_guest else None,
    )


def parse_user(user: discord.User | discord.Member) -> Author:
    roles: frozenset[str] = frozenset()
    if isinstance(user, discord.Member):
        # Of a server where the bot is no member the library knows no roles.
        roles = frozenset(map(str, [user.guild.id, *user._roles]))
    return Author(PLATFORM, str(user.id), str(user.display_name), roles, bool(user.bot))


def replied_to(message: discord.Message) -> discord.Message | None:
    """Return the message that it replies to, if the event contains it."""
    resolved = message.reference.resolved if message.reference else None
    return resolved if isinstance(resolved, discord.Message) else None
