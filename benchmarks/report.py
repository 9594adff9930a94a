"""The table of a suite: measurements and targets, as Markdown for docs/PERFORMANCE.md or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Unit = Literal["tok/s", "ms", "s", "GB/s", "TFLOP/s", "share", "times", "files", "MB"]


@dataclass(frozen=True, slots=True)
class SuiteRow:
    """One measurement; `target` is the minimum, or the maximum if `is_limit`."""

    name: str
    value: float
    unit: Unit
    target: float | None = None
    is_limit: bool = False
    remark: str = ""

    @property
    def is_reached(self) -> bool | None:
        """Compare with the target; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.is_limit else self.value >= self.target


@dataclass(frozen=True, slots=True)
class SuiteTable:
    """Results of a suite on one machine."""

    suite: str
    date: str
    machine: dict[str, str | int]
    rows: tuple[SuiteRow, ...]

    @property
    def missed(self) -> int:
        return sum(row.is_reached is False for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        table = asdict(self)
        table["rows"] = [asdict(row) | {"is_reached": row.is_reached} for row in self.rows]
        return table | {"missed": self.missed}


def markdown(table: SuiteTable) -> Iterator[str]:
    """Yield the lines."""
    machine = table.machine
    yield (
        f"{table.date}, {machine['device_name']}, {machine['threads']} threads, torch {machine['torch']}, Python "
        f"{machine['python']}: `python -m bot bench --suite {table.suite}`"
    )
    yield ""
    yield "| | measured | target | | |"
    yield "|---|---:|---:|---|---|"
    for row in table.rows:
        target = "" if row.target is None else f"{'≤' if row.is_limit else '≥'} {quantity(row.target, row.unit)}"
        verdict = {None: "", True: "reached", False: "**missed**"}[row.is_reached]
        yield f"| {row.name} | {quantity(row.value, row.unit)} | {target} | {verdict} | {row.remark} |"


def print_rows(rows: Sequence[SuiteRow]) -> int:
    """Print rows whose targets are limits; return the exit code, 1 if one is missed."""
    for row in rows:
        verdict = {None: "", True: "reached", False: "MISSED"}[row.is_reached]
        target = "" if row.target is None else f"at most {quantity(row.target, row.unit)}, {verdict}"
        print(f"{row.name:<24} {quantity(row.value, row.unit):>10}  {target:<24} {row.remark}")
    return 1 if any(row.is_reached is False for row in rows) else 0


def quantity(value: float, unit: Unit) -> str:
    """Format a value with its unit, in three digits or more.

    >>> quantity(0.756, "share"), quantity(2.5, "times"), quantity(8000, "tok/s"), quantity(40.25, "GB/s")
    ('76 %', '2.50 times', '8,000 tok/s', '40.2 GB/s')
    """
    if unit == "share":
        return f"{value * 100:.0f} %"
    if unit == "files":
        return f"{value:.0f} files"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that at least `share` of all samples do not exceed; 0 without samples.

    >>> percentile([5, 1, 2, 3, 4], 0.8), percentile([], 0.8)
    (4, 0.0)
    """
    if not samples:  # every answer came in one piece
        return 0.0
    ordered = sorted(samples)
    return ordered[max(0, -(-int(len(ordered) * share * 1000) // 1000) - 1)]
