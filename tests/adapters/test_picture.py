"""The READMEs' pictures are well formed and small."""

from xml.etree import ElementTree

import pytest

from bot.domain import Action
from tests.adapters.picture import FOLDER, drawn
from tests.harness.platform import Seen

QUESTION = Seen("1", "Mei", "<@7> a < b & c?", "@bot a < b & c?")
STATES = [
    Seen("2", "bot", text, text, frozenset({action}), reply_to="1")
    for text, action in (("…", Action.STOP), ("Yes:\n\n- a", Action.RETRY))
]


def test_each_state_is_a_frame_and_markup_is_escaped() -> None:
    frames = [(0.0, [QUESTION]), *((1.0 + number, [QUESTION, seen]) for number, seen in enumerate(STATES))]
    picture = ElementTree.fromstring(drawn(frames))
    groups = picture.findall("{*}g")
    assert [text.text for text in groups[-1]] == ["Mei", "@bot a < b & c?", "@bot", "Yes:", "- a", "🔄"]
    assert len(groups) == len(frames)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_drawn_pictures_are_small(language: str) -> None:
    text = (FOLDER / f"streaming.{language}.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert len(text) < 100_000
