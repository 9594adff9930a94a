"""Answers of Discord's API."""

import json

from aiohttp import web


def json_answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return an answer of the API."""
    # The library parses JSON only with exactly this content type.
    return web.Response(
        body=json.dumps(value).encode(), status=status, headers=headers, content_type="application/json"
    )


def error(status: int, code: int, message: str) -> web.Response:
    return json_answer({"message": message, "code": code}, status)
