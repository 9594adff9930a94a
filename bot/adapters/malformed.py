"""Events that are not built as their platform says: noted by kind and place, and passed over."""

import traceback
from pathlib import Path

# What reading one ends with.
PARSE_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)


def describe_error(error: BaseException) -> dict[str, str]:
    """What a log may hold of it: its own sentence may quote what people wrote.

    Without the traceback, which would cost more than the event did: who sends many could stop us so.

    >>> try:
    ...     int("what somebody wrote")
    ... except ValueError as error:
    ...     told_of(error)["error"]
    'ValueError'
    """
    last = traceback.extract_tb(error.__traceback__, limit=-1)
    at = "".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in last)
    return {"error": type(error).__name__, "at": at}
