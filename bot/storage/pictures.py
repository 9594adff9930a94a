"""Convert pictures of questions to encrypted columns and back.

They stand apart from the files that they are of: most queries need no pictures.  A column has one picture for each
file with `is_picture`, in their order; those of a quoted message are in a column of their own, which goes with the quotation.
"""

import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy import select

from bot.domain import Attachment, Exchange, IncomingMessage, Picture
from bot.storage.encryption import DamagedRow
from bot.storage.schema import exchanges
from bot.storage.vault import WriteTransaction

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Columns that are read where pictures are needed.
PICTURES = exchanges.c.pictures, exchanges.c.quoted_pictures
# With the numbers of their keys.
PICTURES_AND_KEYS = *PICTURES, exchanges.c.question_key, exchanges.c.quotation_key


def pictures_to_json(files: Iterable[Attachment], *, is_quoted: bool) -> str | None:
    """Return the column with the pictures of the message itself, or of the one that it quotes."""
    pictures = [file.picture for file in files if file.is_picture and file.is_quoted == is_quoted]
    return json.dumps([each and _to_json(each) for each in pictures]) if any(pictures) else None


def with_pictures(message: IncomingMessage, row: Mapping[str, Any]) -> IncomingMessage:
    """Return the message with the pictures of a decrypted row, as far as they are there."""
    pictures = {name: iter(to_pictures(row[column.name])) for name, column in zip((False, True), PICTURES, strict=True)}
    files = (
        replace(file, picture=next(pictures[file.is_quoted], None)) if file.is_picture else file
        for file in message.files
    )
    return replace(message, files=tuple(files))


async def keep_pictures(tx: WriteTransaction, before: Exchange, files: Iterable[Attachment]) -> tuple[Attachment, ...]:
    """Return the files of an edited message with the pictures that they had before."""
    rows = (await tx.execute(select(*PICTURES_AND_KEYS).where(exchanges.c.id == before.id))).all()
    known: dict[Attachment, list[Picture | None]] = {}  # several for files of one name and size without ids
    for row in await tx.decrypt(exchanges, rows):
        if not isinstance(row, DamagedRow):
            loaded = with_pictures(before.message, row).files
            for file, each in zip(before.message.files, loaded, strict=True):
                known.setdefault(file, []).append(each.picture)
    return tuple(
        replace(file, picture=known[file].pop(0) if known.get(file) else None) if file.is_picture else file
        for file in files
    )


def _to_json(picture: Picture) -> list[object]:
    content = binascii.b2a_base64(picture.data, newline=False).decode()
    return [picture.media_type, content, picture.width, picture.height]


def to_pictures(text: str | None) -> list[Picture | None]:
    try:
        return [each and _to_picture(*each) for each in json.loads(text or "[]")]
    except (RecursionError, TypeError, ValueError):
        log.warning("pictures of an exchange cannot be read")  # another program has written them
        return []


def _to_picture(media_type: object, content: str, width: object, height: object) -> Picture:
    if not (isinstance(media_type, str) and type(width) is int and type(height) is int):
        raise ValueError("no picture")
    return Picture(media_type, binascii.a2b_base64(content), width, height)
