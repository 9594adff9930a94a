"""Start a process that reads a file, pass the bytes on, and take its text."""

import asyncio
import binascii
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from bot.chat.reading.fault import Unreadable
from bot.chat.reading.limits import LONGEST_SIDE, MOST_PICTURE_BYTES
from bot.domain import FileFault, Picture
from bot.util.text import clean

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds for reading once all bytes were passed on.
_SECONDS = 5.0
# Bytes of JSON for a character at most, and for the rest of the object.
_BYTES_PER_CHARACTER, _REST = 12, 1000
_CHUNK = 2**16


@dataclass(frozen=True, slots=True)
class Reading:
    """The text of a file, with `is_cut` only its beginning; or a picture."""

    text: str = ""
    is_cut: bool = False
    picture: Picture | None = None


async def read_file(
    chunks: AsyncIterator[bytes], *, most_bytes: int, most_characters: int, sees: bool = False
) -> Reading:
    """Read a file in a process of its own, with 256 MB and 5 s, and without sockets.

    A picture is read only if `sees`.

    Raises:
        Unreadable: There is nothing in it that can be read.
        BotError: As `chunks` raises it.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-s", "-W", "ignore", "-X", "utf8", "-m", "bot.chat.reading.child"),
        *(str(most_bytes), str(most_characters), str(int(sees))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        # Nothing else of the environment: it has tokens.
        env={"PYTHONPATH": os.pathsep.join(each or "." for each in sys.path)},
    )
    try:
        await _pass_on(chunks, child)
        async with asyncio.timeout(_SECONDS):
            most = max(_BYTES_PER_CHARACTER * most_characters, 2 * MOST_PICTURE_BYTES) + _REST
            output = await _output(child, most)
            await child.wait()
    except TimeoutError:
        raise Unreadable("slow") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _reading(output, child.returncode or 0)


async def _pass_on(chunks: AsyncIterator[bytes], child: asyncio.subprocess.Process) -> None:
    assert child.stdin is not None
    try:
        async for chunk in chunks:
            child.stdin.write(chunk)
            await child.stdin.drain()
        child.stdin.close()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has ended, and its output says why


async def _output(child: asyncio.subprocess.Process, most: int) -> bytes:
    assert child.stdout is not None
    output = bytearray()
    while len(output) <= most and (chunk := await child.stdout.read(_CHUNK)):
        output += chunk
    return bytes(output)


def _reading(output: bytes, status: int) -> Reading:
    """Return what the process says; nothing of it is trusted."""
    try:
        said = json.loads(output)
        if (fault := said.get("fault")) is not None:
            raise Unreadable(FileFault(fault).value)
        if "picture" in said:
            return Reading(picture=_picture(said))
        return Reading(clean(str(said["text"])), said["is_cut"] is True)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        log.info("a file was not read", status=status, bytes=len(output))
        # Beyond its CPU time it is killed, beyond its memory it may be.
        raise Unreadable("slow" if status < 0 else "damaged") from None


def _picture(said: Mapping[str, Any]) -> Picture:
    data = binascii.a2b_base64(said["picture"], strict_mode=True)
    sides = said["width"], said["height"]
    if len(data) > MOST_PICTURE_BYTES or any(type(side) is not int or not 0 < side <= LONGEST_SIDE for side in sides):
        raise ValueError("no picture within the bounds")
    return Picture("image/jpeg", data, *sides)
