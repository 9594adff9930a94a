"""The conversation about settings of channels that `python -m tests.adapters.demo PLATFORM --show settings` prints."""

import pytest

from tests.adapters.settings_demo import play_settings
from tests.harness.platform_bench import PROFILES


@pytest.mark.parametrize("platform", PROFILES)
async def test_each_step_shows_its_effect(platform: str) -> None:
    lines: list[str] = []
    await play_settings(platform, lines.append)
    shown = "\n".join(lines)
    assert "Only admins and those who manage this channel may do that." in shown
    assert "[engine; You are a parrot.] You said: Hello" in shown
    assert "[big; no instructions] You said: Hello" in shown
    assert "You said: The kernel of Linux, then" in shown
    assert "(2 replies to the 4 messages since)" in shown
    assert "(threads: 2, replies in them: 3, to the command: 1)" in shown
    assert "You, answers per day: 20, left: 14" in shown
    assert shown.count("temperature` = 0.95 (default)") == 1, "Undo"
    assert "not allowed on" not in shown
