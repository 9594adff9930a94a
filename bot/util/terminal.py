"""The terminal: whether there is one, and its language, before anything else is loaded."""

import os
import sys
from collections.abc import Mapping


def terminal_language(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return "zh" if the terminal is set to Chinese; else the script of each message decides.

    An English terminal says nothing: most servers are set to it.

    >>> terminal_language({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW.UTF-8"}), terminal_language({"LANG": "en_US"})
    ('zh', None)
    """
    named = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := environ.get(name))), "")
    return "zh" if named.lower().startswith("zh") else None


def reads_terminal() -> bool:
    """Return whether a person can answer: the standard input is a terminal, and not closed."""
    return sys.stdin is not None and sys.stdin.isatty()
