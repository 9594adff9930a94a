"""HTTP responses written byte by byte, for answers that no server library sends."""

import asyncio
import socket
import struct
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Literal

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

# What becomes of the connection: "open" answers the next request, "silent" answers none.
End = Literal["open", "close", "reset", "silent"]

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s; closing then resets
_LOOK_SECONDS = 0.02


class RawAnswer(web.Response):
    """Bytes in place of a response, with `pause` seconds after each piece."""

    def __init__(self, pieces: Iterable[bytes], end: End = "open", pause: float = 0.0) -> None:
        super().__init__()
        self._pieces = pieces
        self._end = end
        self._pause = pause

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        for piece in self._pieces:
            if not _is_open(request):
                return None
            assert request.transport is not None
            request.transport.write(piece)
            if self._pause:
                await asyncio.sleep(self._pause)
        transport = request.transport
        if transport is None or self._end == "open":
            return None
        if self._end == "silent":
            while _is_open(request):  # noqa: ASYNC110 - a request has no event for its client's end
                await asyncio.sleep(_LOOK_SECONDS)
        elif self._end == "reset":
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()
        else:
            transport.close()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Everything is written."""


def head(status: int, headers: Mapping[str, str], *, length: int | None = None) -> bytes:
    """Return a status line and headers.

    >>> head(204, {"Via": "proxy"})
    b'HTTP/1.1 204 No Content\\r\\nVia: proxy\\r\\n\\r\\n'
    """
    told: dict[str, Any] = dict(headers) | ({} if length is None else {"Content-Length": length})
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in told.items())]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def _is_open(request: web.BaseRequest) -> bool:
    return request.transport is not None and not request.transport.is_closing()
