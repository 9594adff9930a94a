"""Files of the page: read when they are chosen, and sent with the question as their text, or as a smaller picture."""

import binascii
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from bot.chat.files import MOST_FILES, Files, cleaned, unread_notices
from bot.chat.i18n import Translate
from bot.chat.reading.fault import Unreadable
from bot.chat.reading.limits import MOST_PICTURE_BYTES
from bot.domain import Attachment, FileFault
from bot.util.text import clean

_DATA_URL = "data:image/jpeg;base64,"
# In base64.
LONGEST_PICTURE = MOST_PICTURE_BYTES * 4 // 3 + 100
# Of a question: the most that a model is shown.
_MOST_PICTURES = 4


async def read_upload(request: Request, files: Files, translate: Translate, *, sees: bool) -> dict[str, Any]:
    """Read the body of a request as the file `?name=`.

    Return its text or, if the model `sees`, its picture as a data URL; else a sentence that says why it has neither.
    """
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip()
    length = request.headers.get("Content-Length", "0")
    size = int(length) if length.isdecimal() else 0
    (file,) = cleaned([Attachment(request.query_params.get("name", ""), media_type, size)])
    read = await files.read_upload(file, request.stream(), sees=sees)
    picture = "" if read.picture is None else read.picture.url
    return {
        "notice": " ".join(unread_notices([read], files.most_megabytes, translate)),
        "file": {"name": read.name, "size": read.size, "text": read.text, "picture": picture, "is_cut": read.is_cut},
    }


def files_of(body: dict[str, Any], most_characters: int) -> tuple[Attachment, ...]:
    """Return the files of a question; in an edit one with neither text nor picture is known by its name and size.

    More pictures than are ever shown at once are named, but not kept.

    Raises:
        HTTPException: They are not such a list, or a picture is longer than those that were read.
    """
    listed = body.get("files", [])
    if not isinstance(listed, list) or len(listed) > MOST_FILES:
        raise HTTPException(400, f"files is not a list of at most {MOST_FILES} files")
    return tuple(_without_more([_file(each, most_characters) for each in listed]))


async def fetch_file(file: Attachment) -> AsyncIterator[bytes]:
    """Yield the picture that the page has sent: it is read again, as one of any other program would be."""
    if not file.source.startswith(_DATA_URL):
        raise Unreadable("missing")
    try:
        yield binascii.a2b_base64(file.source.removeprefix(_DATA_URL), strict_mode=True)
    except ValueError as error:
        raise Unreadable("damaged") from error


def _without_more(files: list[Attachment]) -> Iterator[Attachment]:
    pictures = 0
    for file in files:
        pictures += bool(file.source)
        is_more = bool(file.source) and pictures > _MOST_PICTURES
        yield replace(file, source="", fault=FileFault.MANY) if is_more else file


def _file(value: Any, most_characters: int) -> Attachment:
    match value:
        case {"name": str(name), "size": int(size), "text": str(text)}:
            whole = clean(text)
            is_cut = value.get("is_cut") is True or len(whole) > most_characters
            source = picture if isinstance(picture := value.get("picture"), str) else ""
            if len(source) > LONGEST_PICTURE:
                raise HTTPException(413, f"a picture has more than {LONGEST_PICTURE} characters")
            media_type = "image/jpeg" if source else ""
            return Attachment(name, media_type, size, source, whole[:most_characters], is_cut)
        case _:
            raise HTTPException(400, "a file has a name, a size and a text")
