"""Kill the own process at a chosen call of the operating system."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def kills_of(script: str, *arguments: str) -> int:
    """Run a program that prints what `kill_in_turn` returns; return that."""
    command = [sys.executable, "-c", script, *arguments]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def kill_in_turn(folder: Path, work: Callable[[Path, int], object]) -> int:
    """Do the work in one child process after another; return the number of those that were killed.

    Each gets a copy of the folder, which is named by its number beside the folder, and calls `kill_at` with that
    number.  Forks are cheaper than processes, which would import everything again; call it before a thread runs.
    """
    number = 0
    while True:
        copy = folder.with_name(f"{number}")
        shutil.copytree(folder, copy)
        if (child := os.fork()) == 0:
            work(copy, number)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return number
        assert code == -signal.SIGKILL, code
        number += 1


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
