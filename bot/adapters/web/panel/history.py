"""Changes of config.toml that were made in the panel, kept in a file beside the database."""

import asyncio
import json
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from bot.config.changes import ValueChange
from bot.util.files import read_regular, replace_file

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Changes that are kept, and characters of a name or value.
MOST_KEPT = 1_000
_MOST_CHARACTERS = 500
_LARGEST_FILE = 16 * 2**20


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A setting that a person changed in config.toml; `by` is their id."""

    at: datetime
    by: str
    value: ValueChange


class ConfigHistory:
    """The latest changes; the file has one line of JSON for each, oldest first.

    Without a path they are kept for this run.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._changes = deque([] if path is None else _read(path), MOST_KEPT)
        self.revision = 0  # raised by each record

    def latest(self, limit: int) -> list[ConfigChange]:
        """Return the latest changes, newest first."""
        return list(reversed(self._changes))[:limit]

    async def record(self, values: Iterable[ValueChange], by: str, at: datetime) -> None:
        """Keep changes; if the file cannot be written, for this run only."""
        new = [ConfigChange(at, by, _cut(value)) for value in values]
        if not new:
            return
        async with self._lock:
            self._changes += new
            self.revision += 1
            if self._path is not None:
                await asyncio.to_thread(_write, self._path, list(self._changes))


def _cut(value: ValueChange) -> ValueChange:
    shown = (None if text is None else _shortened(text) for text in (value.setting, value.before, value.after))
    setting, before, after = shown
    return ValueChange(setting or "", before, after)


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


def _read(path: Path) -> list[ConfigChange]:
    try:
        lines = read_regular(path, _LARGEST_FILE).decode("utf-8", "replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("earlier changes of config.toml cannot be shown", file=str(path), error=error.strerror)
        return []
    written = [line for line in lines if line]
    changes = [change for line in written if (change := _parsed(line)) is not None]
    if damaged := len(written) - len(changes):
        log.warning("lines about changes of config.toml are damaged", file=str(path), count=damaged)
    return changes


def _write(path: Path, changes: list[ConfigChange]) -> None:
    lines = [
        json.dumps({"at": change.at.isoformat(), "by": change.by, **asdict(change.value)}, ensure_ascii=False)
        for change in changes
    ]
    try:
        path.touch(0o600)
        replace_file(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
    except OSError as error:
        log.warning("a restart loses the latest changes of config.toml", file=str(path), error=error.strerror)


def _parsed(line: str) -> ConfigChange | None:
    try:
        found: Any = json.loads(line)
        match found:
            case {"at": str(at), "by": str(by), "setting": str(setting), "before": before, "after": after} if all(
                isinstance(each, str | None) for each in (before, after)
            ):
                return ConfigChange(datetime.fromisoformat(at).astimezone(UTC), by, ValueChange(setting, before, after))
    except (RecursionError, ValueError):
        pass
    return None
