"""The adapter in docs/ADDING_A_PLATFORM.md opens, inspects and runs."""

import asyncio
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import SecretStr

from bot import adapters
from tests.harness.fakes import FastClock
from tests.harness.harness import Harness

PAGE = Path("docs/ADDING_A_PLATFORM.md")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the page's two files as modules; return the settings."""
    codes = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    monkeypatch.setitem(sys.modules, "bot.adapters.matrix", ModuleType("bot.adapters.matrix"))
    for name, code in zip(("matrix.settings", "matrix.adapter"), codes, strict=False):
        module = ModuleType(f"bot.adapters.{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, f"{PAGE} ({name}.py)", "exec"), module.__dict__)
    return sys.modules["bot.adapters.matrix.settings"]


async def test_the_pages_adapter_starts_as_the_program_starts_it(page: ModuleType, harness: Harness) -> None:
    adapter = adapters.open_adapter("matrix", page.MatrixSection(token=SecretStr("x")), FastClock())
    running = asyncio.create_task(adapter.run(harness.intake))
    await asyncio.sleep(0)
    assert adapter.is_connected
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_pages_adapter_can_be_inspected(page: ModuleType) -> None:
    findings = [finding async for finding in adapters.inspect("matrix", page.MatrixSection(token=SecretStr("x")))]
    assert [finding.is_ok for finding in findings] == [True]
