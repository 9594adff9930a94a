"""Compare our training with golden numbers of the published one; print a line per item."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.golden.report import Golden
from tests.tuning import golden


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2) or not all(Path(argument).is_dir() for argument in arguments):
        sys.stderr.write(
            "usage: python -m tests.tuning DIR [MODEL], a folder with runs.json, and its base model if that is elsewhere\n"
        )
        return 2
    folder = Path(arguments[0])
    report = Golden(folder, lambda line: print(line, flush=True))  # noqa: T201  # it is a command
    golden.check_training(report, Path(arguments[1]) if arguments[1:] else golden.find_model(folder))
    golden.check_metrics(report)
    report.finish()
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
