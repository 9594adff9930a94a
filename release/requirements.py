"""Print what a bot needs that answers from model servers only, without torch.

python -m release.requirements [EXTRA,…] >requirements.txt
pip install --constraint constraints.txt --requirement requirements.txt && pip install --no-deps .
"""

import sys
import tomllib
from collections.abc import Collection
from pathlib import Path

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# Extras of local models; they are left out too.
_LOCAL = frozenset({"local", "transformers"})


def requirements(extras: Collection[str] = ()) -> list[str]:
    """Return the dependencies without those of the extra `local`, and those of other extras.

    Raises:
        KeyError: There is no such extra.
    """
    project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    optional: dict[str, list[str]] = project["optional-dependencies"]
    needed: list[str] = [each for each in project["dependencies"] if each not in optional["local"]]
    return needed + [each for extra in extras if extra not in _LOCAL for each in optional[extra]]


if __name__ == "__main__":
    given = sys.argv[1] if len(sys.argv) > 1 else ""
    print("\n".join(requirements([extra for extra in given.split(",") if extra])))  # noqa: T201  # the output of a command
