"""Requests of a page, and their refusals."""

import json
import re
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from bot.chat.i18n import Language, language_for, translator
from bot.chat.settings import ChatSettings
from bot.util.text import replace_surrogates

# Bytes of a request without files.
LONGEST_BODY = 2**20
# A browser writes half a character so, such as the rest of an emoji that was cut; no file or response can have it.
_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_object(request: Request, most_bytes: int = LONGEST_BODY) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Raises:
        HTTPException: There is none, or it is too long.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most_bytes:
            translate = translator(language_of(request, None))
            raise HTTPException(
                413, translate("This is too long: the limit is {limit} KB.").format(limit=most_bytes >> 10)
            )
    try:
        value = json.loads(body)
    except (RecursionError, ValueError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "the body is not a JSON object")
    if not _LONE_SURROGATE.search(body):
        return value
    clean: dict[str, Any] = json.loads(replace_surrogates(json.dumps(value, ensure_ascii=False)))
    return clean


def locale_of(request: Request) -> str | None:
    """Return the first language that the browser asks for."""
    return request.headers.get("Accept-Language", "").split(",")[0].split(";")[0].strip() or None


def language_of(request: Request, settings: ChatSettings | None) -> Language:
    """Return the language of a page: the operator's setting, else what the browser asks for."""
    setting = "auto" if settings is None else settings.conversation.language
    return language_for(setting, locale_of(request) or "en", "")


async def refuse(request: Request, error: Exception) -> Response:
    """Answer an HTTPException with its sentence."""
    assert isinstance(error, HTTPException)
    return PlainTextResponse(error.detail, error.status_code, error.headers)
