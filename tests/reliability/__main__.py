"""`make reliability`: every figure at full size, a row each; ends with 1 if a promise was broken.

python -m tests.reliability [R1 R5 …] [--short] [--seed 7] [--write docs/RELIABILITY.md]
"""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import structlog

from tests.reliability.figure import Figure, Row, Scale, figures, title

BEGIN, END = "<!-- figures begin -->\n", "<!-- figures end -->\n"


async def measured(figure: Figure, scale: Scale, seed: int) -> list[Row]:
    """Run one figure, and tell each row as it comes."""
    rows: list[Row] = []
    async with aclosing(figure.rows(scale, seed)) as found:  # type: ignore[type-var]  # they are generators
        async for row in found:
            verdict = "ok" if row.is_kept and row.is_in_time else "FAILED" if not row.is_kept else "TOO SLOW"
            print(f"{figure.NAME:<4} {row.subject:<12} {verdict:<9} {row.told}", flush=True)
            rows.append(row)
    return rows


def table(measured: Sequence[tuple[Figure, Row]]) -> str:
    """The rows as a table in Markdown."""
    lines = ["| | broken | where | counted | |", "|---|---|---|---|---|"]
    told = None
    for figure, row in measured:
        name, broken = (figure.NAME, title(figure)) if told != figure.NAME else ("", "")
        told = figure.NAME
        verdict = "ok" if row.is_kept and row.is_in_time else "**missed**"
        lines.append(f"| {name} | {broken} | {row.subject} | {row.told.replace('|', '/')} | {verdict} |")
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Put the table between its two marks."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        sys.exit(f"{path} has no place for the table: the lines {BEGIN.strip()} and {END.strip()}")
    path.write_text(f"{before}{BEGIN}{text}{END}{after}", encoding="utf-8")


def main() -> None:
    """Run the figures named, or all."""
    known = figures()
    parser = argparse.ArgumentParser(description="What is broken on purpose, and counted.")
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(known), help=", ".join(known))
    parser.add_argument("--short", action="store_true", help="the size that `make test` runs")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--write", type=Path, help="put the table into this file, between its marks")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"there is no figure {unknown[0]}; there are {', '.join(known)}")
    # Whatever is broken is logged, a thousand times: only the rows are read here.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    done: list[tuple[Figure, Row]] = []
    scale: Scale = "short" if options.short else "full"
    for name in options.names:
        began = time.monotonic()
        print(f"\n{name}: {title(known[name])}", flush=True)
        done += [(known[name], row) for row in asyncio.run(measured(known[name], scale, options.seed))]
        print(f"     {time.monotonic() - began:.0f} s, seed {options.seed}", flush=True)
    if options.write:
        write(options.write, table(done))
    failed = sum(not (row.is_kept and row.is_in_time) for _, row in done)
    print(f"\n{len(done) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
