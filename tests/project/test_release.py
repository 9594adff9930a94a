"""What a release consists of: the bill of materials names what the bot needs, as locked, and nothing of its tests."""

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bot import __version__
from release.sbom import NotAsLocked, closure, locked, plain, shipped, wanted

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """What the tool would find here, as far as we read it."""
    installed = {plain(each.name): each for each in metadata.distributions()}
    return {
        "bomFormat": "CycloneDX",
        "metadata": {"component": {"bom-ref": "root", "name": "chatglm-bot"}},
        "components": [
            {"bom-ref": f"{name}=={each.version}", "name": each.name, "version": each.version}
            for name, each in installed.items()
        ],
        "dependencies": [],
    }


def test_it_names_what_the_bot_needs_and_nothing_of_its_tests(whole: dict[str, Any]) -> None:
    bill = shipped(deepcopy(whole), wanted(), locked())
    names = {plain(each["name"]) for each in bill["components"]}
    assert {"torch", "discord-py", "greenlet", "aiosignal", "psycopg-binary", "transformers"} <= names
    assert not names & {"pytest", "mypy", "ruff", "hypothesis", "chatglm-bot"}
    assert bill["metadata"]["component"]["version"] == __version__


def test_each_dependency_leads_to_a_component(whole: dict[str, Any]) -> None:
    bill = shipped(deepcopy(whole), wanted(), locked())
    refs = {each["bom-ref"] for each in bill["components"]}
    assert {each["ref"] for each in bill["dependencies"]} == refs | {"root"}
    assert {ref for each in bill["dependencies"] for ref in each["dependsOn"]} <= refs


def test_what_is_not_as_locked_makes_no_bill(whole: dict[str, Any]) -> None:
    with pytest.raises(NotAsLocked, match=r"click \S+ is installed, and constraints\.txt says 0\.1"):
        shipped(deepcopy(whole), ["click"], {"click": "0.1"})
    with pytest.raises(NotAsLocked, match="no-such-thing is not installed"):
        shipped(deepcopy(whole), ["no_such.thing>=1"], {})


def test_extras_are_followed_as_they_are_asked_for() -> None:
    assert "greenlet" not in dict(closure(["sqlalchemy"]))
    assert "greenlet" in dict(closure(["sqlalchemy", "sqlalchemy[asyncio]"]))


def test_everything_that_is_asked_for_is_locked() -> None:
    assert {plain(each) for each in wanted()} <= locked().keys()


def test_the_same_sources_make_the_same_wheel(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sums: set[str] = set()
    for folder in ("bot", "migrations"):
        shutil.copytree(ROOT / folder, sources / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, sources)
    for target in (tmp_path / "a", tmp_path / "b"):
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(sources)]
        environment = {"PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": "1700000000"}
        subprocess.run(build, check=True, capture_output=True, timeout=120, env=environment)
        (wheel,) = target.glob("*.whl")
        assert f"-{__version__}-" in wheel.name
        with zipfile.ZipFile(wheel) as archive:
            assert not any(name.startswith("release") for name in archive.namelist())
        sums.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert len(sums) == 1


def test_the_changelog_tells_of_this_version_below_what_is_not_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (?:\[([\d.]+)\] - (\d{4}-\d{2}-\d{2})|Unreleased)$", text, re.MULTILINE)
    assert versions[0] == ("", "")
    assert __version__ in {version for version, _ in versions}
