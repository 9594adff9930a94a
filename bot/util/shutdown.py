"""How the program ends when it is told to: in good order within seconds, and at once when told twice."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

# What stops containers waits 10 s and then kills.  By this time replies have had their
# grace; what still hangs waits for somebody who does not answer, and is owed.
_LONGEST = 7.0


@dataclass(frozen=True, slots=True)
class Ending:
    """After `seconds`, or at the next signal, `leave` ends the process where it stands.

    Nothing is lost by that: all that must outlive it is in the database, a transaction each.
    """

    seconds: float = _LONGEST
    leave: Callable[[int], object] = os._exit

    def begin(self, code: int = 0) -> None:
        """Take the signals over, and let the time run; nothing of this is taken back.

        `code` is the process's exit code if it runs out.
        """

        def leave(number: int, frame: FrameType | None) -> None:
            self.leave(128 + number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, leave)
        # A thread, for the event loop may be what hangs; it also outlives the loop, whose
        # closing waits for other threads.
        timer = threading.Timer(self.seconds, self.leave, [code])
        timer.daemon = True
        timer.start()


def nothing_to_end() -> None:
    """Let SIGTERM end the process as long as nothing has begun.

    As process 1, which it is in a container, it would otherwise not notice: the kernel
    spares that one from signals for which it has no handler.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
