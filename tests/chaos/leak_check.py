"""Record unhandled task errors, logged errors, and user text in the log."""

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
class LeakCheck:
    """Findings so far; `unhandled` are errors of tasks."""

    unhandled: list[str] = field(default_factory=list)
    stream: io.StringIO = field(default_factory=io.StringIO)

    def _events(self) -> Iterator[dict[str, Any]]:
        for line in self.stream.getvalue().splitlines():
            yield json.loads(line)

    @property
    def crashes(self) -> Counter[str]:
        """Count the errors in the log by logger and event."""
        return Counter(
            f"{event['logger']}: {str(event['event']).splitlines()[0][:80]}"
            for event in self._events()
            # The loopback server logs an error when the bot closes a connection.
            if event["level"] in ("error", "critical") and not event["logger"].startswith("aiohttp.server")
        )

    def leaks(self, mark: str) -> list[str]:
        """Return the lines of the log that contain `mark`."""
        return [line for line in self.stream.getvalue().splitlines() if mark in line]


@contextmanager
def leak_check() -> Iterator[LeakCheck]:
    """Watch the running loop and all logs at level debug."""
    check, loop, root = LeakCheck(), asyncio.get_running_loop(), logging.getLogger()
    handlers, level, configuration = root.handlers[:], root.level, structlog.get_config()
    own = logging.getLogger("bot").level

    def unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        check.unhandled.append(f"{context['message']}: {context.get('exception')!r}")

    loop.set_exception_handler(unhandled)
    configure_logging(LogsSection(level="debug", format="json"), stream=check.stream)
    try:
        yield check
    finally:
        loop.set_exception_handler(None)
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("bot").setLevel(own)
        logging.captureWarnings(False)
        structlog.configure(**configuration)
