"""The models in the panel: what each does, and its guarded change by way of config.toml."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.exceptions import HTTPException

from bot.adapters.web.access import Person, Right
from bot.adapters.web.panel.calls import PanelCall
from bot.adapters.web.panel.models import change, models_html
from bot.adapters.web.panel.sources import PanelSources
from bot.domain import Author
from bot.observability.health import Health
from bot.util.clock import MonotonicClock
from tests.adapters.panel_config import Configured, configured, has

TWO = '[engine]\nmodel = "first"  # ours\n\n[models.big]\nmodel = "/models/big"\n'


@pytest.fixture
async def bot(tmp_path: Path) -> AsyncIterator[Configured]:
    async with configured(tmp_path, TWO) as bot:
        yield bot


async def test_each_model_shows_state_memory_and_a_button(bot: Configured) -> None:
    shown = (await bot.served.panel.until(has("models", "ready"))).shown["models"]
    assert shown.count('<span class="good">ready</span>') == 2
    assert shown.count("<td>16 MiB</td>") == 2
    assert 'data-quantization="none" data-model="/models/big" data-name="big"' in shown


async def test_a_change_is_written_to_the_file_and_its_progress_shown_until_the_new_model_answers(
    bot: Configured,
) -> None:
    said = await bot.served.panel.post("model", name="engine", values={"model": "slow", "quantization": "int4"})
    assert "Saved in config.toml" in said
    assert bot.text().startswith('[engine]\nmodel = "slow"  # ours\nquantization = "int4"')
    await bot.served.panel.until(has("models", '<progress max="100" value="40" aria-label="engine">'))
    bot.models.go_on.set()
    await bot.served.panel.until(has("models", "<td>slow</td>", "<td>4 MiB</td>", "ready"))


async def test_a_model_that_cannot_be_loaded_is_refused_with_its_sentence_and_nothing_is_written(
    bot: Configured,
) -> None:
    said = await bot.served.panel.post("model", 409, name="big", values={"model": "missing"})
    assert said == 'models.big.model = "missing": no such folder'
    assert bot.text() == TWO


async def test_a_model_that_proves_damaged_leaves_the_present_one_and_a_way_back(bot: Configured) -> None:
    await bot.served.panel.post("model", name="big", values={"model": "damaged"})
    shown = (await bot.served.panel.until(has("models", "big was not changed", "wrong size"))).shown["models"]
    assert "<td>/models/big</td>" in shown
    assert 'class="back" type="button" data-quantization="none" data-model="/models/big"' in shown
    await bot.served.panel.post("model", name="big", values={"model": "/models/big", "quantization": "none"})
    await bot.served.panel.until(lambda panel: "was not changed" not in panel.shown["models"])
    assert bot.text() == TWO


async def test_a_setting_of_the_environment_is_not_written_in_vain(tmp_path: Path) -> None:
    async with configured(tmp_path, TWO, {"BOT_ENGINE__QUANTIZATION": "int8"}) as bot:
        said = await bot.served.panel.post("model", 409, name="engine", values={"quantization": "int4"})
        assert "BOT_ENGINE__QUANTIZATION overrides engine.quantization of the file" in said
        assert bot.text() == TWO


async def test_what_is_no_value_is_refused_as_at_the_start(bot: Configured) -> None:
    said = await bot.served.panel.post("model", 409, name="engine", values={"quantization": "int5"})
    assert "'int5' is not one of none, int8, int4" in said


@pytest.mark.parametrize(
    "body", [{}, {"name": "huge", "values": {"model": "x"}}, {"name": "engine", "values": {"device": "cpu"}}]
)
async def test_a_malformed_request_is_refused(bot: Configured, body: dict[str, object]) -> None:
    await bot.served.panel.post("model", 400, **body)


async def test_admins_quantise_but_neither_name_a_path_nor_read_one(bot: Configured) -> None:
    admin = Person(Right.ADMIN, Author("discord", "1", "Mei"))
    components, clock = bot.served.components, MonotonicClock()
    sources = PanelSources(components, Health(components, 60.0, clock), clock, editor=bot.editor)
    shown = models_html(sources, Right.ADMIN, str)
    assert "<td>big</td>" in shown
    assert "/models" not in shown
    chat: Any = SimpleNamespace(intake=bot.served.harness.intake)
    call = PanelCall(chat, sources, admin, {"name": "big", "values": {"model": "/etc"}}, "en")
    with pytest.raises(HTTPException, match="Only operators"):
        await change(call)
    call.body["values"] = {"quantization": "int8"}
    assert "Saved" in str(await change(call))
    assert 'quantization = "int8"' in bot.text()
