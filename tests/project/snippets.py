"""The code on the pages of docs/, for tests that execute it."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def snippets(page: str, language: str = "python") -> list[str]:
    """Return the code blocks of docs/<page> in order.

    A test unpacks all of them, so that a new block without a test fails.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def define(monkeypatch: pytest.MonkeyPatch, name: str, code: str, page: str) -> ModuleType:
    """Make the code of a page importable as module `name` for one test."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, f"{page} ({name})", "exec"), module.__dict__)
    return module


def execute_in(module: ModuleType, code: str, page: str, **imports: Any) -> dict[str, Any]:
    """Execute code as if it were added to `module`; return the names it defines.

    The module itself gets neither these names nor the `imports`.
    """
    scope = {**vars(module), **imports}
    before = dict(scope)
    exec(compile(code, f"{page} ({module.__name__})", "exec"), scope)
    return {name: value for name, value in scope.items() if before.get(name) is not value}


def names_in(code: str) -> list[str]:
    """Return the names of the tests in a code block."""
    return re.findall(r"^(?:async )?def (test_\w+)", code, re.MULTILINE)
