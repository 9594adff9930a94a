"""Compare our model with a golden set; print a line per item."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.golden import network, quantised, sampling, texts
from tests.golden.report import Golden


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.stderr.write("usage: python -m tests.golden DIR, a folder with goldens.safetensors and a checkpoint\n")
        return 2
    golden = Golden(Path(arguments[0]), lambda line: print(line, flush=True))  # noqa: T201  # it is a command
    for part in (network, quantised, sampling, texts):
        part.check_all(golden)
    golden.finish()
    return 1 if golden.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
