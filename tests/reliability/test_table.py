"""The table in docs/RELIABILITY.md: what is measured anew replaces its own lines and no others."""

from pathlib import Path

import pytest

from tests.chaos import kills
from tests.chaos.figure import Row, figures, title
from tests.reliability.__main__ import BEGIN, END, lines_of, written

ROOT = Path(__file__).parents[2]
EMPTY = f"before\n{BEGIN}| | where | counted | |\n|---|---|---|---|\n{END}after\n"


def test_figures_measured_one_by_one_stand_in_their_order() -> None:
    text = written(EMPTY, {"R10": ["| **R10** | | b | seed 7, 1 s |", "| R10 | store | ten | ok |"]})
    text = written(text, {"R2": ["| **R2** | | a | seed 7, 1 s |", "| R2 | store | old | ok |"]})
    text = written(text, {"R2": ["| **R2** | | a | seed 8, 1 s |", "| R2 | store | new | ok |"]})

    table = text.partition(BEGIN)[2].partition(END)[0]
    assert [line.split("|")[3].strip() for line in table.splitlines()[2:]] == ["a", "new", "b", "ten"]
    assert (text.startswith("before\n"), text.endswith("after\n")) == (True, True)


def test_a_row_that_was_missed_says_so() -> None:
    rows = [Row("slack", "lost 0 | twice 0", is_kept=True), Row("discord", "late", is_kept=True, is_in_time=False)]
    heading, kept, late = lines_of(kills, rows, 12.3, 7)
    assert title(kills) in heading
    assert kept == "| R1 | slack | lost 0 / twice 0 | ok |"
    assert late == "| R1 | discord | late | **missed** |"


def test_a_page_without_a_place_for_it_is_not_touched() -> None:
    with pytest.raises(ValueError, match="no place"):
        written("nothing here", {})


def test_the_page_has_every_figure() -> None:
    page = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    assert all(f"| **{name}** | | {title(figure)} |" in page for name, figure in figures().items())
