"""`make reliability`: run the figures at full size; exit code 1 if one fails.

python -m tests.reliability [kills R5 "wrong answers" …] [--short] [--seed 7] [--engine remote]
    [--write docs/RELIABILITY.md]
"""

import argparse
import asyncio
import logging
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import structlog

from tests.chaos import one_platform
from tests.chaos.figure import Figure, Row, Scale, figures, find, title, word
from tests.reliability.page import with_measurement
from tests.reliability.run import measure, remote_engine


def main() -> None:
    """Run the named figures, or all."""
    known = figures()
    words = ", ".join(f"{word(figure)} ({name})" for name, figure in known.items())
    parser = argparse.ArgumentParser(description="Inject faults, and count what is lost, repeated or late.")
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(known), help=words)
    parser.add_argument("--short", action="store_true", help="the size of `make test`")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--engine",
        choices=["direct", "remote"],
        default="direct",
        help="remote: answers come from a model server on loopback (R1, R8, R9, R12, R13)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=one_platform.SECONDS,
        help='of each trouble of "one platform"; 600 takes 2 hours',
    )
    parser.add_argument("--write", type=Path, help="write the rows to the tables in this file, between their marks")
    options = parser.parse_args()
    one_platform.SECONDS = options.seconds
    chosen = []
    for name in options.names:
        figure = find(name)
        if figure is None:
            parser.error(f"unknown figure {name}; choose from {words}")
        chosen.append(figure)
    # Each injected fault is logged, which would bury the rows.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    done: list[Row] = []
    scale: Scale = "short" if options.short else "full"
    for figure in chosen:
        began = time.monotonic()
        print(f"\n{word(figure)} ({figure.NAME}): {title(figure)}", flush=True)
        rows = asyncio.run(_measure(figure, scale, options.seed, options.engine))
        seconds = time.monotonic() - began
        print(f"     {seconds:.0f} s, seed {options.seed}", flush=True)
        done += rows
        if options.write:  # at once: the next figure may take 20 min
            text = options.write.read_text(encoding="utf-8")
            options.write.write_text(with_measurement(text, figure, rows, seconds, options.seed), encoding="utf-8")
    failed = sum(not (row.is_kept and row.is_in_time) for row in done)
    print(f"\n{len(done) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


async def _measure(figure: Figure, scale: Scale, seed: int, engine: str) -> list[Row]:
    async with remote_engine() if engine == "remote" else nullcontext():
        return await measure(figure, scale, seed)


if __name__ == "__main__":
    main()
