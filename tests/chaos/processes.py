"""The bot as a process, started as an operator starts it, on platforms of this machine."""

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
from tests.harness.platform import LoopbackPlatform
from tests.harness.platform_bench import PROFILES
from tests.harness.warm_start import WarmProcess

Process = asyncio.subprocess.Process | WarmProcess

ROOT = Path(__file__).parents[2]
PLATFORMS = tuple(PROFILES)
# Seconds in which a bot connects or answers, on a machine with other work.
TIMEOUT = 60.0

# How often each loopback server was connected to; a process that polls does so twice.
_CONTACTS: dict[str, Callable[[Any], float]] = {
    "discord": lambda platform: len(platform.identified),
    "telegram": lambda platform: platform.polls / 2,
    "slack": lambda platform: platform.links,
}


@dataclass(frozen=True, slots=True)
class BotProcess:
    """A running one."""

    process: Process
    platforms: Mapping[str, LoopbackPlatform]
    folder: Path
    _before: Mapping[str, float]

    @property
    def is_connected(self) -> bool:
        """Whether it has reached all its platforms."""
        return all(
            _CONTACTS[name](platform) >= self._before[name] + 1 and PROFILES[name].is_connected(platform)
            for name, platform in self.platforms.items()
        )

    async def connected(self) -> None:
        """Wait for that; an end before it is an error, told with the end of the log."""
        await until(lambda: self.is_connected or self.process.returncode is not None)
        assert self.is_connected, (self.folder / "log").read_text(encoding="utf-8")[-2000:]

    async def ended(self, seconds: float) -> int | None:
        """Its exit code; None if it still runs after so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                return await self.process.wait()
        except TimeoutError:
            return None


async def start(module: str, folder: Path, env: Mapping[str, str]) -> Process:
    """Start `python -m MODULE run`; tests of the short form replace this by a warm start."""
    with (folder / "log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, "run"), cwd=folder, env=env, stderr=log, stdout=log
        )


@asynccontextmanager
async def run_bot(
    platforms: Mapping[str, LoopbackPlatform],
    folder: Path,
    more: Mapping[str, str] | None = None,
    module: str = "bot",
) -> AsyncIterator[BotProcess]:
    """`python -m bot run`; it is killed at the end if it still lives.

    `more` are variables of its environment, as `BOT_ENGINE__BACKEND`.  What it logs is
    added to `folder / "log"`, and its database is in `folder` too.
    """
    given = environment(platforms, folder) | dict(more or {})
    process = await start(module, folder, given)
    try:
        yield BotProcess(process, platforms, folder, {name: _CONTACTS[name](each) for name, each in platforms.items()})
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


def environment(platforms: Mapping[str, LoopbackPlatform], folder: Path) -> dict[str, str]:
    """The settings as an operator gives them; nothing else of this process's."""
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
        # The servers' clocks stand still, somewhere in the past.
        "BOT_CONVERSATION__CATCH_UP_MINUTES": "10000000",
    }
    for name, platform in platforms.items():
        given |= _variables(name, platform.settings())  # type: ignore[attr-defined]  # each loopback platform has them
    return given


def _variables(name: str, settings: AdapterSection) -> dict[str, str]:
    # Intervals so short that a life of a second has many calls in it.
    quick = {"edit_seconds": "0.05", "edit_interval": "0.05", "edit_interval_group": "0.05"}
    given = {}
    for key in type(settings).model_fields:
        value = getattr(settings, key)
        # Half a second for a call, with which other tests are content, is too short for a busy machine.
        if value is not None and key != "call_seconds":
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            given[variable(("adapters", name, key))] = quick.get(key, text)
    return given


async def until(condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
    """Wait for what another process does; looking takes a fifth of the time at most."""
    async with asyncio.timeout(seconds):
        while True:
            began = time.monotonic()
            if condition():
                return
            await asyncio.sleep(max(0.02, 4 * (time.monotonic() - began)))


def replies(platform: LoopbackPlatform, channel: str) -> list[str]:
    """What the bot says in a channel and its threads."""
    return [seen.visible for seen in platform.seen(channel) if seen.author == "bot"]


def logged_errors(folder: Path) -> list[str]:
    """The lines of the log that tell of a fault: errors, and what is no line of a log."""
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


def memory(pid: int) -> int:
    """The bytes that a process holds and shares with nobody: its heap, not the libraries it reads."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
