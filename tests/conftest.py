"""Shared fixtures: a harness on a new database, a PostgreSQL server."""

import os

# Before torch is imported: a second thread does not help matrices this small, and the other cores run other tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
import torch
from hypothesis import settings

from tests.harness.harness import Harness, make_harness
from tests.harness.migrated import stores_open_on_copies
from tests.harness.postgres import MISSING, PostgresServer, programs

# Triton chooses between interpreter and GPU at its import, and other libraries import it too.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples in each run, so that a failure means a changed program. For new examples:  HYPOTHESIS_PROFILE=default make test
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# Logs go to pytest: standard output belongs to the console adapter.
structlog.configure(
    processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of worker processes: one more than cores, since tests also wait."""
    return min(1 + (os.cpu_count() or 1), 8)  # each holds 0.7 GB


def pytest_collection() -> None:
    """Keep the garbage collector from scanning half a million imported objects."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each reason for skipped tests once."""
    for reason in sorted({skipped.longrepr[2] for skipped in terminalreporter.stats.get("skipped", ())}):
        terminalreporter.write_line(reason)


@pytest.fixture(scope="session", autouse=True)
def migrated() -> Iterator[None]:
    """Copy new databases from one that the migrations have made."""
    with stores_open_on_copies():
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for the whole run; without one its tests are skipped."""
    folder = programs()
    if folder is None:
        # Set in CI: there, a skipped test is an error.
        (pytest.fail if os.environ.get("REQUIRE_POSTGRES") else pytest.skip)(MISSING)
    with PostgresServer(folder) as server:
        yield server


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with make_harness(tmp_path) as harness:
        yield harness
