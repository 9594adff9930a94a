"""R20: thousands of idle and dripping connections on the ports that the bot opens.

The operations server, and Slack's HTTP port.  Meanwhile users ask; their waits are compared
with those before in the same process.  The log and the file descriptors stay bounded.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from tests.chaos import idle_clients
from tests.chaos.faults import percentile
from tests.chaos.figure import Row, Scale
from tests.chaos.one_platform import Asker
from tests.chaos.processes import ROOT, BotProcess, run_bot
from tests.harness.platform_bench import PROFILES
from tests.harness.probe import HealthProbe
from tests.harness.servers.slack import SlackServer

NAME = "R20"

# Connections to each port: silent ones, and ones that send a byte now and then.
IDLE = {"full": 2_000, "short": 120}
DRIPPING = {"full": 200, "short": 20}
# Questions per room and round, without them and beside them by turns: what else changes with time is in both.
QUESTIONS = {"full": 20, "short": 2}
ROUNDS = {"full": 3, "short": 1}
_MOST_LINES, _MOST_FILES = 100, 4_096
_MOST_TIMES = 1.1


async def crowd(scale: Scale) -> AsyncIterator[Row]:
    """Ask before and beside the connections, first to one port, then to the other."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with SlackServer(mode="http") as slack, PROFILES["telegram"].open() as telegram:
            platforms = {"slack": slack, "telegram": telegram}
            askers = [Asker(platform) for platform in platforms.values()]
            async with run_bot(platforms, folder, {"BOT_LOGS__FORMAT": "json"}) as bot:
                await _is_ready(bot, slack)
                await asyncio.gather(*(asker.ask("room0") for asker in askers))
                for subject, port in (("operations", await bot.operations_port()), ("slack http", slack.port)):
                    yield await _row(bot, subject, port, askers, scale)


async def _row(bot: BotProcess, subject: str, port: int, askers: list[Asker], scale: Scale) -> Row:
    alone: list[float] = []
    beside: list[float] = []
    more_files, more_lines, is_running, seconds = 0, 0, True, 0.0
    for _ in range(ROUNDS[scale]):
        begin, files = _lines(bot), _files(bot)
        alone += await _waits(askers, scale)
        lines, began = _lines(bot), time.monotonic()
        async with _connections(port, IDLE[scale], DRIPPING[scale]):
            beside += await _waits(askers, scale)
            more_files = max(more_files, _files(bot) - files)
            is_running &= bot.process.returncode is None
        seconds += time.monotonic() - began
        more_lines = max(more_lines, _lines(bot) - lines - (lines - begin))  # the answers are logged too
    is_back = is_running and await _responds(bot)
    before, meanwhile = percentile(alone, 95), percentile(beside, 95)
    faults = [fault for asker in askers for fault in asker.faults]
    told = (
        f"{IDLE[scale]:,} idle and {DRIPPING[scale]} dripping connections for {seconds:.0f} s: p95 wait of {len(beside)} "
        f"answers {1000 * meanwhile:.0f} ms, of {len(alone)} without them {1000 * before:.0f} ms "
        f"({meanwhile / before:.2f} times), lost or twice {len(faults)}, lines of log {more_lines}, "
        f"file descriptors +{more_files}, " + ("it responds afterwards" if is_back else "NO RESPONSE AFTERWARDS")
    )
    told += "".join(f"; {fault}" for fault in faults[:3])
    is_kept = not faults and is_back and more_lines <= _MOST_LINES and more_files <= _MOST_FILES
    return Row(subject, told, is_kept, scale == "short" or meanwhile <= _MOST_TIMES * before)


@asynccontextmanager
async def _connections(port: int, idle: int, dripping: int) -> AsyncIterator[None]:
    """Keep connections to the port, all of them opened once before the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", idle_clients.__name__, str(port), str(idle), str(dripping)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"connected\n", "the clients have ended"
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _is_ready(bot: BotProcess, slack: SlackServer) -> None:
    """Wait until both platforms are connected; Slack has no socket here."""
    async with asyncio.timeout(600.0):
        await slack.connected()
        await bot.platforms["telegram"].until(lambda: PROFILES["telegram"].is_connected(bot.platforms["telegram"]))


async def _waits(askers: list[Asker], scale: Scale) -> list[float]:
    found = await asyncio.gather(*(asker.ask_often(QUESTIONS[scale]) for asker in askers))
    return [wait for waits in found for wait in waits]


async def _responds(bot: BotProcess) -> bool:
    """Return whether the operations server answers again."""
    port = await bot.operations_port()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as http:
        for _ in range(15):
            with suppress(aiohttp.ClientError, TimeoutError):
                status, _ = await HealthProbe(http, port).get("/livez")
                return status == 200
            await asyncio.sleep(1.0)
    return False


def _lines(bot: BotProcess) -> int:
    return len((bot.folder / "log").read_text(encoding="utf-8").splitlines())


def _files(bot: BotProcess) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{bot.process.pid}/fd").iterdir())
    except OSError:
        return 0


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    async for row in crowd(scale):
        yield row
