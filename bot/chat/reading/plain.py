"""The text of a text file, whose encoding no platform tells."""

import re

from bot.chat.reading.fault import Unreadable
from bot.chat.reading.text import Text

_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
_HIGH = re.compile(rb"[\x80-\xff]+")
# Share of control characters above which a file is no text.
_MOST_CONTROLS = 0.01
# Characters at the beginning that are searched for them.
_SEARCHED = 100_000
# Share of wrong characters beyond ASCII up to which a text is in an encoding: read as UTF-8, one in GB 18030 or Windows-1252
# has few others.
_MOST_WRONG = 0.2


def read_plain(data: bytes, text: Text) -> None:
    """Add the text of a text file.

    Raises:
        Unreadable: It is none.
    """
    text.add(decode(data))


def decode(data: bytes) -> str:
    r"""Decode a text file: with a byte order mark, UTF-8, GB 18030 or Windows-1252.

    >>> decode("你好".encode("gb18030")), decode("é à".encode("cp1252")), decode(b"\xff\xfea\x00")
    ('你好', 'é à', 'a')
    >>> decode("一二三四五".encode() + b"\xff")
    '一二三四五�'

    Raises:
        Unreadable: It is no text.
    """
    codec = next((codec for mark, codec in _MARKS.items() if data.startswith(mark)), None)
    if codec is not None:
        return _as_text(data.decode(codec, "replace"))
    try:
        return _as_text(data.decode("utf-8"))
    except UnicodeDecodeError:
        pass
    if b"\0" in data:
        raise Unreadable("kind")
    text = _mostly(data, "utf-8")
    # Chinese characters have two bytes; accented letters between others one.
    runs = [len(run) for run in _HIGH.findall(data[:_SEARCHED])]
    if text is None and 2 * sum(length % 2 == 0 for length in runs) >= len(runs):
        text = _mostly(data, "gb18030")
    return _as_text(data.decode("cp1252", "replace") if text is None else text)


def _mostly(data: bytes, codec: str) -> str | None:
    """Return the text with a replacement for each wrong byte; None if there are more than a few."""
    text = data.decode(codec, "replace")
    beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    return text if text.count("\ufffd") <= _MOST_WRONG * beyond_ascii else None


def _as_text(text: str) -> str:
    beginning = text[:_SEARCHED]
    if len(_CONTROLS.findall(beginning)) > _MOST_CONTROLS * len(beginning):
        raise Unreadable("kind")
    return text
