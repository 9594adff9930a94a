"""The process that reads one file: bytes on standard input, one JSON object on standard output.

`python -m bot.chat.reading.child BYTES CHARACTERS SEES` takes at most so many of each; pictures only if SEES is 1.
"""

import json
import signal
import sys
import types
from collections.abc import Callable
from typing import TypeVar

from bot.chat.reading.fault import Unreadable
from bot.chat.reading.plain import read_plain
from bot.chat.reading.sandbox import SECONDS, limit_resources, refuse_system_calls
from bot.chat.reading.text import Full, Text

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
# Two letters alone begin texts too: a table whose first column is a primary key.
_ARCHIVE = (b"PK\3\4", b"PK\5\6", b"PK\7\10")
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
# Before the end of the CPU time, so that what was read so far can be told.
_ALARM = SECONDS - 1.0

T = TypeVar("T")


class _TimeOver(BaseException):
    """Raised wherever the program is, past any handler of a library's."""


def main(most_bytes: int, most_characters: int, *, sees: bool) -> dict[str, object]:
    """Return `text` and `is_cut`, or `picture`, `width` and `height`, or `fault`."""
    text, is_cut = Text(most_characters), False
    try:
        data = sys.stdin.buffer.read(most_bytes + 1)
        if len(data) > most_bytes:
            raise Unreadable("large")
        if _is_picture(data):
            return _within_time(lambda: _picture(data, sees=sees))
        _within_time(lambda: _read(data, text))
    except Full:
        is_cut = True
    except (Exception, _TimeOver) as error:  # noqa: BLE001  # a library may raise anything here
        if not str(text).strip():
            return {"fault": _fault_of(error)}
        is_cut = True
    found = str(text).strip()
    return {"text": found, "is_cut": is_cut} if found else {"fault": "empty"}


def _within_time(read: Callable[[], T]) -> T:
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, _ALARM)
    try:
        return read()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _read(data: bytes, text: Text) -> None:
    read = _reader(data)
    refuse_system_calls()
    read(data, text)


def _is_picture(data: bytes) -> bool:
    return data.startswith(_PICTURES) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")


def _picture(data: bytes, *, sees: bool) -> dict[str, object]:
    if not sees:
        raise Unreadable("picture")
    from bot.chat.reading.pictures import read_picture

    refuse_system_calls()
    return read_picture(data)


def _reader(data: bytes) -> Callable[[bytes, Text], None]:
    """Return the function that reads this file, by its contents: a name can lie.

    Each kind imports only what it needs.
    """
    if data.lstrip()[:5] == b"%PDF-":
        from bot.chat.reading.pages import read_pages

        return read_pages
    if data.startswith(_ARCHIVE):
        from bot.chat.reading.office import read_office

        return read_office
    if data.startswith(_OLE):
        raise Unreadable("locked" if _ENCRYPTED in data else "kind")
    return read_plain


def _end(number: int, frame: types.FrameType | None) -> None:
    raise _TimeOver


def _fault_of(error: BaseException) -> str:
    match error:
        case Unreadable():
            return error.fault
        case MemoryError():
            return "large"
        case _TimeOver():
            return "slow"
        case _:
            return "damaged"


if __name__ == "__main__":
    limit_resources()
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), sees=sys.argv[3] == "1")))
