"""config.toml in the panel: drafts are checked as at the start, and saved as a whole."""

import json
import re
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.panel_config import Configured, configured
from tests.adapters.test_panel import ESCAPED, HOSTILE

TEXT = '# ours\n[engine]\nmodel = "first"  # a comment\n\n[limits]\n# requests_per_minute = 20  # old\n'


@pytest.fixture
async def bot(tmp_path: Path) -> AsyncIterator[Configured]:
    async with configured(tmp_path, TEXT) as bot:
        yield bot


async def draft(bot: Configured, **body: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await bot.served.panel.post("config", **body))
    return found


def field(fields: str, name: str) -> str:
    """Return the HTML of a setting."""
    found = re.search(rf'<div class="setting"><label for="set-{re.escape(name)}">.*?</div>', fields)
    assert found, fields
    return unescape(found[0])


async def test_the_file_is_shown_as_text_and_as_a_form_of_all_tables(bot: Configured) -> None:
    shown = await draft(bot)
    assert shown["text"] == TEXT
    assert shown["is_right"]
    assert shown["fixed"] == ""
    assert unescape(shown["tables"]).count("<option") > 12
    engine = (await draft(bot, table=["engine"]))["fields"]
    assert 'value="first" placeholder="demo"' in field(engine, "engine-model")
    assert '<option value="int4">' in field(engine, "engine-quantization")
    assert "Needs a restart" not in engine
    server = (await draft(bot, table=["server"]))["fields"]
    assert "Needs a restart." in field(server, "server-port")


async def test_a_change_of_the_form_is_written_into_the_draft_and_its_effect_told(bot: Configured) -> None:
    changes = [[["limits", "requests_per_minute"], "9"], [["server", "port"], "9"]]
    shown = await draft(bot, table=["limits"], text=TEXT, changes=changes)
    assert "\nrequests_per_minute = 9  " in shown["text"]
    assert 'model = "first"  # a comment' in shown["text"]
    assert "Takes effect at once: limits.requests_per_minute" in shown["effect"]
    assert "Needs a restart: server.port" in shown["effect"]
    assert bot.text() == TEXT


async def test_half_a_character_in_a_draft_is_replaced(bot: Configured) -> None:
    shown = await draft(bot, text=TEXT + "# \ud83d\n", changes=[[["engine", "model"], "\ud83d"]])
    assert shown["text"] == TEXT.replace("first", "\ufffd") + "# \ufffd\n"


@pytest.mark.parametrize("table", [None, 5, True, [[]], [["engine"]], ["missing"], "engine"])
async def test_for_a_table_that_is_none_the_first_is_shown(bot: Configured, table: object) -> None:
    assert (await draft(bot, table=table))["table"] == (await draft(bot))["table"]


async def test_a_mistake_is_told_in_the_words_of_the_start_beside_its_field(bot: Configured) -> None:
    shown = await draft(bot, table=["limits"], text=TEXT, changes=[[["limits", "requests_per_minute"], "many"]])
    assert not shown["is_right"]
    sentence = "line 6, limits.requests_per_minute: 'many' is not an integer"
    assert unescape(shown["mistakes"]) == f"<li>{sentence}</li>"
    assert sentence in field(shown["fields"], "limits-requests_per_minute")
    assert 'aria-invalid="true"' in field(shown["fields"], "limits-requests_per_minute")
    said = await bot.served.panel.post("config/save", 409, text=shown["text"], revision="")
    assert sentence in said
    assert bot.text() == TEXT


async def test_a_save_is_loaded_at_once_and_another_revision_is_not_overwritten(bot: Configured) -> None:
    shown = await draft(bot)
    text = TEXT.replace("# requests_per_minute = 20", "requests_per_minute = 9")
    saved = json.loads(await bot.served.panel.post("config/save", text=text, revision=shown["revision"]))
    assert saved["notice"] == "Saved.\nTakes effect at once: limits.requests_per_minute"
    assert bot.text() == text
    await bot.served.panel.until(lambda panel: panel.shown["config"] == saved["revision"])
    said = await bot.served.panel.post("config/save", 409, text=TEXT, revision=shown["revision"])
    assert "the file was changed meanwhile" in said
    assert bot.text() == text


async def test_a_model_that_cannot_be_loaded_keeps_the_file_as_it_is(bot: Configured) -> None:
    shown = await draft(bot)
    text = TEXT.replace('"first"', '"missing"')
    said = await bot.served.panel.post("config/save", 409, text=text, revision=shown["revision"])
    assert said == 'engine.model = "missing": no such folder'
    assert bot.text() == TEXT


async def test_secrets_are_neither_shown_nor_written(tmp_path: Path) -> None:
    environ = {"BOT_DISCORD__TOKEN": "a-secret-token", "BOT_STORAGE__URL": "postgresql://bot:pass@host/bot"}
    async with configured(tmp_path, TEXT, environ) as bot:
        discord = (await draft(bot, table=["adapters", "discord"]))["fields"]
        assert "disabled" in field(discord, "adapters-discord-token")
        assert "BOT_DISCORD__TOKEN is set and overrides this file." in discord
        storage = (await draft(bot, table=["storage"]))["fields"]
        assert "pass" not in storage.replace("password", "")
        assert "a-secret-token" not in discord
        await bot.served.panel.post("config", 400, text=TEXT, changes=[[["adapters", "discord", "token"], "x"]])
        shown = await draft(bot, text=TEXT + "# it was a-secret-token\n")
        assert "may have a secret" in shown["mistakes"]
        bot.path.write_text("# token = a-secret-token\n", encoding="utf-8")
        said = await bot.served.panel.post("config", 409)
        assert "line 1 may have a secret" in said
        assert "a-secret-token" not in said


async def test_what_outranks_the_file_and_a_read_only_file_are_shown_as_such(tmp_path: Path) -> None:
    async with configured(tmp_path, TEXT, {"BOT_LIMITS__REQUESTS_PER_MINUTE": "7"}) as bot:
        bot.path.chmod(0o444)
        shown = await draft(bot, table=["limits"])
        assert " disabled " in field(shown["fields"], "limits-requests_per_minute")
        assert "BOT_LIMITS__REQUESTS_PER_MINUTE is set and overrides this file." in shown["fields"]
        assert shown["fixed"] == f"It cannot be saved here: {bot.path} is read-only."
        said = await bot.served.panel.post("config/save", 409, text="", revision=shown["revision"])
        assert "is read-only" in said


async def test_hostile_names_and_values_are_text(bot: Configured) -> None:
    text = f'[personas."{HOSTILE}"]\nsystem_prompt = "{HOSTILE}"\n[conversation]\nsystem_prompt = "{HOSTILE}"\n'
    for table in (["personas", HOSTILE], ["conversation"]):
        shown = await draft(bot, text=text, table=table)
        html = "".join(shown[part] for part in ("tables", "fields", "mistakes", "effect", "fixed"))
        assert ESCAPED in html
        assert "<script" not in html


@pytest.mark.parametrize(
    "body",
    [{"text": 1}, {"changes": {}}, {"changes": ["x"]}, {"changes": [[["engine"], "x"]]}, {"changes": [[[1], 2]]}],
)
async def test_a_malformed_request_is_refused(bot: Configured, body: dict[str, Any]) -> None:
    await bot.served.panel.post("config", 400, **body)
