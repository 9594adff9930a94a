"""The tables in docs/RELIABILITY.md: a line per figure, and all rows in the appendix."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.figure import Figure, Row, figures, title, word

# Where files are is of no interest to readers of the page.
_ROOT = f"{Path(__file__).parents[2]}/"


@dataclass(frozen=True, slots=True)
class Table:
    """A table between two marks; the first column of each line is the figure's word."""

    mark: str
    head: str

    @property
    def begin(self) -> str:
        return f"<!-- {self.mark} begin -->\n"

    @property
    def end(self) -> str:
        return f"<!-- {self.mark} end -->\n"


SUMMARY = Table("figures", "| fault | | what is injected | kept | measured |\n|---|---|---|---|---|\n")
ROWS = Table("rows", "| fault | where | counted | |\n|---|---|---|---|\n")


def with_measurement(text: str, figure: Figure, rows: Sequence[Row], seconds: float, seed: int) -> str:
    """Return the page with this figure's lines replaced in both tables.

    Raises:
        ValueError: The page has no marks for a table.
    """
    return _with_lines(
        _with_lines(text, SUMMARY, figure, [summary(figure, rows, seconds, seed)]), ROWS, figure, details(figure, rows)
    )


def summary(figure: Figure, rows: Sequence[Row], seconds: float, seed: int) -> str:
    """Return the figure's line of the summary."""
    kept = sum(row.is_kept and row.is_in_time for row in rows)
    verdict = f"{kept} of {len(rows)}" if kept == len(rows) else f"**{kept} of {len(rows)}**"
    return f"| {word(figure)} | {figure.NAME} | {title(figure)} | {verdict} | seed {seed}, {seconds:.0f} s |"


def details(figure: Figure, rows: Sequence[Row]) -> list[str]:
    """Return the figure's lines of the appendix, one per row."""
    lines = []
    for row in rows:
        verdict = "ok" if row.is_kept and row.is_in_time else "**missed**"
        result = " ".join(row.result.replace("|", "/").replace(_ROOT, "").split())
        lines.append(f"| {word(figure)} | {row.subject} | {result} | {verdict} |")
    return lines


def _with_lines(text: str, table: Table, figure: Figure, lines: list[str]) -> str:
    before, begin, rest = text.partition(table.begin)
    old, end, after = rest.partition(table.end)
    if not begin or not end:
        raise ValueError(f"the lines {table.begin.strip()} and {table.end.strip()} are missing: they mark a table")
    kept: dict[str, list[str]] = {}
    for line in old.splitlines()[2:]:
        kept.setdefault(line.split("|")[1].strip(), []).append(line)
    kept[word(figure)] = lines
    ordered = [line for each in figures().values() for line in kept.get(word(each), [])]
    return before + begin + table.head + "".join(f"{line}\n" for line in ordered) + end + after
