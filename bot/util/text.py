"""Text from outside without what could harm a terminal, a database or a log."""

import re

# C0 and C1 controls but for tab and newline, and halves of surrogate pairs that
# lost their other half: no encoder takes those.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    r"""Drop control characters, keep tabs and newlines; mark what cannot be encoded.

    >>> clean("a\r\nb\x1b[2Jc\x00 d\ud800 你好")
    'a\nb[2Jc d\ufffd 你好'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return replace_surrogates(_CONTROLS.sub("", text))


def replace_surrogates(text: str) -> str:
    r"""Mark halves of characters: no library sends them, and no database keeps them.

    >>> replace_surrogates("a\ud800b")
    'a\ufffdb'
    """
    return _LONE_SURROGATES.sub("\ufffd", text)
