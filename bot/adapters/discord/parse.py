"""Discord messages and interactions as IncomingMessages."""

import re

import discord

from bot.domain import Author, ChannelKey, IncomingMessage

PLATFORM = "discord"

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
