"""Bill of materials of a release: the installed packages that the bot needs at run time.

    cyclonedx-py environment .venv/bin/python --pyproject pyproject.toml | python -m release.sbom

The input is a CycloneDX JSON document of the whole environment, the output has no test tools.
"""

import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from bot import __version__

ROOT = Path(__file__).parents[1]
# Extras that are shipped in the image.
SHIPPED = ("postgres", "transformers")

Bill = dict[str, Any]


class LockMismatch(Exception):
    """An installed package differs from constraints.txt."""


def shipped(bill: Bill, wanted: Iterable[str], locked: Mapping[str, str]) -> Bill:
    """Keep the components that these requirements need, in the versions of `locked`.

    Raises:
        LockMismatch: A package has another version or is not installed.
    """
    needs = dict(closure(wanted))
    components = {plain(each["name"]): each for each in bill["components"]}
    for name in needs:
        if name not in components:
            raise LockMismatch(f"{name} is not installed; make sbom installs it")
        version = components[name]["version"]
        # The suffix is the build: 2.13.0+cpu.  Packages that only a GPU build of torch needs are not locked.
        if version.partition("+")[0] != locked.get(name, version).partition("+")[0]:
            raise LockMismatch(f"{name} {version} is installed, and constraints.txt says {locked[name]}")
    root = bill["metadata"]["component"]
    root |= {"version": __version__, "purl": f"pkg:pypi/chatglm-bot@{__version__}"}
    direct = {plain(each) for each in wanted}

    def links(ref: str, names: Iterable[str]) -> Bill:
        return {"ref": ref, "dependsOn": sorted(components[name]["bom-ref"] for name in names)}

    return bill | {
        "components": [each for name, each in components.items() if name in needs],
        "dependencies": [
            links(root["bom-ref"], direct),
            *(links(components[name]["bom-ref"], names) for name, names in sorted(needs.items())),
        ],
    }


def closure(wanted: Iterable[str]) -> Iterator[tuple[str, set[str]]]:
    """Yield each distribution that these requirements need here, with its own dependencies."""
    ahead = [Requirement(each) for each in wanted]
    known: dict[str, set[str]] = {}
    while ahead:
        requirement = ahead.pop()
        name, extras = plain(requirement.name), requirement.extras | {""}
        if name in known and extras <= known[name]:
            continue
        extras |= known.get(name, set())
        known[name] = extras
        ahead += _required(name, extras)
    for name, extras in known.items():
        yield name, {plain(each.name) for each in _required(name, extras)}


def _required(name: str, extras: Iterable[str]) -> list[Requirement]:
    try:
        found = [Requirement(each) for each in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []  # `shipped` reports it
    return [
        each for each in found if each.marker is None or any(each.marker.evaluate({"extra": one}) for one in extras)
    ]


def plain(name: str) -> str:
    """Return the normalised name of a distribution, without its requirements.

    >>> plain("SQLAlchemy[asyncio]>=2.1,<2.2"), plain("discord.py>=2.7")
    ('sqlalchemy', 'discord-py')
    """
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name)[0]).lower()


def wanted() -> list[str]:
    """Return the requirements in pyproject.toml, including the shipped extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(each for extra in SHIPPED for each in extras[extra])]


def locked() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition(";")[0].split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {plain(name): version.strip() for name, version in pins}


def main() -> int:
    try:
        bill = shipped(json.load(sys.stdin), wanted(), locked())
    except LockMismatch as error:
        sys.stderr.write(f"{error}\n")
        return 1
    json.dump(bill, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
