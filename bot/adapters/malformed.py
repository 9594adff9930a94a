"""Malformed events: log type and location, skip."""

import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Characters of a text.  No platform sends more: Slack's messages end after 40,000.
LONGEST_TEXT = 2**17

# What reading an event of the wrong shape raises.
PARSE_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)


def describe_error(error: BaseException) -> dict[str, str]:
    """Return an error's type and location for a log.

    Without its message, which may quote users, and without the traceback, which
    takes longer than the event itself: a flood of events could stop the bot.

    >>> try:
    ...     int("a user's words")
    ... except ValueError as error:
    ...     describe_error(error)["error"]
    'ValueError'
    """
    # `extract_tb` would read the sources, on the event loop.
    last = deque(traceback.walk_tb(error.__traceback__), maxlen=1)
    at = "".join(f"{Path(frame.f_code.co_filename).name}:{line}" for frame, line in last)
    return {"error": type(error).__name__, "at": at}


def bounded(text: str) -> str:
    """Return the text without what is beyond LONGEST_TEXT: reading a megabyte takes 60 ms of the event loop."""
    return text[:LONGEST_TEXT]


@contextmanager
def skip_malformed(platform: str, **where: object) -> Iterator[None]:
    """Log and suppress what reading a malformed event raises."""
    try:
        yield
    except PARSE_ERRORS as error:
        log.warning("malformed event skipped", platform=platform, **describe_error(error), **where)
