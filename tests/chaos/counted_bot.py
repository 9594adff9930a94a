"""The bot with models that are read slowly and counted: `python -m tests.chaos.counted_bot run`.

Reading one takes READ_SECONDS and cannot be interrupted.  The file COUNTED holds the most
models that were in memory at once.
"""

import asyncio
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from bot.cli import main
from bot.engine import hot_swap
from bot.engine.backends import echo
from bot.util.shutdown import exit_on_sigterm


class Counter:
    """The models in memory now, and the most so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._live = self._most = 0

    def add(self, change: int) -> None:
        with self._lock:
            self._live += change
            if self._live > self._most:
                self._most = self._live
                Path(os.environ["COUNTED"]).write_text(str(self._most), encoding="ascii")


_counter = Counter()


def _read() -> None:
    _counter.add(1)
    time.sleep(float(os.environ["READ_SECONDS"]))


class CountedEcho(echo.EchoEngine):
    """Holds a model from the beginning of its reading to its end."""

    async def __aenter__(self) -> Self:
        reading = asyncio.ensure_future(asyncio.to_thread(_read))
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            await reading
            _counter.add(-1)
            raise
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        _counter.add(-1)


if __name__ == "__main__":
    exit_on_sigterm()
    echo.EchoEngine = CountedEcho  # type: ignore[misc]  # this process exists for the test
    # Shorter than a read, so that a read is given up, as one of minutes is; two of them, after which
    # the bot ends, are longer than a whole read.
    hot_swap.STUCK_SECONDS = float(os.environ["READ_SECONDS"]) * 0.6
    main()
