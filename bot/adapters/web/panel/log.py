"""The last lines of the log, redacted as they were written."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime

from bot.adapters.web.panel.html import Html, text
from bot.observability.logging import LogLine, escape_invisible

# Characters of a line that are shown.
_MOST_CHARACTERS = 4_000
_LEVELS = ("debug", "info", "warning", "error", "critical")
_COLOURS = re.compile("\x1b\\[[0-9;]*m")
# Time and level of a line for people, which have columns of their own here.
_HEAD = re.compile(r"^\d\d:\d\d:\d\d \[\w+ *\] ")
_SHOWN_APART = ("timestamp", "level", "event", "logger", "exception")


def log_html(lines: Sequence[LogLine]) -> Html:
    """Return items of a list, the newest first."""
    return Html("".join(_item(line) for line in reversed(lines)))


def _item(line: LogLine) -> str:
    level = line.level if line.level in _LEVELS else "info"
    at = datetime.fromtimestamp(line.at, UTC)
    return (
        f'<li data-level="{level}"><time datetime="{at.isoformat(timespec="seconds")}">{at:%m-%d %H:%M:%S}</time> '
        f"<b>{level}</b> <span>{text(words_of(line.text))}</span></li>"
    )


def words_of(line: str) -> str:
    """Return a finished line without time and level, in the form for people.

    >>> words_of('{"level": "info", "logger": "bot.app", "event": "ready", "model": "demo"}')
    'ready [bot.app] model=demo'
    """
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        return _HEAD.sub("", _COLOURS.sub("", line))[:_MOST_CHARACTERS]
    values = [f"{name}={value}" for name, value in event.items() if name not in _SHOWN_APART]
    words = " ".join([str(event.get("event", "")), f"[{event.get('logger', '')}]", *values])
    if "exception" in event:
        words += f"\n{event['exception']}"
    # JSON has the escaped form of characters that reverse text; here they are characters again.
    return escape_invisible(words)[:_MOST_CHARACTERS]
