"""Shows a suite's table: as Markdown, which stands in docs/PERFORMANCE.md as it is, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from benchmarks.goals import Row, Table, Unit


def show_suite(table: Table, *, as_json: bool) -> None:
    """Print it on standard output."""
    if as_json:
        click.echo(json.dumps(table.as_json(), indent=2))
        return
    for line in markdown(table):
        click.echo(line)


def markdown(table: Table) -> Iterator[str]:
    """Yield the lines."""
    machine = table.machine
    yield (
        f"{table.date}, {machine.device_name}, {machine.threads} threads, torch {machine.torch}, Python "
        f"{machine.python}: `python -m bot bench --suite {table.suite}`"
    )
    yield ""
    yield "| | measured | goal | | |"
    yield "|---|---:|---:|---|---|"
    for row in table.rows:
        goal = "" if row.goal is None else f"{'≤' if row.is_limit else '≥'} {quantity(row.goal, row.unit)}"
        yield f"| {row.what} | {quantity(row.figure, row.unit)} | {goal} | {_verdict(row)} | {row.remark} |"


def _verdict(row: Row) -> str:
    return {None: "", True: "reached", False: "**missed**"}[row.is_reached]


def quantity(value: float, unit: Unit) -> str:
    """Write a figure with its unit, in three digits or more.

    >>> quantity(0.756, "share"), quantity(2.5, "times"), quantity(8000, "tok/s"), quantity(40.25, "GB/s")
    ('76 %', '2.50 times', '8,000 tok/s', '40.2 GB/s')
    """
    if unit == "share":
        return f"{value * 100:.0f} %"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
