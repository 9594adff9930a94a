"""R33: several bots on one database (PostgreSQL), of which the one that serves is killed, stopped, paused or cut off.

`[cluster]` is enabled: one bot serves, the others stand by.  Each fault hits the one that serves:

- killed: SIGKILL;
- upgraded: SIGTERM, and a new process starts;
- paused: SIGSTOP, and SIGCONT once another one serves;
- cut off: its connections to the database stay open, and nothing passes;
- thrown out: the server ends its sessions, while the process runs on.

Users write before, during and after each.  Then each question must have exactly one complete
answer.  A takeover is timed from the fault to the line of the log that says who serves.
"""

import asyncio
import json
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from bot.storage.standby import GRACE, LEASE
from bot.util.shutdown import ShutdownDeadline
from tests.chaos.faults import percentile
from tests.chaos.figure import Row, Scale
from tests.chaos.kills import CHANNELS, KillResult, are_answered, count_answers
from tests.chaos.processes import PLATFORMS, TIMEOUT, BotProcess, logged_errors, run_bot, until
from tests.chaos.tcp_proxy import TcpProxy, open_proxy_to
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import PROFILES
from tests.harness.postgres import MISSING, PostgresServer, programs

NAME = "R33"

Fault = Literal["killed", "upgraded", "paused", "cut off", "thrown out"]
# Seconds until another bot serves, before it opens the database and the model.
_EXPECTED: dict[Fault, float] = {
    "killed": GRACE,
    "upgraded": ShutdownDeadline().seconds,  # replies in progress have so long
    "paused": LEASE + GRACE,
    "cut off": LEASE + GRACE,
    "thrown out": GRACE,
}
# Seconds that it may take beyond, on an idle machine: an orderly end may take a second, a try comes each half second.
_MOST_MORE = 2.0
_REPLICAS = 3
# Questions come more slowly on Slack, where all channels share 46 edits a minute.
_SLOWER = 5.0
# The end of a bot that another one replaces.
_REPLACED = "another bot may serve"
# The other platforms' databases are on the same server.
_LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2"
    " AND database = (SELECT oid FROM pg_database WHERE datname = '{database}')"
)
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
)


@dataclass(frozen=True, slots=True)
class _Bot:
    """One of the bots, and the proxy between it and the database."""

    process: BotProcess
    proxy: TcpProxy

    @property
    def began(self) -> float:
        """Return when it last began to serve, in seconds since the epoch; 0 if it did not."""
        log = (self.process.folder / "log").read_text(encoding="utf-8")
        lines = [line for line in log.splitlines() if "serving the database" in line]
        return datetime.fromisoformat(json.loads(lines[-1])["timestamp"]).timestamp() if lines else 0.0

    @property
    def is_running(self) -> bool:
        return self.process.process.returncode is None


@dataclass
class _Cluster:
    """The bots on one database."""

    name: str
    platform: LoopbackPlatform
    folder: Path
    server: PostgresServer
    database: str
    opened: AsyncExitStack
    bots: list[_Bot] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    takeovers: dict[Fault, list[float]] = field(default_factory=lambda: {fault: [] for fault in _EXPECTED})

    async def start(self) -> Self:
        """Start one more bot."""
        number = len(self.folders)
        folder = self.folder / f"bot-{number}"
        folder.mkdir()
        (folder / "log").touch()  # a process that is started warm opens it later
        self.folders.append(folder)
        proxy, port = await self.opened.enter_async_context(open_proxy_to(self.server.port, number))
        url = self.server.url(self.database).replace(f":{self.server.port}/", f":{port}/")
        more = {"BOT_STORAGE__URL": url, "BOT_CLUSTER__ENABLED": "true"}
        process = await self.opened.enter_async_context(run_bot({self.name: self.platform}, folder, more))
        self.bots.append(_Bot(process, proxy))
        return self

    async def serving(self, after: float = 0.0) -> _Bot:
        """Return the bot that began to serve after this time (seconds since the epoch)."""
        await until(lambda: any(bot.began > after for bot in self.bots if bot.is_running))
        return max((bot for bot in self.bots if bot.is_running), key=lambda bot: bot.began)

    async def inject(self, fault: Fault) -> None:
        """Inject the fault into the bot that serves; return when another one serves and this one has ended."""
        bot = await self.serving()
        at = time.time()
        process = bot.process.process
        match fault:
            case "killed":
                process.send_signal(signal.SIGKILL)
            case "upgraded":
                process.send_signal(signal.SIGTERM)
            case "paused":
                process.send_signal(signal.SIGSTOP)
            case "cut off":
                bot.proxy.block()
            case "thrown out":
                # Of the others too: then the one that serves may keep its place.
                self.server.run(_END_SESSIONS.format(database=self.database))
        if fault == "thrown out" and await self._keeps_its_place(bot):
            return
        self.takeovers[fault].append((await self.serving(after=at)).began - at)
        if fault == "paused":
            process.send_signal(signal.SIGCONT)
        await process.wait()
        self.bots.remove(bot)
        await self.start()

    async def _keeps_its_place(self, bot: _Bot) -> bool:
        """Return whether it acquires the lock again; the alternative is its end."""
        held = _LOCKS.format(database=self.database)
        await until(lambda: self.server.run(held) == [(1,)])
        with suppress(TimeoutError):
            await until(lambda: not bot.is_running, GRACE + _MOST_MORE)
        return bot.is_running


