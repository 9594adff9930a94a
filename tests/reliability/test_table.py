"""The table in docs/RELIABILITY.md: a new measurement replaces only its own lines."""

from pathlib import Path

import pytest

from tests.chaos import kills
from tests.chaos.figure import Row, figures, title
from tests.reliability.__main__ import BEGIN, END, table_lines, with_rows

ROOT = Path(__file__).parents[2]
EMPTY = f"before\n{BEGIN}| | where | counted | |\n|---|---|---|---|\n{END}after\n"


def test_figures_measured_one_by_one_are_sorted_by_number() -> None:
    text = with_rows(EMPTY, {"R10": ["| **R10** | | b | seed 7, 1 s |", "| R10 | store | ten | ok |"]})
    text = with_rows(text, {"R2": ["| **R2** | | a | seed 7, 1 s |", "| R2 | store | old | ok |"]})
    text = with_rows(text, {"R2": ["| **R2** | | a | seed 8, 1 s |", "| R2 | store | new | ok |"]})

    table = text.partition(BEGIN)[2].partition(END)[0]
    assert [line.split("|")[3].strip() for line in table.splitlines()[2:]] == ["a", "new", "b", "ten"]
    assert (text.startswith("before\n"), text.endswith("after\n")) == (True, True)


def test_a_missed_row_is_marked() -> None:
    rows = [Row("slack", "lost 0 | twice 0", is_kept=True), Row("discord", "late", is_kept=True, is_in_time=False)]
    heading, kept, late = table_lines(kills, rows, 12.3, 7)
    assert title(kills) in heading
    assert kept == "| R1 | slack | lost 0 / twice 0 | ok |"
    assert late == "| R1 | discord | late | **missed** |"


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="are missing"):
        with_rows("nothing here", {})


def test_the_page_lists_every_figure() -> None:
    page = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    assert all(f"| **{name}** | | {title(figure)} |" in page for name, figure in figures().items())
