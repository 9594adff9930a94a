"""The process that reads one file: bytes on standard input, one JSON object on standard output.

`python -m bot.chat.reading.child BYTES CHARACTERS` takes at most so many of each.
"""

import json
import signal
import sys
import types
from collections.abc import Callable

from bot.chat.reading.fault import Unreadable
from bot.chat.reading.plain import read_plain
from bot.chat.reading.sandbox import SECONDS, limit_resources, refuse_system_calls
from bot.chat.reading.text import Full, Text

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
# Before the end of the CPU time, so that what was read so far can be told.
_ALARM = SECONDS - 1.0


class _TimeOver(BaseException):
    """Raised wherever the program is, past any handler of a library's."""


def main(most_bytes: int, most_characters: int) -> dict[str, object]:
    """Return `text` and `is_cut`, or `fault`."""
    text, is_cut = Text(most_characters), False
    try:
        data = sys.stdin.buffer.read(most_bytes + 1)
        if len(data) > most_bytes:
            raise Unreadable("large")
        _read(data, text)
    except Full:
        is_cut = True
    except (Exception, _TimeOver) as error:  # noqa: BLE001  # a library may raise anything here
        if not str(text).strip():
            return {"fault": _fault_of(error)}
        is_cut = True
    found = str(text).strip()
    return {"text": found, "is_cut": is_cut} if found else {"fault": "empty"}


def _read(data: bytes, text: Text) -> None:
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, _ALARM)
    try:
        read = _reader(data)
        refuse_system_calls()
        read(data, text)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _reader(data: bytes) -> Callable[[bytes, Text], None]:
    """Return the function that reads this file, by its contents: a name can lie.

    Each kind imports only what it needs.
    """
    if data.lstrip()[:5] == b"%PDF-":
        from bot.chat.reading.pages import read_pages

        return read_pages
    if data.startswith(b"PK"):
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
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
