"""Kill the own process at a chosen call of the operating system."""

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any


def kill_at(number: int, names: Iterable[str]) -> None:
    """Let the process end by SIGKILL before the call after `number` others of these functions of `os`."""
    left = number

    def count(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*args, **options)

        return counted

    for name in names:
        setattr(os, name, count(getattr(os, name)))
