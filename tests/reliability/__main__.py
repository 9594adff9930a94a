"""`make reliability`: run the figures at full size; exit code 1 if one fails.

python -m tests.reliability [R1 R5 …] [--short] [--seed 7] [--write docs/RELIABILITY.md]
"""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import structlog

from tests.chaos.figure import Figure, Row, Scale, figures, number_of, title

BEGIN, END = "<!-- figures begin -->\n", "<!-- figures end -->\n"


async def measure(figure: Figure, scale: Scale, seed: int) -> list[Row]:
    """Run one figure, printing each row as it comes."""
    rows: list[Row] = []
    async with aclosing(figure.rows(scale, seed)) as found:  # type: ignore[type-var]  # they are generators
        async for row in found:
            verdict = "ok" if row.is_kept and row.is_in_time else "FAILED" if not row.is_kept else "TOO SLOW"
            print(f"{figure.NAME:<4} {row.subject:<12} {verdict:<9} {row.result}", flush=True)
            rows.append(row)
    return rows


def table_lines(figure: Figure, rows: Sequence[Row], seconds: float, seed: int) -> list[str]:
    """Return a figure's lines of the Markdown table: its fault, then a row per subject."""
    lines = [f"| **{figure.NAME}** | | {title(figure)} | seed {seed}, {seconds:.0f} s |"]
    for row in rows:
        verdict = "ok" if row.is_kept and row.is_in_time else "**missed**"
        lines.append(f"| {figure.NAME} | {row.subject} | {row.result.replace('|', '/')} | {verdict} |")
    return lines


def with_rows(text: str, new: Mapping[str, list[str]]) -> str:
    """Return the text with these figures' lines replaced in its table.

    Raises:
        ValueError: The text has no marks for a table.
    """
    before, begin, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the lines {BEGIN.strip()} and {END.strip()} are missing: they mark the table")
    kept: dict[str, list[str]] = {}
    for line in old.splitlines()[2:]:
        kept.setdefault(line.split("|")[1].strip(" *"), []).append(line)
    kept |= new
    lines = [line for name in sorted(kept, key=number_of) for line in kept[name]]
    return before + BEGIN + "\n".join(["| | where | counted | |", "|---|---|---|---|", *lines, ""]) + END + after


def main() -> None:
    """Run the named figures, or all."""
    known = figures()
    parser = argparse.ArgumentParser(description="Inject faults, and count what is lost, repeated or late.")
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(known), help=", ".join(known))
    parser.add_argument("--short", action="store_true", help="the size of `make test`")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--write", type=Path, help="write the rows to the table in this file, between its marks")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"unknown figure {unknown[0]}; choose from {', '.join(known)}")
    # Each injected fault is logged, which would bury the rows.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    done: list[Row] = []
    scale: Scale = "short" if options.short else "full"
    for name in options.names:
        began = time.monotonic()
        print(f"\n{name}: {title(known[name])}", flush=True)
        rows = asyncio.run(measure(known[name], scale, options.seed))
        seconds = time.monotonic() - began
        print(f"     {seconds:.0f} s, seed {options.seed}", flush=True)
        done += rows
        if options.write:  # at once: the next figure may take 20 min
            text = options.write.read_text(encoding="utf-8")
            new = {name: table_lines(known[name], rows, seconds, options.seed)}
            options.write.write_text(with_rows(text, new), encoding="utf-8")
    failed = sum(not (row.is_kept and row.is_in_time) for row in done)
    print(f"\n{len(done) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
