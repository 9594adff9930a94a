"""The bot as a process, started as by an operator, on loopback platforms."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from bot.config.schema import AdapterSection, variable
from tests.harness import loop_monitor, warm_start
from tests.harness.loop_monitor import NONE, Callback
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import PROFILES
from tests.harness.warm_start import WarmProcess

Process = asyncio.subprocess.Process | WarmProcess

ROOT = Path(__file__).parents[2]
PLATFORMS = tuple(PROFILES)
# Seconds for connecting or answering on a busy machine.
TIMEOUT = 600.0

# Environment of every bot, for figures with `--engine remote`.
ENGINE: dict[str, str] = {}

# Number of connections to each loopback server; two polls count as one.
_CONNECTIONS: dict[str, Callable[[Any], float]] = {
    "discord": lambda platform: len(platform.identified),
    "telegram": lambda platform: platform.polls / 2,
    "slack": lambda platform: platform.links,
}


@dataclass(frozen=True, slots=True)
class BotProcess:
    """A running bot."""

    process: Process
    platforms: Mapping[str, LoopbackPlatform]
    folder: Path
    _before: Mapping[str, float]

    @property
    def is_connected(self) -> bool:
        """Return whether it is connected to all its platforms."""
        return all(
            _CONNECTIONS[name](platform) >= self._before[name] + 1 and PROFILES[name].is_connected(platform)
            for name, platform in self.platforms.items()
        )

    async def connected(self) -> None:
        """Wait until it is connected to all its platforms.

        Raises:
            AssertionError: The process ended; with the end of its log.
        """
        await until(lambda: self.is_connected or self.process.returncode is not None)
        assert self.is_connected, (self.folder / "log").read_text(encoding="utf-8")[-2000:]

    async def operations_port(self) -> int:
        """Return the port of its operations server, once it listens.

        Raises:
            AssertionError: The process ended; with the end of its log.
        """
        await until(lambda: bool(self._ports) or self.process.returncode is not None)
        assert self._ports, (self.folder / "log").read_text(encoding="utf-8")[-2000:]
        return self._ports[-1]

    @property
    def _ports(self) -> list[int]:
        lines = (self.folder / "log").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines if "HTTP server listening" in line and line.endswith("}")]
        return [int(event["port"]) for event in events if event["section"] == "operations"]

    async def ended(self, seconds: float) -> int | None:
        """Return its exit code, None if it still runs after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                return await self.process.wait()
        except TimeoutError:
            return None


async def start(module: str, folder: Path, env: Mapping[str, str]) -> Process:
    """Start `python -m MODULE run`; tests of the short form replace this by `start_warm`."""
    with (folder / "log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, "run"), cwd=folder, env=env, stderr=log, stdout=log
        )


async def start_warm(module: str, folder: Path, env: Mapping[str, str]) -> Process:
    """Start `python -m MODULE run` with its imports done."""
    log = folder / "log"
    return warm_start.start(["run"], folder=folder, env=env, stdout=log, stderr=log, module=module)


@asynccontextmanager
async def run_bot(
    platforms: Mapping[str, LoopbackPlatform],
    folder: Path,
    more: Mapping[str, str] | None = None,
    module: str = "bot",
    *,
    is_warm: bool = False,
) -> AsyncIterator[BotProcess]:
    """Run `python -m bot run`; kill it at the end if it still runs.

    `more` are environment variables such as `BOT_ENGINE__BACKEND`; with `is_warm` its imports are done.  Its database and its log
    are in `folder`.  A callback of its event loop that takes too long is an error in the log.
    """
    given = environment(platforms, folder) | {loop_monitor.MODULE: module, loop_monitor.REPORT: str(folder / "loop")}
    starter = start_warm if is_warm else start
    process = await starter(loop_monitor.__name__, folder, given | ENGINE | dict(more or {}))
    try:
        yield BotProcess(
            process, platforms, folder, {name: _CONNECTIONS[name](each) for name, each in platforms.items()}
        )
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


def environment(platforms: Mapping[str, LoopbackPlatform], folder: Path) -> dict[str, str]:
    """Return the settings as environment variables, without this process's own BOT_ variables."""
    given = {key: value for key, value in os.environ.items() if not key.startswith("BOT_")}
    given |= {
        "PYTHONPATH": str(ROOT),
        "BOT_ENGINE__BACKEND": "echo",
        "BOT_STORAGE__URL": f"sqlite+aiosqlite:///{folder / 'bot.db'}",
        "BOT_LOGS__FORMAT": "json",
        "BOT_OPERATIONS__PORT": "0",
        "BOT_LIMITS__REQUESTS_PER_MINUTE": "0",
        "BOT_LIMITS__REQUESTS_PER_MINUTE_CHANNEL": "0",
        "BOT_LIMITS__WAITING_PER_USER": "0",
        "BOT_LIMITS__WAITING_PER_CHANNEL": "0",
        "BOT_LIMITS__TOKENS_PER_HOUR": "0",
        "BOT_LIMITS__TOKENS_PER_HOUR_CHANNEL": "0",
        "BOT_CONVERSATION__HISTORY_TURNS": "0",
        # The servers' clocks are fixed at a time in the past.
        "BOT_CONVERSATION__CATCH_UP_MINUTES": "10000000",
    }
    for name, platform in platforms.items():
        given |= _variables(name, platform.settings())  # type: ignore[attr-defined]  # every loopback platform has settings()
    return given


def _variables(name: str, settings: AdapterSection) -> dict[str, str]:
    # Short intervals, for many calls within a run of a second.
    quick = {"edit_seconds": "0.05", "edit_interval": "0.05", "edit_interval_group": "0.05"}
    given = {}
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        # The timeout of half a second in other tests is too short for a busy machine.
        if value is not None and key != "call_seconds":
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            given[variable(("adapters", name, key))] = quick.get(key, text)
    return given


async def until(condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    """Poll until the condition holds; checking it takes at most a fifth of the time."""
    async with asyncio.timeout(seconds):
        while True:
            began = time.monotonic()
            if condition():
                return
            await asyncio.sleep(max(0.02, 4 * (time.monotonic() - began)))


def replies(platform: LoopbackPlatform, channel: str) -> list[str]:
    """Return the bot's messages in a channel and its threads."""
    return [seen.visible for seen in platform.seen(channel) if seen.author == "bot"]


def logged_errors(folder: Path) -> list[str]:
    """Return the log's errors, and lines that are not log events."""
    found = []
    for line in (folder / "log").read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            found.append(line)
            continue
        if event.get("level") in ("error", "critical") or "exception" in event:
            found.append(line)
    return found


def loop_report(folder: Path) -> Callback:
    """Return the longest callback of the bot's event loop since it was ready."""
    try:
        return Callback(**json.loads((folder / "loop").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # it was never ready, or was killed while it wrote
        return NONE


def memory(pid: int) -> int:
    """Return the private memory of a process in bytes: its heap, without shared libraries."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))


def remove_messages(platform: Any, ids: set[str]) -> None:
    """Remove messages from a loopback server without an event."""
    messages: dict[Any, Any] = platform.workspace.messages if platform.name == "slack" else platform.messages
    for key in [key for key in messages if str(key[1] if isinstance(key, tuple) else key) in ids]:
        del messages[key]
