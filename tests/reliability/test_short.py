"""Every figure in its short form: results only, whatever the speed of the machine."""

import pytest

from tests.chaos import processes
from tests.chaos.figure import figures
from tests.harness import loop_monitor
from tests.reliability.run import measure

FIGURES = figures()
# R25's platform recovers after the longest back-off, which is minutes: `make reliability ARGS="R25"`.
# The bots of R34 end by themselves where a busy machine stands still for seconds, and then they take minutes.
_LONG = {"R25", "R34"}


@pytest.fixture(autouse=True)
def _warm_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "start", processes.start_warm)


@pytest.fixture(autouse=True)
def _any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    # `make reliability` judges 20 ms; here only what would stop a bot on any machine.
    monkeypatch.setenv(loop_monitor.LIMIT_VARIABLE, "0.5")


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in _LONG])
async def test_the_promise_is_kept(name: str) -> None:
    rows = await measure(FIGURES[name], "short", seed=7)

    assert rows, "a figure counts something"
    assert [row for row in rows if not row.is_kept] == []
