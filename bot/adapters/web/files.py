"""Files of the page: read when they are chosen, and sent with the question as their text."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from bot.chat.files import MOST_FILES, Files, cleaned, unread_notices
from bot.chat.i18n import Translate
from bot.domain import Attachment
from bot.util.text import clean


async def read_upload(request: Request, files: Files, translate: Translate) -> dict[str, Any]:
    """Read the body of a request as the file `?name=`; return its text, or a sentence that says why it has none."""
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip()
    length = request.headers.get("Content-Length", "0")
    size = int(length) if length.isdecimal() else 0
    (file,) = cleaned([Attachment(request.query_params.get("name", ""), media_type, size)])
    read = await files.read_upload(file, request.stream())
    return {
        "notice": " ".join(unread_notices([read], files.most_megabytes, translate)),
        "file": {"name": read.name, "size": read.size, "text": read.text, "is_cut": read.is_cut},
    }


def files_of(body: dict[str, Any], most_characters: int) -> tuple[Attachment, ...]:
    """Return the files of a question; in an edit one without text is known by its name and size.

    Raises:
        HTTPException: They are not such a list.
    """
    listed = body.get("files", [])
    if not isinstance(listed, list) or len(listed) > MOST_FILES:
        raise HTTPException(400, f"files is not a list of at most {MOST_FILES} files")
    return tuple(_file(each, most_characters) for each in listed)


def _file(value: Any, most_characters: int) -> Attachment:
    match value:
        case {"name": str(name), "size": int(size), "text": str(text)}:
            whole = clean(text)
            is_cut = value.get("is_cut") is True or len(whole) > most_characters
            return Attachment(name, size=size, text=whole[:most_characters], is_cut=is_cut)
        case _:
            raise HTTPException(400, "a file has a name, a size and a text")
