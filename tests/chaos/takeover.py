"""R33: several bots on one database (PostgreSQL), of which the one that serves is killed, stopped, paused or cut off.

`[cluster]` is enabled: one bot serves, the others stand by.  R34 (replicas.py) does the same to bots that share the
platforms.  Each fault hits the one that serves:

- killed: SIGKILL;
- upgraded: SIGTERM, and a new process starts;
- paused: SIGSTOP, and SIGCONT once another one serves;
- cut off: its connections to the database stay open, and nothing passes;
- thrown out: the server ends its sessions, while the process runs on.

Of bots that share the platforms, the server fails too, which hits all of them, and which they should outlast:

- restarted: PostgreSQL crashes and comes back;
- read-only: it refuses every write for some seconds;
- slow: each of its responses, and each request, takes 200 ms longer for some seconds.

Users write before, during and after each.  Then each question must have exactly one complete
answer.  A takeover is timed from the fault to the line of the log that says who serves.
"""

import asyncio
import json
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
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

Fault = Literal["killed", "upgraded", "paused", "cut off", "thrown out", "restarted", "read-only", "slow"]
_OF_SERVER: tuple[Fault, ...] = ("restarted", "read-only", "slow")
# Seconds that the server refuses writes or is slow, and that a request or a response then takes longer.
_LASTS, _LATENCY = 8.0, 0.2
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
# Said by a bot that another one replaces, and by one that starts, or begins to serve a platform, while the server fails.
_EXPECTED_ERRORS = (
    "another bot may serve",
    "is read-only",
    "closed the connection",
    "cannot be reached",
    "is not ready",
)
# The other platforms' databases are on the same server.
_LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = x'{kind}'::int::oid"
    " AND database = (SELECT oid FROM pg_database WHERE datname = '{database}')"
)
_OF_DATABASE, _OF_PLATFORM = "626F74", "626F75"
_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
)


@dataclass(frozen=True, slots=True)
class _Bot:
    """One of the bots, and the proxy between it and the database."""

    process: BotProcess
    proxy: TcpProxy

    def began(self, name: str | None) -> float:
        """Return when it began to serve the database, or a platform, in seconds since the epoch; 0 if it did not."""
        log = (self.process.folder / "log").read_text(encoding="utf-8")
        what = "serving the database" if name is None else "serving the platform"
        events = [json.loads(line) for line in log.splitlines() if f'"{what}"' in line]
        times = [event["timestamp"] for event in events if name is None or event["platform"] == name]
        return datetime.fromisoformat(times[-1]).timestamp() if times else 0.0

    @property
    def is_running(self) -> bool:
        return self.process.process.returncode is None


