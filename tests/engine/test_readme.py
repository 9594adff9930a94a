"""The example in the engine's README runs without the bot."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "bot" / "engine" / "README.md"


def test_the_example_prints_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    exec(compile(example, str(PAGE), "exec"), {})
    answer, _, summary = capsys.readouterr().out.strip().rpartition("\n")
    assert answer
    assert re.fullmatch(r"demo, [1-9]\d* tokens", summary)
