"""tests/FAULTS.md names tests and figures that exist."""

import re
from pathlib import Path

from tests.chaos.figure import figures

TESTS = Path(__file__).parents[1]
PAGE = (TESTS / "FAULTS.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| fault", "| kind"))]


def test_each_fault_names_tests_that_exist() -> None:
    for row in ROWS:
        named = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", row)
        assert named, row
        for file, tests in named:
            written = (TESTS / file).read_text(encoding="utf-8")
            for test in re.findall(r"`(\w+)`", tests):
                assert f"def {test}(" in written, (file, test)


def test_the_figures_that_are_named_exist() -> None:
    assert set(re.findall(r"\bR\d+\b", PAGE)) <= figures().keys()
