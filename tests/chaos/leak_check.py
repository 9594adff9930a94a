"""What nobody would see go wrong: errors in tasks and in the log, and junk that the log holds."""

import asyncio
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from bot.config.schema import LogsSection
from bot.observability.logging import configure_logging


@dataclass
class Witness:
    """What was seen so far; `crashes` are errors that nobody expected, of tasks and of ours."""

    unhandled: list[str] = field(default_factory=list)
    stream: io.StringIO = field(default_factory=io.StringIO)

    def _events(self) -> Iterator[dict[str, Any]]:
        for line in self.stream.getvalue().splitlines():
            yield json.loads(line)

    @property
    def crashes(self) -> Counter[str]:
        """Errors in the log, by who reports them and what."""
        return Counter(
            f"{event['logger']}: {str(event['event']).splitlines()[0][:80]}"
            for event in self._events()
            # The loopback server's own library says when the bot hangs up on it.
            if event["level"] in ("error", "critical") and not event["logger"].startswith("aiohttp.server")
        )

    def leaks(self, mark: str) -> list[str]:
        """The lines that hold this text."""
        return [line for line in self.stream.getvalue().splitlines() if mark in line]


@contextmanager
def a_witness() -> Iterator[Witness]:
    """Listen to the running loop and to all logs, as an operator has them who wants to know everything."""
    witness, loop, root = Witness(), asyncio.get_running_loop(), logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    own = logging.getLogger("bot").level

    def unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        witness.unhandled.append(f"{context['message']}: {context.get('exception')!r}")

    loop.set_exception_handler(unhandled)
    configure_logging(LogsSection(level="debug", format="json"), stream=witness.stream)
    try:
        yield witness
    finally:
        loop.set_exception_handler(None)
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("bot").setLevel(own)
        logging.captureWarnings(False)
        structlog.configure(**configuration)
