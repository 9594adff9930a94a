"""Release files: bill of materials, reproducible wheel, changelog."""

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bot import __version__
from release.sbom import LockMismatch, closure, locked, plain, shipped, wanted

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """Return the fields of a CycloneDX bill that sbom.py reads."""
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


def test_the_bill_contains_runtime_packages_and_no_test_packages(whole: dict[str, Any]) -> None:
    bill = shipped(deepcopy(whole), wanted(), locked())
    names = {plain(each["name"]) for each in bill["components"]}
    assert {"torch", "discord-py", "greenlet", "aiosignal", "psycopg-binary", "transformers"} <= names
    assert not names & {"pytest", "mypy", "ruff", "hypothesis", "chatglm-bot"}
    assert bill["metadata"]["component"]["version"] == __version__


def test_each_dependency_refers_to_a_component(whole: dict[str, Any]) -> None:
    bill = shipped(deepcopy(whole), wanted(), locked())
    refs = {each["bom-ref"] for each in bill["components"]}
    assert {each["ref"] for each in bill["dependencies"]} == refs | {"root"}
    assert {ref for each in bill["dependencies"] for ref in each["dependsOn"]} <= refs


def test_packages_that_differ_from_constraints_are_rejected(whole: dict[str, Any]) -> None:
    with pytest.raises(LockMismatch, match=r"click \S+ is installed, and constraints\.txt says 0\.1"):
        shipped(deepcopy(whole), ["click"], {"click": "0.1"})
    with pytest.raises(LockMismatch, match="no-such-thing is not installed"):
        shipped(deepcopy(whole), ["no_such.thing>=1"], {})


def test_extras_are_followed_when_requested() -> None:
    assert "greenlet" not in dict(closure(["sqlalchemy"]))
    assert "greenlet" in dict(closure(["sqlalchemy", "sqlalchemy[asyncio]"]))


def test_all_packages_of_the_bot_and_of_its_tests_are_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = dict(closure([*wanted(), *project["optional-dependencies"]["test"]])).keys() - locked().keys()
    assert {name for name in needed if not name.startswith(("cuda-", "nvidia-"))} == set()  # of torch's GPU build


def test_the_same_sources_build_the_same_wheel(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sums: set[str] = set()
    for folder in ("bot", "migrations"):
        shutil.copytree(ROOT / folder, sources / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (sources / "docs").mkdir()
    for file in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "config.toml",
        "constraints.txt",
        "docs/slack-manifest.yaml",
    ):
        shutil.copy(ROOT / file, sources / file)
    for target in (tmp_path / "a", tmp_path / "b"):
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(sources)]
        environment = {"PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": "1700000000"}
        subprocess.run(build, check=True, capture_output=True, timeout=600, env=environment)
        (wheel,) = target.glob("*.whl")
        assert f"-{__version__}-" in wheel.name
        with zipfile.ZipFile(wheel) as archive:
            assert not any(name.startswith("release") for name in archive.namelist())
        sums.add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert len(sums) == 1


def test_the_changelog_has_this_version_below_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (?:\[([\d.]+)\] - (\d{4}-\d{2}-\d{2})|Unreleased)$", text, re.MULTILINE)
    assert versions[0] == ("", "")
    assert __version__ in {version for version, _ in versions}
