"""The language of the terminal, before anything else is loaded."""

import os
from collections.abc import Mapping


def terminal_language(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return "zh" if the terminal is set to Chinese; else the script of each message decides.

    An English terminal says nothing: most servers are set to it.

    >>> terminal_language({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW.UTF-8"}), terminal_language({"LANG": "en_US"})
    ('zh', None)
    """
    named = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := environ.get(name))), "")
    return "zh" if named.lower().startswith("zh") else None
