"""Start to first token of the demo model: CPU seconds and elapsed seconds of a new process.

python -m benchmarks.first_token [--repeat 9] [--against FOLDER]

With a second checkout, starts alternate, so that other load disturbs both.  Elapsed seconds count on an idle machine only.
Bytecode and page cache are warm.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import psutil

from benchmarks.report import SuiteRow, print_rows

ROOT = Path(__file__).parent.parent
COMMANDS = {"bot ask": ("ask", "hello"), "bot run": ("run",)}
GOAL_SECONDS = 2.0
_QUESTION = "hello\n"  # for `bot run`; `bot ask` has an argument


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure a start of the demo model up to its first token.")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--against", type=Path, help="also measure bot/ of this folder")
    options = parser.parse_args(arguments)
    places = {"": ROOT} if options.against is None else {"": ROOT, ", other checkout": options.against.resolve()}
    rows: list[SuiteRow] = []
    with tempfile.TemporaryDirectory(prefix="first-token-") as folder:
        for name, command in COMMANDS.items():
            found: dict[str, list[tuple[float, float]]] = {place: [] for place in places}
            for number in range(options.repeat + 1):
                for place, root in places.items():
                    times = first_token(command, root, Path(folder))
                    if number:  # the first start writes the bytecode, and the database
                        found[place].append(times)
            for place, pairs in found.items():
                cpu, elapsed = (median(each) for each in zip(*pairs, strict=True))
                rows.append(
                    SuiteRow(
                        f"{name}{place}", cpu, "s", GOAL_SECONDS, is_limit=True, remark=f"CPU; elapsed {elapsed:.2f} s"
                    )
                )
    return print_rows(rows)


def first_token(command: Sequence[str], root: Path, folder: Path) -> tuple[float, float]:
    """Start the program, and return its CPU seconds and the elapsed ones at its first output, which is the answer."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BOT_"))}
    environment |= {"PYTHONPATH": str(root), "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    began = time.perf_counter()
    with subprocess.Popen(  # noqa: S603  # this program
        [sys.executable, "-m", "bot", *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_QUESTION.encode() if command == COMMANDS["bot run"] else b"")
        process.stdin.close()
        if not process.stdout.read(1):
            raise SystemExit(f"bot {' '.join(command)} of {root} answered nothing: run it in a terminal to see why")
        elapsed, used = time.perf_counter() - began, psutil.Process(process.pid).cpu_times()
        process.stdout.read()
    return used.user + used.system, elapsed


if __name__ == "__main__":
    sys.exit(main())
