"""The conversation in native forms that `python -m tests.adapters.demo PLATFORM --show forms` prints."""

import pytest

from tests.adapters.forms_demo import play_forms

SHOWN = {
    "discord": ("> which primes?", "Saved: 👍", "↩️ https://discord.com/channels/", "Yes, it works here too."),
    "telegram": ("draft: Once upon a time [Stop]", "(stopped)", "| 2 | 3 |", "Four.", "button: ", "sendMessageDraft"),
    "slack": ("suggested: ", "'tell me a story': processing", "(stopped)", "| 2 | 3 |", "Saved: 👍", "chat.stopStream"),
}


@pytest.mark.parametrize("platform", SHOWN)
async def test_each_form_is_shown(platform: str) -> None:
    lines: list[str] = []
    await play_forms(platform, lines.append)
    transcript = "\n".join(lines)
    assert [words for words in SHOWN[platform] if words not in transcript] == []
    assert "not allowed on" not in transcript
