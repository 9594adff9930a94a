"""Process exit: a deadline for the orderly shutdown, and an immediate exit on a second signal."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

# Container runtimes send SIGKILL after 10 s.  By now replies have had their grace period; whatever still hangs
# waits for something that does not respond, and its exchanges are recovered at the next start.
_SHUTDOWN_SECONDS = 7.0


@dataclass(frozen=True, slots=True)
class ShutdownDeadline:
    """Calls `exit` after `seconds`, or at the next SIGINT or SIGTERM.

    Exiting loses nothing: all durable state is in the database, in committed transactions.
    """

    seconds: float = _SHUTDOWN_SECONDS
    exit: Callable[[int], object] = os._exit

    def start(self, code: int = 0) -> None:
        """Replace the signal handlers and start the timer; `code` is the exit code on timeout."""

        def exit_now(number: int, frame: FrameType | None) -> None:
            self.exit(128 + number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, exit_now)
        # A thread: the event loop may be what hangs, and closing it waits for other threads.
        timer = threading.Timer(self.seconds, self.exit, [code])
        timer.daemon = True
        timer.start()


def exit_on_sigterm() -> None:
    """Exit with code 0 on SIGTERM while the program is still starting.

    As process 1 of a container it would otherwise ignore the signal: for that process
    the kernel drops signals without a handler.
    """

    def exit_now(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    signal.signal(signal.SIGTERM, exit_now)
