"""Shutdown: limited in time, and immediate after a second signal."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from bot.util.shutdown import ShutdownDeadline
from tests.harness.platform import TIMEOUT


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the signal handlers of the test process."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_exits_at_once(number: signal.Signals) -> None:
    codes: list[int] = []
    ShutdownDeadline(seconds=60.0, exit=codes.append).start()
    os.kill(os.getpid(), number)
    assert codes == [128 + number]


async def test_a_shutdown_that_takes_too_long_is_cut_off() -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        loop.call_soon_threadsafe(over.set)

    ShutdownDeadline(seconds=0.01, exit=leave).start(130)
    async with asyncio.timeout(TIMEOUT):
        await over.wait()
    assert codes == [130]
