"""Remove characters that can harm a terminal, a database or a log."""

import re

# C0 and C1 controls except tab and newline; surrogates without a pair, which no codec encodes.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    r"""Delete control characters, normalise newlines, replace lone surrogates.

    >>> clean("a\r\nb\x1b[2Jc\x00 d\ud800 你好")
    'a\nb[2Jc d\ufffd 你好'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return replace_surrogates(_CONTROLS.sub("", text))


def replace_surrogates(text: str) -> str:
    r"""Replace lone surrogates, which no library sends and no database stores.

    >>> replace_surrogates("a\ud800b")
    'a\ufffdb'
    """
    return _LONE_SURROGATES.sub("\ufffd", text)
