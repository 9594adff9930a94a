"""The conversation about files and pastes that `python -m tests.adapters.demo PLATFORM --show files` prints."""

import pytest

from tests.adapters.files_demo import play_files
from tests.harness.platform_bench import PROFILES


@pytest.mark.parametrize("platform", PROFILES)
async def test_each_step_shows_its_effect(platform: str) -> None:
    pytest.importorskip("pypdf")
    lines: list[str] = []
    await play_files(platform, lines.append)
    shown = "\n".join(lines)
    for words in (
        "Revenue grew by 12 percent.",
        "五点喝茶",
        "the words of page 3",
        "> Ann: yes, the tests are still red",
    ):
        assert words in shown
    assert "messages, 1 answer)" in shown
    assert " answers)" not in shown
    assert "not allowed on" not in shown
