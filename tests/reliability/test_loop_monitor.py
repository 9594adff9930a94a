"""The monitor of the event loop: it counts CPU time of callbacks, in tests and in bot processes."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.chaos.processes import PLATFORMS, logged_errors, loop_report, replies, run_bot, until
from tests.harness.loop_monitor import LIMIT, LIMIT_VARIABLE, LoopMonitor, start_bot
from tests.harness.platform_bench import PROFILES


def compute(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def test_a_callback_that_computes_too_long_is_named() -> None:
    async def reads_a_book() -> None:
        compute(10 * LIMIT)

    with LoopMonitor() as monitor:
        await asyncio.create_task(reads_a_book())
    (slow,) = monitor.slow
    assert slow.cpu >= 10 * LIMIT
    assert "reads_a_book" in slow.name
    assert "compute" in slow.stack


async def test_waiting_for_the_processor_does_not_count() -> None:
    async def waits() -> None:
        time.sleep(2 * LIMIT)  # noqa: ASYNC251 - as a busy machine makes the loop wait

    with LoopMonitor() as monitor:
        await asyncio.create_task(waits())
    assert monitor.slow == []
    assert monitor.longest_wall >= 2 * LIMIT


async def test_kernel_time_is_reported_separately() -> None:
    async def enters_the_kernel() -> None:
        end = time.thread_time() + 5 * LIMIT
        while time.thread_time() < end:
            os.urandom(2**16)

    with LoopMonitor() as monitor:
        await asyncio.create_task(enters_the_kernel())
    (slow,) = monitor.slow
    assert slow.kernel > slow.cpu / 2
    assert "ms of the kernel" in str(slow)


async def test_in_a_shared_loop_only_the_bots_callbacks_count() -> None:
    is_ready = False

    async def computes() -> None:
        compute(2 * LIMIT)

    async def bot() -> None:
        await asyncio.create_task(computes())

    with LoopMonitor(only_bots=True) as monitor:
        await asyncio.create_task(computes())
        await start_bot(bot(), lambda: is_ready)
        assert monitor.slow == []
        is_ready = True
        await start_bot(bot(), lambda: is_ready)
    (slow,) = monitor.slow
    assert "computes" in slow.name


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> float:
    """The limit for a machine of any speed, in bots that start."""
    monkeypatch.setenv(LIMIT_VARIABLE, str(10 * LIMIT))
    return 10 * LIMIT


@pytest.mark.parametrize("name", PLATFORMS)
async def test_a_bot_process_stays_below_the_limit(name: str, tmp_path: Path, allowed: float) -> None:
    async with PROFILES[name].open() as platform, run_bot({name: platform}, tmp_path) as bot:
        await bot.connected()
        for number in range(10):
            await platform.say(f"question {number} " + "with many words " * 100)
        await until(lambda: loop_report(tmp_path).cpu > 0 and len(replies(platform, "general")) >= 10)
    assert logged_errors(tmp_path) == []
    assert 0 < loop_report(tmp_path).cpu <= allowed


@pytest.mark.usefixtures("allowed")
async def test_a_change_of_the_model_stays_below_the_limit(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("", encoding="utf-8")
    async with PROFILES["telegram"].open() as platform, run_bot({"telegram": platform}, tmp_path) as bot:
        await bot.connected()
        (tmp_path / "config.toml").write_text("[engine]\nmax_batch_size = 3\n", encoding="utf-8")
        await until(lambda: "model changed" in (tmp_path / "log").read_text(encoding="utf-8"))
        await platform.say("hello")
        await until(lambda: len(replies(platform, "general")) > 0)
    assert logged_errors(tmp_path) == []