@dataclass
class _Cluster:
    """The bots on one database."""

    platforms: Mapping[str, LoopbackPlatform]
    folder: Path
    server: PostgresServer
    database: str
    opened: AsyncExitStack
    is_shared: bool
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
        more = {"BOT_STORAGE__URL": url, "BOT_CLUSTER__ENABLED": "true", "BOT_CLUSTER__SHARE": str(self.is_shared)}
        process = await self.opened.enter_async_context(run_bot(self.platforms, folder, more))
        self.bots.append(_Bot(process, proxy))
        return self

    async def supervise(self) -> None:
        """Replace bots that end by themselves: on a busy machine one may miss its checks."""
        while True:
            await asyncio.sleep(0.2)
            for ended in [bot for bot in self.bots if not bot.is_running]:
                self.bots.remove(ended)
                await self.start()

    async def serving(self, name: str, after: float = 0.0) -> tuple[_Bot, float]:
        """Return the bot that began to serve a platform after this time (seconds since the epoch), and when."""
        await until(lambda: self._newest(name)[1] > after)
        bot, began = self._newest(name)
        assert bot is not None
        return bot, began

    def _newest(self, name: str) -> tuple[_Bot | None, float]:
        began = [(bot, bot.began(name if self.is_shared else None)) for bot in self.bots if bot.is_running]
        return max(began, key=lambda each: each[1], default=(None, 0.0))

    async def inject(self, fault: Fault, name: str) -> None:
        """Inject the fault into the bot that serves a platform; return when another one does and this one has ended.

        Those of the server hit all bots, which may keep their places.
        """
        if fault in _OF_SERVER:
            await self._fail_server(fault)
            return
        bot, _ = await self.serving(name)
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
        if bot in self.bots:
            self.bots.remove(bot)
        _, began = await self.serving(name, after=at)
        self.takeovers[fault].append(began - at)
        if fault == "paused" and process.returncode is None:
            process.send_signal(signal.SIGCONT)
        await process.wait()
        while len(self.bots) < _REPLICAS:
            await self.start()

    async def _fail_server(self, fault: Fault) -> None:
        """Let the server fail for some seconds; return when each platform is served again."""
        match fault:
            case "restarted":
                await asyncio.to_thread(self.server.stop, signal.SIGQUIT)
                await asyncio.to_thread(self.server.start)
            case "read-only":
                for value in ("on", "off"):
                    self.server.run(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
                    self.server.run("SELECT pg_reload_conf()")
                    if value == "on":
                        await asyncio.sleep(_LASTS)
            case "slow":
                self._delay(_LATENCY)
                await asyncio.sleep(_LASTS)
                self._delay(0.0)
        held = _LOCKS.format(database=self.database, kind=_OF_PLATFORM)
        await until(lambda: self.server.run(held) == [(len(self.platforms),)])

    def _delay(self, seconds: float) -> None:
        for bot in self.bots:
            bot.proxy.latency = seconds

    async def _keeps_its_place(self, bot: _Bot) -> bool:
        """Return whether it acquires the lock again; the alternative is its end."""
        kind, count = (_OF_PLATFORM, len(self.platforms)) if self.is_shared else (_OF_DATABASE, 1)
        held = _LOCKS.format(database=self.database, kind=kind)
        await until(lambda: self.server.run(held) == [(count,)] or not bot.is_running)
        with suppress(TimeoutError):
            await until(lambda: not bot.is_running, GRACE + _MOST_MORE)
        return bot.is_running


async def replace_repeatedly(
    names: Sequence[str], server: PostgresServer, rounds: int, seed: int, *, is_shared: bool
) -> tuple[dict[str, KillResult], _Cluster]:
    """Inject each fault `rounds` times, in random order, then check the answers of each platform.

    Where they share the platforms, the server is theirs, and fails too.
    """
    chance = random.Random(f"{seed} {names}")
    results = {name: KillResult() for name in names}
    kinds = [*_EXPECTED, *(_OF_SERVER if is_shared else ())]
    faults = [fault for fault in kinds for _ in range(rounds)]
    chance.shuffle(faults)

    async def ask(name: str) -> None:
        result, channel = results[name], chance.choice(CHANNELS)
        result.questions[number := f"q{len(result.questions)}e"] = channel
        text = f"{number} {'and so on 你好 ' * chance.randrange(1, 40)}{number}"
        await cluster.platforms[name].say(text, channel=channel)

    def all_answered() -> bool:
        return all(are_answered(cluster.platforms[name], result) for name, result in results.items())

    with tempfile.TemporaryDirectory() as temporary:
        async with AsyncExitStack() as opened:
            platforms = {name: await opened.enter_async_context(PROFILES[name].open()) for name in names}
            cluster = _Cluster(platforms, Path(temporary), server, server.database(), opened, is_shared)
            for _ in range(_REPLICAS):
                await cluster.start()
            opened.callback(asyncio.create_task(cluster.supervise()).cancel)
            await until(lambda: all(PROFILES[name].is_connected(each) for name, each in platforms.items()))
            for name, result in results.items():
                for channel in CHANNELS:  # a backfill needs a known message in each channel
                    result.questions[number := f"q{len(result.questions)}e"] = channel
                    await platforms[name].say(f"{number} hello {number}", channel=channel)
            await until(all_answered)
            for fault in faults:
                hit = chance.choice(names)
                results[hit].kills += 1
                async with asyncio.TaskGroup() as tasks:
                    injected = tasks.create_task(_after(chance.uniform(0.0, 1.0), cluster, fault, hit))
                    while not injected.done():
                        await ask(asked := chance.choice(names))
                        await asyncio.sleep(chance.uniform(0.1, 1.0) * (_SLOWER if asked == "slack" else 1.0))
            with suppress(TimeoutError):  # unanswered questions are counted as lost
                await until(all_answered, 2 * TIMEOUT)
            await asyncio.sleep(1.0)  # for duplicate answers
            logged = [line for folder in cluster.folders for line in logged_errors(folder)]
            errors = [line for line in logged if not any(each in line for each in _EXPECTED_ERRORS)]
            for name, result in results.items():
                count_answers(platforms[name], result)
                result.errors = errors
                result.integrity = "ok"  # the server's own concern
    return results, cluster


async def _after(seconds: float, cluster: _Cluster, fault: Fault, name: str) -> None:
    await asyncio.sleep(seconds)
    await cluster.inject(fault, name)


def row_of(name: str, result: KillResult, cluster: _Cluster) -> Row:
    """Return the row of a platform's answers, and of the takeovers of its cluster."""
    taken = {fault: seconds for fault, seconds in cluster.takeovers.items() if seconds}
    times = ", ".join(f"{fault} {percentile(seconds, 99):.1f} s" for fault, seconds in taken.items())
    in_time = all(percentile(seconds, 99) <= _EXPECTED[fault] + _MOST_MORE for fault, seconds in taken.items())
    return Row(name, f"{result}; another bot serves after (p99): {times}", result.is_kept, in_time)


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    folder = programs()
    if folder is None:
        yield Row("the bots", MISSING, is_kept=scale == "short")
        return
    names = PLATFORMS if scale == "full" else PLATFORMS[:1]
    with PostgresServer(folder) as server:
        async with asyncio.TaskGroup() as tasks:
            replace = partial(replace_repeatedly, server=server, rounds=20 if scale == "full" else 1, seed=seed)
            runs = [tasks.create_task(replace([name], is_shared=False)) for name in names]
    for run in runs:
        results, cluster = run.result()
        for name, result in results.items():
            yield row_of(name, result, cluster)
