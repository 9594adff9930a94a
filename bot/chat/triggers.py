"""Words at the beginning of a message that make it a question in a channel: `triggers = ["glm", "小智"]`."""

import re
import unicodedata
from collections.abc import Iterable

# Characters of a message that are compared: more than the longest word has, also before its letters are unified.
_COMPARED = 400
# "glm-4", "glm's" and "glm.py" are other words than "glm".
_GOES_ON = re.compile(r"['’./@-]?(\w)")


def begins_with(text: str, triggers: Iterable[str]) -> bool:
    """Return whether a text begins with one of these as a word; upper and lower case are the same, and full width.

    What is written without spaces, such as Chinese, ends a word wherever it stands.

    >>> begins_with("GLM, what is a shell?", ["glm"]), begins_with("ｇｌｍ你好", ["glm"]), begins_with("小智你好", ["小智"])
    (True, True, True)
    >>> begins_with("I like glm", ["glm"]), begins_with("glmx", ["glm"]), begins_with("glm-4 is out", ["glm"])
    (False, False, False)
    """
    said = _unified(text.lstrip()[:_COMPARED])
    return any(_begins_with(said, _unified(each)) for each in triggers)


def _begins_with(said: str, word: str) -> bool:
    if not said.startswith(word):
        return False
    more = _GOES_ON.match(said, len(word))
    return more is None or not (_needs_space(word[-1]) and _needs_space(more[1]))


def _needs_space(char: str) -> bool:
    """Return whether words of such characters have spaces between them."""
    return (char.isalnum() or char == "_") and unicodedata.east_asian_width(char) not in ("W", "F")


def _unified(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
