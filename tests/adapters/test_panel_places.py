"""The settings of a channel or thread in the panel."""

import json
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from bot.config.places import PersonaSection, PlaceSection
from bot.config.schema import Config
from bot.domain import Author, ChannelKey, Scope
from tests.adapters.test_panel import HOSTILE, Served, first, panel_of
from tests.harness.fakes import ScriptedEngine
from tests.harness.messages import a_message

HERE = ChannelKey("discord", "1", "2")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with panel_of(tmp_path, ScriptedEngine()) as served:
        yield served


async def place(served: Served, **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await served.panel.post("place", **body))
    return found


async def test_a_setting_of_a_thread_is_changed_as_the_command_there_does(served: Served) -> None:
    shown = await place(served, place=" discord:1:2 ")
    assert shown["place"] == "discord:1:2"
    assert '<input id="place-temperature" data-setting="temperature" value="0.95"' in shown["fields"]
    after = await place(served, place="discord:1:2", setting="temperature", value="0.5")
    assert "From the next message on" in after["notice"]
    assert 'id="place-temperature" data-setting="temperature"' in after["fields"]
    here = a_message("", channel=HERE)
    assert served.harness.settings.at(here).params.temperature == 0.5
    listed = (await served.panel.until(first)).shown
    assert 'data-place="discord:1:2"' in listed["channels"]
    assert '<option value="discord:1:2">' in listed["known-places"]
    await place(served, place="discord:1:2", setting="temperature", value="")
    assert served.harness.settings.at(here).params.temperature == 0.95


async def test_a_value_that_cannot_be_is_refused_with_the_sentence_of_the_chat(served: Served) -> None:
    after = await place(served, place="discord:1", setting="temperature", value="hot")
    assert "temperature cannot be hot" in after["notice"]


async def test_texts_of_people_are_counted_and_not_shown(served: Served) -> None:
    await served.harness.intake.choices.set(
        Scope("thread", str(HERE)), "persona", Author("discord", "1", "Mei"), None, "You are a secret parrot."
    )
    shown = json.dumps(await place(served, place=str(HERE)))
    assert "a text of 24 characters" in shown
    assert "parrot" not in shown


async def test_what_config_toml_fixes_is_not_in_the_form(served: Served) -> None:
    served.harness.settings.reconfigure(Config(channels={"discord:1": PlaceSection(settings=("top_p",))}))
    assert "temperature" not in (await place(served, place=str(HERE)))["fields"]
    await served.panel.post("place", 400, place=str(HERE), setting="temperature", value="1")


async def test_hostile_names_are_text(served: Served) -> None:
    served.harness.settings.reconfigure(Config.model_construct(personas={HOSTILE: PersonaSection(system_prompt="x")}))
    shown = await place(served, place=f"discord:{HOSTILE.replace(' ', '')}")
    assert "<script" not in shown["fields"]
    assert HOSTILE in unescape(shown["fields"])


@pytest.mark.parametrize(
    "body", [{}, {"place": "discord"}, {"place": "discord:1", "setting": "x", "value": "1"}, {"place": "a b:c"}]
)
async def test_a_malformed_request_is_refused(served: Served, body: dict[str, Any]) -> None:
    await served.panel.post("place", 400, **body)
