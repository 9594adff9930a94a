"""What many tests need: a harness on a database of its own."""

import os

# Before torch is imported: matrices this small are done before a second thread wakes up, and the other cores have
# other tests to run.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
import torch
from hypothesis import settings

from tests.harness.harness import Harness, make_harness
from tests.harness.postgres import MISSING, PostgresServer, programs

# Triton decides at its import whether kernels are interpreted, and other libraries import it too.  Where there is a
# GPU they run on it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples each time, so that a red run means a changed program; for a search
# through new ones:  HYPOTHESIS_PROFILE=default make test
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

# Logs go where pytest shows them, never to standard output, which is the console adapter's.
structlog.configure(
    processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)


def pytest_xdist_auto_num_workers() -> int:
    """How many processes `make test` shares the tests among: one waits while the others keep the cores busy."""
    return min(1 + (os.cpu_count() or 1), 8)  # each holds 0.7 GB


def pytest_collection() -> None:
    """Spare the garbage collector what is imported: half a million objects, looked through again and again."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell once why tests were skipped, not once for each of them."""
    for reason in sorted({skipped.longrepr[2] for skipped in terminalreporter.stats.get("skipped", ())}):
        terminalreporter.write_line(reason)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for the whole run; without one, what asks for it is skipped."""
    folder = programs()
    if folder is None:
        # .ci/run sets this: there, not testing something is a fault.
        (pytest.fail if os.environ.get("REQUIRE_POSTGRES") else pytest.skip)(MISSING)
    with PostgresServer(folder) as server:
        yield server


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    async with make_harness(tmp_path) as harness:
        yield harness
