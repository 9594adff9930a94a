"""Discord's messages and interactions as IncomingMessages: which are for the bot, and what they say."""

import re

import discord

from bot.domain import Author, ChannelKey, IncomingMessage

PLATFORM = "discord"

# What has a channel of its own on Discord and is not a person's words: joins, pins, boosts.
_SPOKEN = frozenset({discord.MessageType.default, discord.MessageType.reply})


def key_of(channel: object, channel_id: int) -> ChannelKey:
    """Name a conversation; a thread's is within the channel that it hangs on.

    `channel` is what the library knows of it, if anything.
    """
    if isinstance(channel, discord.Thread):
        return ChannelKey(PLATFORM, str(channel.parent_id), str(channel.id))
    return ChannelKey(PLATFORM, str(channel_id))


def target(channel: ChannelKey) -> int:
    """The id that Discord's API knows the conversation by."""
    return int(channel.thread or channel.channel)


def is_spoken(message: discord.Message) -> bool:
    """Whether a person said it: no bot, no webhook, no event of the server's."""
    return not message.author.bot and message.webhook_id is None and message.type in _SPOKEN


def calls(message: discord.Message, me: discord.ClientUser) -> bool:
    """Whether the bot is called by name, or spoken to alone: Discord shows it the text of such a message."""
    return message.guild is None or any(user.id == me.id for user in message.mentions)


def speaks_to(message: discord.Message, me: discord.ClientUser) -> bool:
    """Whether the bot is meant in a way in which Discord may hide the text from it."""
    replied = _replied_to(message)
    if replied is not None and replied.author.id == me.id:
        return True
    role = message.guild.self_role if message.guild else None
    return role is not None and role.id in message.raw_role_mentions


def incoming(message: discord.Message, me: discord.ClientUser, channel: ChannelKey) -> IncomingMessage:
    replied = _replied_to(message)
    is_quote = replied is not None and replied.author.id != me.id
    return IncomingMessage(
        id=str(message.id),
        channel=channel,
        author=_author(message.author),
        text=_words(message, me),
        sent_at=message.created_at,
        server=str(message.guild.id) if message.guild else None,
        is_direct=message.guild is None,
        quoted=(_words(replied, me) or None) if replied is not None and is_quote else None,
    )


def commanded(interaction: discord.Interaction, name: str, channel: ChannelKey) -> IncomingMessage:
    """The use of a slash command, as if it had been typed."""
    return IncomingMessage(
        id=str(interaction.id),
        channel=channel,
        author=_author(interaction.user),
        text=f"/{name}",
        sent_at=interaction.created_at,
        server=str(interaction.guild_id) if interaction.guild_id else None,
        is_direct=interaction.guild_id is None,
        locale=str(interaction.locale),
    )


def presser(interaction: discord.Interaction) -> Author:
    return _author(interaction.user)


def _author(user: discord.User | discord.Member) -> Author:
    roles = user.roles if isinstance(user, discord.Member) else []
    return Author(PLATFORM, str(user.id), user.display_name, frozenset(str(role.id) for role in roles), bool(user.bot))


def _replied_to(message: discord.Message) -> discord.Message | None:
    resolved = message.reference.resolved if message.reference else None
    return resolved if isinstance(resolved, discord.Message) else None


def _words(message: discord.Message, me: discord.ClientUser) -> str:
    """The text with names where Discord has ids; the bot's own mention is left out."""
    role = message.guild.self_role if message.guild else None
    own = rf"<@!?{me.id}>" if role is None else rf"<@!?{me.id}>|<@&{role.id}>"
    text = re.sub(rf"[ \t]*(?:{own})[ \t]*", " ", message.content)
    names = {f"@{user.id}": f"@{user.display_name}" for user in message.mentions}
    names |= {f"@&{role.id}": f"@{role.name}" for role in message.role_mentions}
    names |= {f"#{channel.id}": f"#{channel.name}" for channel in message.channel_mentions}
    text = re.sub(r"<(@!?|@&|#)(\d+)>", lambda found: _named(found, names), text)
    return re.sub(r"<a?(:\w+:)\d+>", r"\1", text).strip()


def _named(found: re.Match[str], names: dict[str, str]) -> str:
    return names.get(found[1].replace("!", "") + found[2], found[0])
