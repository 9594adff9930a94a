"""R20: thousands of idle and dripping connections on the ports that the bot opens.

The operations server, and Slack's HTTP port.  Meanwhile users ask; their waits are compared
with those before in the same process.  The log and the file descriptors stay bounded.
"""

import asyncio
import resource
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from tests.chaos.faults import percentile
from tests.chaos.figure import Row, Scale
from tests.chaos.one_platform import Asker
from tests.chaos.processes import BotProcess, run_bot
from tests.harness.platform_bench import PROFILES
from tests.harness.probe import HealthProbe
from tests.harness.servers.slack import SlackServer

NAME = "R20"

# Connections to each port: silent ones, and ones that send a byte now and then.
IDLE = {"full": 2_000, "short": 120}
DRIPPING = {"full": 200, "short": 20}
SECONDS = {"full": 30.0, "short": 2.0}
_DRIP_SECONDS = 0.2
_MOST_LINES, _MOST_FILES = 100, 1_000
_MOST_TIMES = 1.1
# A burst of thousands at once would only fill the kernel's queue.
_AT_ONCE = 100


async def crowd(scale: Scale) -> AsyncIterator[Row]:
    """Ask before and beside the connections, first to one port, then to the other."""
    _allow_files(4 * IDLE["full"] + 4_096)
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
    seconds = SECONDS[scale]
    begin = _lines(bot)
    alone = await _p95(askers, seconds)
    lines, files = _lines(bot), _files(bot)
    async with _connections(port, IDLE[scale], DRIPPING[scale]):
        beside = await _p95(askers, seconds)
        more_files = _files(bot) - files
        is_running = bot.process.returncode is None
    is_back = is_running and await _responds(bot)
    more_lines = max(0, _lines(bot) - lines - (lines - begin))  # the answers are logged too
    faults = [fault for asker in askers for fault in asker.faults]
    told = (
        f"{IDLE[scale]:,} idle and {DRIPPING[scale]} dripping connections for {seconds:.0f} s: p95 wait "
        f"{1000 * beside:.0f} ms, before {1000 * alone:.0f} ms ({beside / alone:.2f} times), lost or twice {len(faults)}, lines of log {more_lines}, "
        f"file descriptors +{more_files}, " + ("it responds afterwards" if is_back else "NO RESPONSE AFTERWARDS")
    )
    told += "".join(f"; {fault}" for fault in faults[:3])
    is_kept = not faults and is_back and more_lines <= _MOST_LINES and more_files <= _MOST_FILES
    return Row(subject, told, is_kept, scale == "short" or beside <= _MOST_TIMES * alone)


@asynccontextmanager
async def _connections(port: int, idle: int, dripping: int) -> AsyncIterator[None]:
    """Keep connections to the port; one that the bot closes is opened again after a second."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(*, drips: bool) -> None:
        while True:
            with suppress(OSError):
                async with room:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    if drips:
                        writer.write(b"POST /slack/events HTTP/1.1\r\nHost: a\r\nX-Long: ")
                    while drips:
                        writer.write(b"x")
                        await writer.drain()
                        await asyncio.sleep(_DRIP_SECONDS)
                    await reader.read()
                finally:
                    writer.transport.abort()
            await asyncio.sleep(1.0)

    tasks = [asyncio.create_task(one(drips=number < dripping)) for number in range(idle + dripping)]
    try:
        await asyncio.sleep(0.5)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


async def _is_ready(bot: BotProcess, slack: SlackServer) -> None:
    """Wait until both platforms are connected; Slack has no socket here."""
    async with asyncio.timeout(600.0):
        await slack.connected()
        await bot.platforms["telegram"].until(lambda: PROFILES["telegram"].is_connected(bot.platforms["telegram"]))


async def _p95(askers: list[Asker], seconds: float) -> float:
    found = await asyncio.gather(*(asker.keep_asking(seconds) for asker in askers))
    return percentile([wait for waits in found for wait in waits], 95)


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
