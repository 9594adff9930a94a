"""A program on a real pseudo-terminal: what it shows, and what a person types."""

import errno
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

# Seconds; only a program that hangs takes as long, on any machine.
_HANGS = 300.0
_ROWS, _COLUMNS = 40, 120
_ESCAPES = re.compile(r"\x1b(?:\[[\d;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78])")
_WHERE_IS_THE_CURSOR = b"\x1b[6n"
# The terminal becomes the controlling one, as in a shell: getpass opens /dev/tty, and ^C is a signal.
_TAKE = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """`python -m bot ARGUMENTS` on a terminal of 120 columns; a context manager that ends the program."""

    def __init__(self, *arguments: str, folder: Path, env: Mapping[str, str]) -> None:
        self._mine, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        command = [sys.executable, "-c", _TAKE, sys.executable, "-m", "bot", *arguments]
        # Another variable than LINES and COLUMNS would not follow the terminal's size.
        self._process = subprocess.Popen(
            command, cwd=folder, env={**env, "TERM": "xterm"}, stdin=its, stdout=its, stderr=its, start_new_session=True
        )
        os.close(its)
        self._raw = b""
        self._read = 0  # characters of `shown` that `wait_for` has passed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._mine)

    @property
    def shown(self) -> str:
        """Everything so far, without escape sequences; redrawn text is there repeatedly."""
        return _ESCAPES.sub("", self._raw.decode("utf-8", "replace"))

    def type(self, text: str) -> None:
        """Send keys once the program waits for them; Enter is a carriage return.

        Python's readline loses a ^C that comes between showing its prompt and waiting for keys.
        """
        deadline = time.monotonic() + _HANGS
        while self._process.poll() is None and not _sleeps(self._process.pid):
            assert time.monotonic() < deadline, f"the program never waits for keys:\n{self.shown[self._read :]}"
            time.sleep(0.01)
        os.write(self._mine, text.encode())

    def wait_for(self, text: str) -> str:
        """Read until `text` appears behind what was waited for before; return what came up to its end.

        Raises:
            AssertionError: The program ended, or hangs.
        """
        deadline = time.monotonic() + _HANGS
        while (at := self.shown.find(text, self._read)) < 0:
            assert self._more(deadline), f"{text!r} is not in:\n{self.shown[self._read :]}"
        begin, self._read = self._read, at + len(text)
        return self.shown[begin : self._read]

    def ended(self) -> int:
        """Read to the end of the program; return its exit code."""
        deadline = time.monotonic() + _HANGS
        while self._more(deadline):
            pass
        return self._process.wait(_HANGS)

    def _more(self, deadline: float) -> bool:
        """Read more output; return False at its end."""
        ready, _, _ = select.select([self._mine], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            return False
        try:
            piece = os.read(self._mine, 65536)
        except OSError as error:  # the program has closed the terminal
            if error.errno != errno.EIO:
                raise
            return False
        if _WHERE_IS_THE_CURSOR in piece:
            os.write(self._mine, b"\x1b[1;1R")
        self._raw += piece
        return bool(piece)


def _sleeps(pid: int) -> bool:
    """Return whether the program's main thread waits; where the system does not tell, it is said to."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return state.rpartition(")")[2].split()[0] == "S"
