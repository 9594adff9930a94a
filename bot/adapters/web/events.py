"""Server-sent events to open pages."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bot.util.aio import race

# Seconds between comments in a silent stream; a dead connection shows then.
PING_SECONDS = 15.0
PING = b": ping\n\n"
# Milliseconds until a page whose stream broke connects again.
RETRY = b"retry: 1000\n\n"
# The last event of a stream that ends because too many are open.
REPLACED = b"event: replaced\ndata: {}\n\n"

# Bytes that are sent at once: an event may have megabytes, which the server would copy in one step.
_PIECE = 2**18
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def encode(update: dict[str, Any]) -> bytes:
    r"""Return an event.

    >>> encode({"text": "a"})
    b'data: {"text": "a"}\n\n'
    """
    # json.dumps would hold the interpreter's lock until its end, and stop the event loop from a thread too.
    pieces = (piece.encode("utf-8", "replace") for piece in _ENCODER.iterencode(update))
    return b"".join((b"data: ", *pieces, b"\n\n"))


class PageEvents(Response):
    """Server-sent events that end when the page goes away, or `goes_on` says so."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], goes_on: Callable[[], bool]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._events = events
        self._goes_on = goes_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._events) as events:
                async for data in events:
                    if not self._goes_on():
                        break
                    for begin in range(0, len(data), _PIECE):
                        piece = data[begin : begin + _PIECE]
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        writing = asyncio.ensure_future(write())
        try:
            await race(asyncio.wait([writing]), leave())
            if writing.done():
                writing.result()
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
