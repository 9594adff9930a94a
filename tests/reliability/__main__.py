"""`make reliability`: run the figures at full size; exit code 1 if one fails.

python -m tests.reliability [kills R5 "wrong answers" …] [--short] [--seed 7] [--jobs 2] [--engine remote]
    [--questions 2000] [--write docs/RELIABILITY.md]
"""

import argparse
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.chaos import one_platform
from tests.chaos.figure import figures, find, word
from tests.reliability.page import with_measurement
from tests.reliability.run import Measurement, Options, measure_by_name


def main() -> None:
    """Run the named figures, or all."""
    known = figures()
    words = ", ".join(f"{word(figure)} ({name})" for name, figure in known.items())
    parser = argparse.ArgumentParser(description="Inject faults, and count what is lost, repeated or late.")
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(known), help=words)
    parser.add_argument("--short", action="store_true", help="the size of `make test`")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="measure so many figures at the same time; one that is only too slow is measured again, alone",
    )
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
    parser.add_argument(
        "--questions", type=int, help='of "ledger" (10,000, with a kill per 50) and "channel settings" (20,000)'
    )
    parser.add_argument("--write", type=Path, help="write the rows to the tables in this file, between their marks")
    given = parser.parse_args()
    chosen = []
    for name in given.names:
        figure = find(name)
        if figure is None:
            parser.error(f"unknown figure {name}; choose from {words}")
        chosen.append(figure.NAME)
    options = Options("short" if given.short else "full", given.seed, given.engine, given.seconds, given.questions)
    done: dict[str, Measurement] = {}
    slow: list[str] = []
    for one in _measured(chosen, options, given.jobs):
        if one.is_only_slow and given.jobs > 1:
            slow.append(one.name)
            print(f"{one.name} was too slow beside others: it is measured again, alone", flush=True)
            continue
        done[one.name] = one
        _write(one, given.write, options.seed)
    for one in _measured(slow, options, jobs=1):
        done[one.name] = one
        _write(one, given.write, options.seed)
    failed = sum(one.failed for one in done.values())
    print(f"\n{sum(len(one.rows) for one in done.values()) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


def _measured(names: Sequence[str], options: Options, jobs: int) -> Iterator[Measurement]:
    """Measure each figure in a process of its own, and yield it as soon as it is done."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        for future in as_completed([pool.submit(measure_by_name, name, options) for name in names]):
            yield future.result()


def _write(one: Measurement, page: Path | None, seed: int) -> None:
    if page:  # after each figure: the next one may take 20 min
        text = page.read_text(encoding="utf-8")
        page.write_text(with_measurement(text, figures()[one.name], one.rows, one.seconds, seed), encoding="utf-8")


if __name__ == "__main__":
    main()