async def replace_repeatedly(name: str, server: PostgresServer, rounds: int, seed: int) -> tuple[KillResult, _Cluster]:
    """Inject each fault `rounds` times, in random order, then check the answers."""
    chance = random.Random(f"{seed} {name}")
    result = KillResult()
    faults = [fault for fault in _EXPECTED for _ in range(rounds)]
    chance.shuffle(faults)

    async def ask(platform: LoopbackPlatform) -> None:
        number, channel = f"q{len(result.questions)}e", chance.choice(CHANNELS)
        result.questions[number] = channel
        await platform.say(f"{number} {'and so on 你好 ' * chance.randrange(1, 40)}{number}", channel=channel)

    with tempfile.TemporaryDirectory() as temporary:
        async with PROFILES[name].open() as platform, AsyncExitStack() as opened:
            cluster = _Cluster(name, platform, Path(temporary), server, server.database(), opened)
            for _ in range(_REPLICAS):
                await cluster.start()
            first = await cluster.serving()
            await first.process.connected()
            for channel in CHANNELS:  # a backfill needs a known message in each channel
                result.questions[number := f"q{len(result.questions)}e"] = channel
                await platform.say(f"{number} hello {number}", channel=channel)
            await until(lambda: are_answered(platform, result))
            for fault in faults:
                result.kills += 1
                async with asyncio.TaskGroup() as tasks:
                    injected = tasks.create_task(_after(chance.uniform(0.0, 1.0), cluster, fault))
                    while not injected.done():
                        await ask(platform)
                        await asyncio.sleep(chance.uniform(0.1, 1.0) * (_SLOWER if name == "slack" else 1.0))
            with suppress(TimeoutError):  # unanswered questions are counted as lost
                await until(lambda: are_answered(platform, result), 2 * TIMEOUT)
            await asyncio.sleep(1.0)  # for duplicate answers
            count_answers(platform, result)
            result.errors = [
                line for folder in cluster.folders for line in logged_errors(folder) if _REPLACED not in line
            ]
        result.integrity = "ok"  # the server's own concern
    return result, cluster


async def _after(seconds: float, cluster: _Cluster, fault: Fault) -> None:
    await asyncio.sleep(seconds)
    await cluster.inject(fault)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    folder = programs()
    if folder is None:
        yield Row("the bots", MISSING, is_kept=scale == "short")
        return
    rounds = 20 if scale == "full" else 1
    with PostgresServer(folder) as server:
        async with asyncio.TaskGroup() as tasks:
            runs = {
                name: tasks.create_task(replace_repeatedly(name, server, rounds, seed))
                for name in (PLATFORMS if scale == "full" else PLATFORMS[:1])
            }
    for name, run in runs.items():
        result, cluster = run.result()
        taken = {fault: seconds for fault, seconds in cluster.takeovers.items() if seconds}
        times = ", ".join(f"{fault} {percentile(seconds, 99):.1f} s" for fault, seconds in taken.items())
        in_time = all(percentile(seconds, 99) <= _EXPECTED[fault] + _MOST_MORE for fault, seconds in taken.items())
        yield Row(name, f"{result}; another bot serves after (p99): {times}", result.is_kept, in_time)
