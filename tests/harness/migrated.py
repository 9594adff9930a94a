"""New SQLite databases of the tests: copies of one that the migrations have made.

Alembic takes 50 ms of CPU time for a new file, in half of all tests. Only the opening of a store is replaced, and only
for a file that does not exist yet: `migrate.upgrade` itself, files of older versions, PostgreSQL and started programs
run the migrations. SQLAlchemy takes 20 ms per test to compile the same statements; it does so once per process.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bot.storage import migrate
from bot.storage.connections import BUSY_TIMEOUT, locate

_numbers = count()


class _Compiled(dict[Any, Any]):
    """Statements of all SQLite engines: SQLAlchemy's keys begin with the engine's own dialect."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(key[1:], default)

    def __setitem__(self, key: Any, statement: Any) -> None:
        super().__setitem__(key[1:], statement)


@contextmanager
def stores_open_on_copies() -> Iterator[None]:
    """Let the stores of this process create their files from a template."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        template = Path(folder) / "template.db"
        migrate.upgrade(f"sqlite+aiosqlite:///{template}")

        def upgrade(url: str, busy_timeout: float = BUSY_TIMEOUT) -> None:
            path = locate(url).path
            if path is None or not _is_copied(template, path):
                migrate.upgrade(url, busy_timeout)

        compiled = _Compiled()

        def create(url: Any, **options: Any) -> AsyncEngine:
            engine = create_async_engine(url, **options)
            if engine.dialect.name == "sqlite":
                engine.update_execution_options(compiled_cache=compiled)
            return engine

        patch.setattr("bot.storage.opened.migrate", SimpleNamespace(upgrade=upgrade))
        patch.setattr("bot.storage.connections.create_async_engine", create)
        yield


def _is_copied(template: Path, path: Path) -> bool:
    """Create the file, whole from the beginning; return False if it exists, or its folder is unusable."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{next(_numbers)}")
    try:
        if path.exists():
            return False
        shutil.copy(template, part)  # with its mode
        os.link(part, path)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return True
