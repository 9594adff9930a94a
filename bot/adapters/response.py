"""Responses of platforms: how much of one is read, and where a long one is parsed."""

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import TypeVar

from bot.errors import PlatformUnavailable

Parsed = TypeVar("Parsed")

# Longer than any real response: a page of history or updates has at most about 10 MB.
MOST_BYTES = 16 * 2**20
# Bytes of a longer response are parsed in a thread: JSON of this length takes up to 6 ms.
_LONG = 2**17


async def read_response(chunks: AsyncIterable[bytes], platform: str) -> bytes:
    """Return the whole body of a response.

    Raises:
        PlatformUnavailable: It is longer than `MOST_BYTES`.
    """
    read, length = [], 0
    async for chunk in chunks:
        read.append(chunk)
        length += len(chunk)
        if length > MOST_BYTES:
            raise PlatformUnavailable(f"{platform}'s response is too long")
    return b"".join(read)


async def parse_response(body: bytes, parse: Callable[[bytes], Parsed]) -> Parsed:
    """Return what `parse` makes of a body; the event loop goes on while it reads a long one."""
    return parse(body) if len(body) <= _LONG else await asyncio.to_thread(parse, body)
