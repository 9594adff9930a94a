"""Files of Telegram messages: what updates tell of them, and their bytes."""

from collections.abc import AsyncIterator

from telegram import Bot

from bot.adapters.download import download
from bot.adapters.proxy import find_proxy
from bot.adapters.telegram.client import map_errors
from bot.adapters.telegram.fields import Fields
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.reading.fault import Unreadable
from bot.domain import Attachment
from bot.errors import PlatformError, PlatformUnavailable, RateLimited

# Kinds of files with the type of those that name none.  An animation comes as a document too.
_KINDS = {
    "animation": "video/mp4",
    "audio": "audio/mpeg",
    "voice": "audio/ogg",
    "video": "video/mp4",
    "video_note": "video/mp4",
    "document": "",
}


def files_of(message: Fields) -> tuple[Attachment, ...]:
    """Return the file of a message: it has one at most."""
    for kind, media_type in _KINDS.items():
        if (file := message.part(kind)) is not None:
            name = file.text("file_name") or kind.replace("_", " ")
            return (_attachment(file, name, file.text("mime_type") or media_type),)
    sizes = message.parts("photo")
    return (_attachment(sizes[-1], "photo.jpg", "image/jpeg"),) if sizes else ()


def _attachment(file: Fields, name: str, media_type: str) -> Attachment:
    source, id = file.text("file_id") or "", file.text("file_unique_id") or ""
    return Attachment(name, media_type, file.number("file_size") or 0, source, id=id)


async def fetch_file(bot: Bot, settings: TelegramSection, file: Attachment) -> AsyncIterator[bytes]:
    """Yield the bytes of a file; errors as those of `download`."""
    try:
        with map_errors():
            found = await bot.get_file(file.source)
    except (PlatformUnavailable, RateLimited):
        raise
    except PlatformError as error:  # too big for bots, or gone
        raise Unreadable("missing") from error
    url = found.file_path or ""
    proxy = find_proxy("telegram", settings.proxy.get_secret_value(), settings.api_url)
    async for chunk in download(url, [settings.api_url], proxy=proxy):
        yield chunk
