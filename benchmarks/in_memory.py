"""The whole program, run by `bot.app`, on a platform in memory: what a message costs without a network.

Everything of bot/ is looked up by name while it runs, so that the same measurement can be made of an older
checkout: `use_checkout` must then come before any import of bot.
"""

import asyncio
import io
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Modules of a symbol, the current one first; ":name" where it had another name.
_PLACES = {
    "Config": ("bot.config.schema", "bot.config"),
    "ConsoleSection": ("bot.adapters.console.settings", "bot.adapters.console_settings"),
    "EngineSection": ("bot.config.schema", "bot.config"),
    "LimitsSection": ("bot.config.schema", "bot.config"),
    "LogsSection": ("bot.config.schema", "bot.config"),
    "MarkdownFormat": ("bot.delivery.markdown.format", "bot.markup.format"),
    "Replies": ("bot.delivery.replies", "bot.adapters.base"),
    "StorageSection": ("bot.config.schema", "bot.config"),
    "configure_logging": ("bot.observability.logging", "bot.logs:set_up"),
}
UNLIMITED = (
    "requests_per_minute", "requests_per_minute_channel", "tokens_per_hour", "tokens_per_hour_channel",
    "waiting_per_user", "waiting_per_channel",
)  # fmt: skip


def use_checkout(folder: Path) -> None:
    """Import bot from this checkout instead of the one beside this file."""
    assert "bot" not in sys.modules, "bot is imported already"
    sys.path.insert(0, str(folder))


def find(symbol: str) -> Any:
    """Look a symbol of bot/ up in the first of its modules that exists."""
    for place in _PLACES[symbol]:
        module, _, name = place.partition(":")
        try:
            return getattr(import_module(module), name or symbol)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise LookupError(f"{symbol} is in none of {', '.join(_PLACES[symbol])}")


class MemoryMessenger:
    """A Messenger whose calls succeed at once; `calls` counts them by verb."""

    def __init__(self) -> None:
        self.format = find("MarkdownFormat")(2000)
        self.calls = {"send": 0, "edit": 0, "delete": 0}
        self._ids = count(1)

    def edit_interval(self, channel: object) -> float:
        return 0.25  # seconds; the echo engine is done long before, so a reply is a placeholder and one edit

    async def send(self, channel: object, text: object, **_: object) -> str:
        self.calls["send"] += 1
        return f"m{next(self._ids)}"

    async def edit(self, channel: object, message_id: str, text: object, **_: object) -> None:
        self.calls["edit"] += 1

    async def delete(self, channel: object, message_id: str) -> None:
        self.calls["delete"] += 1


class MemoryPlatform:
    """The adapter: a mention is a method call."""

    is_connected = True

    def __init__(self) -> None:
        self.messenger = MemoryMessenger()
        self.connected = asyncio.Event()
        self._ids = count(1)
        self._replies: Any = None

    def open(self, clock: Any, *meter: Any) -> "MemoryPlatform":
        """Take what `open_adapter` is given."""
        self._clock = clock
        self._metered = meter[0](self.messenger) if meter else self.messenger
        return self

    async def run(self, intake: Any) -> None:
        async with find("Replies")(intake, self._metered, self._clock) as replies:
            self._replies = replies
            self.connected.set()
            await asyncio.get_running_loop().create_future()

    async def mention(self, channel: int, text: str) -> None:
        """Deliver one mention; return once it is accepted and could be acknowledged."""
        domain = import_module("bot.domain")
        message = domain.IncomingMessage(
            id=str(next(self._ids)),
            channel=domain.ChannelKey("discord", f"c{channel}"),
            author=domain.Author("discord", f"u{channel}", "Mei"),
            text=text,
            sent_at=datetime.now(UTC),
        )
        replies = self._replies
        await (replies.accept_and_reply if hasattr(replies, "accept_and_reply") else replies.take)(message)

    async def idle(self) -> None:
        """Wait until every reply is complete."""
        replies = self._replies
        await (replies.wait_idle if hasattr(replies, "wait_idle") else replies.finished)()


def log_to_memory() -> None:
    """Log as the program does by default, without printing."""
    find("configure_logging")(find("LogsSection")(format="json"), stream=io.StringIO())


@asynccontextmanager
async def running_bot(backend: str = "echo", **sections: Any) -> AsyncIterator[MemoryPlatform]:
    """Run the program on a database in a temporary folder; `sections` replace its settings."""
    app, platform = import_module("bot.app"), MemoryPlatform()
    with (
        patch.object(app, "open_adapter", lambda name, settings, *parts: platform.open(*parts)),
        tempfile.TemporaryDirectory() as folder,
    ):
        defaults = {
            "engine": find("EngineSection")(backend=backend, max_batch_size=64, max_waiting=1000),
            "limits": find("LimitsSection")(**dict.fromkeys(UNLIMITED, 0)),
            "storage": find("StorageSection")(url=f"sqlite+aiosqlite:///{Path(folder) / 'bot.db'}"),
            "adapters": {"console": find("ConsoleSection")()},
        }
        config = find("Config")(**(defaults | sections))
        bot = asyncio.create_task(app.run(config, lambda done, total: None))
        try:
            connected = asyncio.create_task(platform.connected.wait())
            await asyncio.wait([bot, connected], return_when=asyncio.FIRST_COMPLETED)
            if bot.done():
                bot.result()
            yield platform
        finally:
            bot.cancel()
            await asyncio.gather(bot, return_exceptions=True)
