"""Files of Discord messages: what events tell of them, and their bytes."""

from collections.abc import AsyncIterator

import discord

from bot.adapters.discord.http import proxy_for
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.download import download
from bot.domain import Attachment

# Links to files are signed: no token goes there.
_ORIGINS = ("https://cdn.discordapp.com", "https://media.discordapp.net")


def files_of(message: discord.Message | discord.MessageSnapshot) -> tuple[Attachment, ...]:
    return tuple(
        Attachment(str(each.filename), str(each.content_type or ""), int(each.size), str(each.url), id=str(each.id))
        for each in message.attachments
    )


def has_text_file(message: discord.Message) -> bool:
    """Return whether a file is a text: the client makes one of a long paste."""
    return any(str(each.content_type or "").startswith("text/") for each in message.attachments)


def fetch_file(settings: DiscordSection, file: Attachment) -> AsyncIterator[bytes]:
    """Yield the bytes of a file; errors as those of `download`."""
    return download(file.source, [*_ORIGINS, settings.api_url], proxy=proxy_for(settings, file.source))
