"""The content of a message in OpenAI's form: a string, or parts with text and pictures."""

import binascii
import re
from collections.abc import Mapping
from typing import Any

from bot.domain import Picture
from bot.server.errors import bad_request
from bot.server.requests import text

_DATA_URL = re.compile(r"data:(image/(?:png|jpeg|webp|gif));base64,(.*)", re.DOTALL)
# Sides in pixels that stand for those of any picture, which the model's server decodes: for its tokens.
_SIDE = 1024


def read_content(content: object, place: str, most_pictures: int) -> tuple[str, tuple[Picture, ...]]:
    """Return the text and the pictures of a content; the parts of a text are its lines.

    Raises:
        ApiError: It is no such content, or has pictures and `most_pictures` is 0.
    """
    if isinstance(content, list):
        parts = [_part(part, f"{place}[{number}]", most_pictures) for number, part in enumerate(content)]
        pictures = tuple(part for part in parts if isinstance(part, Picture))
        return "\n".join(part for part in parts if isinstance(part, str)), pictures
    if not isinstance(content, str):
        raise bad_request(f"{place} is missing or not a string", "messages")
    return content, ()


def _part(part: object, place: str, most_pictures: int) -> str | Picture:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind == "text":
        return text(part, "text")
    if isinstance(part, dict) and kind == "image_url" and most_pictures:
        return _picture(part, place)
    what = "text and image_url" if most_pictures else "text"
    raise bad_request(f"{place} has a part of type {kind!r}; this model reads {what} only", "messages")


def _picture(part: Mapping[str, Any], place: str) -> Picture:
    address = part.get("image_url")
    url = address.get("url") if isinstance(address, dict) else address
    found = _DATA_URL.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        # No address is fetched for a client.
        raise bad_request(f"{place}.image_url.url is no data URL of a PNG, JPEG, WebP or GIF in base64", "messages")
    try:
        data = binascii.a2b_base64(found[2], strict_mode=True)
    except ValueError:
        raise bad_request(f"{place}.image_url.url is not base64", "messages") from None
    return Picture(found[1], data, _SIDE, _SIDE)
