"""The tables in docs/RELIABILITY.md: a new measurement replaces only its own lines."""

from pathlib import Path

import pytest

from tests.chaos import full_disk, kills
from tests.chaos.figure import Row, figures, title, word
from tests.reliability.page import ROWS, SUMMARY, details, summary, with_measurement

ROOT = Path(__file__).parents[2]
EMPTY = f"before\n{SUMMARY.begin}{SUMMARY.head}{SUMMARY.end}between\n{ROWS.begin}{ROWS.head}{ROWS.end}after\n"
KEPT = Row("store", "nothing lost", is_kept=True)


def test_a_new_measurement_replaces_its_own_lines_in_both_tables() -> None:
    text = with_measurement(EMPTY, full_disk, [KEPT], 1.0, 7)
    text = with_measurement(text, kills, [Row("store", "old", is_kept=True)], 1.0, 7)
    text = with_measurement(text, kills, [Row("store", "new", is_kept=True)], 2.0, 8)

    for table in (SUMMARY, ROWS):
        lines = text.partition(table.begin)[2].partition(table.end)[0].splitlines()[2:]
        assert [line.split("|")[1].strip() for line in lines] == ["kills", "full disk"]
    assert "| new |" in text
    assert "| old |" not in text
    assert (text.startswith("before\n"), "\nbetween\n" in text, text.endswith("after\n")) == (True, True, True)


def test_a_missed_row_is_marked_in_both_tables() -> None:
    rows = [
        Row("slack", "lost 0 | twice 0", is_kept=True),
        Row("discord", "late\n  why", is_kept=True, is_in_time=False),
    ]
    assert summary(kills, rows, 12.3, 7) == f"| kills | R1 | {title(kills)} | **1 of 2** | seed 7, 12 s |"
    assert details(kills, rows) == [
        "| kills | slack | lost 0 / twice 0 | ok |",
        "| kills | discord | late why | **missed** |",
    ]


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="are missing"):
        with_measurement("nothing here", kills, [KEPT], 1.0, 7)


def test_the_page_lists_every_figure() -> None:
    page = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    missing = [name for name, each in figures().items() if f"| {word(each)} | {name} | {title(each)} |" not in page]
    assert missing == [], "make reliability ARGS='… --write docs/RELIABILITY.md'"
