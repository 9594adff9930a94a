"""The code on the pages of docs/, for tests that execute it as what it says it is.

The first line of a snippet names its file: a new one, or one that it is added to.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.harness.platform import TIMEOUT
from tests.storage import memory_folder

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_COPY_BYTES = 64 << 20


def snippets(page: str, language: str = "python") -> list[str]:
    """Return the code blocks of docs/<page> in order.

    A test unpacks all of them, so that a new block without a test fails.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def file_of(code: str) -> tuple[Path, str]:
    """Return the file that the first line of a snippet names, and where in it the snippet belongs.

    >>> file_of("# bot/app.py"), file_of("# bot/storage/sql.py, in SqlStore")
    ((PosixPath('bot/app.py'), ''), (PosixPath('bot/storage/sql.py'), 'in SqlStore'))
    """
    named = re.match(r"# ([\w/]+\.py)(?:, (.+))?$", code, re.MULTILINE)
    assert named is not None, f"the first line of a snippet names its file: {code.splitlines()[0]}"
    return Path(named[1]), named[2] or ""


def define(monkeypatch: pytest.MonkeyPatch, code: str) -> ModuleType:
    """Make a snippet that is a new file importable under its name for one test."""
    path, place = file_of(code)
    assert not place
    assert not (ROOT / path).exists(), f"{path} exists"
    name = ".".join(path.with_suffix("").parts)
    if not (ROOT / path.parent).exists():
        package, _, _ = name.rpartition(".")
        monkeypatch.setitem(sys.modules, package, sys.modules.get(package, ModuleType(package)))
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, f"snippet {path}", "exec"), module.__dict__)
    return module


def execute_in(module: ModuleType, code: str) -> dict[str, Any]:
    """Execute a snippet as if it were added to the file of `module`; return the names it defines.

    The module itself does not get these names.
    """
    path, _ = file_of(code)
    assert module.__file__ == str(ROOT / path)
    scope = dict(vars(module))
    before = dict(scope)
    exec(compile(code, f"snippet {path}", "exec"), scope)
    return {name: value for name, value in scope.items() if before.get(name) is not value}


def names_in(code: str) -> list[str]:
    """Return the tests in a snippet, by file and name."""
    names = re.findall(r"^(?:async )?def (test_\w+)", code, re.MULTILINE)
    return [f"{file_of(code)[0]}::{name}" for name in names]


class Checkout:
    """A copy of the repository into which snippets are written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, code: str) -> None:
        """Write a snippet into the file that it names.

        To a file that exists it is added: its imports at the top, and the rest at the end, `in` a class or `above` a name.
        """
        path, place = file_of(code)
        file = self.folder / path
        if not file.exists():
            assert not place
            file.write_text(code, encoding="utf-8")
            return
        lines, added = file.read_text(encoding="utf-8").splitlines(), code.splitlines()
        imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
        first = max((node.end_lineno or 0 for node in imports), default=1)
        rest, tree = "\n".join(["", *added[first:]]), ast.parse("\n".join(lines))
        if place.startswith("in "):
            rest = textwrap.indent(rest, "    ")
            at = next(
                node.end_lineno or 0
                for node in tree.body
                if isinstance(node, ast.ClassDef) and node.name == place.removeprefix("in ")
            )
        elif place.startswith("above "):
            named = next(node for node in tree.body if place.removeprefix("above ") in _defined(node))
            at = min(node.lineno for node in [named, *getattr(named, "decorator_list", [])]) - 1
        else:
            assert not place
            at = len(lines)
        top = max(node.end_lineno or 0 for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
        written = [*lines[:top], *added[1:first], *lines[top:at], rest, "", *lines[at:]]
        file.write_text("\n".join(written) + "\n", encoding="utf-8")

    def insert(self, code: str, after: str) -> None:
        """Insert a snippet that is an element of a list or dict, after a text that the file has once."""
        path, place = file_of(code)
        assert place
        self.replace(str(path), after, f"{after}{code.partition(chr(10))[2].strip()}, ")

    def replace(self, path: str, old: str, new: str) -> None:
        """Replace a text that a file has once."""
        file = self.folder / path
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
        file.write_text(text.replace(old, new), encoding="utf-8")

    def run_tests(self, *tests: str) -> None:
        """Run these tests of the copy in a process of its own; fail if one fails or is missing."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
        run = subprocess.run(
            command,
            cwd=self.folder,
            env=environment | {"PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if run.returncode:
            pytest.fail(run.stdout + run.stderr, pytrace=False)
        assert "skipped" not in run.stdout, run.stdout


@contextmanager
def checkout() -> Iterator[Checkout]:
    """Copy what the program and its tests are."""
    with tempfile.TemporaryDirectory(dir=memory_folder(_COPY_BYTES)) as name:
        folder = Path(name)
        for part in ("bot", "tests", "migrations", "docs"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "pyproject.toml", folder)
        yield Checkout(folder)


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.name] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
