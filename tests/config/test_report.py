from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import SecretStr

from bot.config.report import report
from bot.config.schema import AdapterSection
from bot.config.sources import load_config


class DiscordLike(AdapterSection):
    tokens: ClassVar[tuple[str, ...]] = ("token",)

    token: SecretStr | None = None


def lines(folder: Path, toml: str = "", **variables: str) -> list[str]:
    path = folder / "bot.toml"
    path.write_text(toml, encoding="utf-8")
    loaded = load_config(
        path, {"console": AdapterSection, "discord": DiscordLike}, environ={"BOT_SECRETS_DIR": str(folder)} | variables
    )
    return [line.replace(str(path), "bot.toml") for line in report(loaded)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_defaults_have_no_mark(folder: Path) -> None:
    shown = lines(folder)
    assert not [line for line in shown if line.startswith("*")]
    assert "  temperature = 0.95" in shown
    assert "  answer_seconds = 600" in shown
    assert '  url = "sqlite+aiosqlite:///data/bot.db"' in shown
    assert "  token = (not set)" in shown
    assert shown[-2:] == ["Changed settings: 0", "Adapters that will run: console"]


def test_a_changed_setting_is_marked_with_its_source_and_default(folder: Path) -> None:
    toml = '[conversation]\nsystem_prompt = "你好"\n[logs]\nlevels = { "bot.engine" = "debug" }'
    shown = lines(folder, toml, BOT_ACCESS__ADMINS="discord:1,discord:2")
    assert [line for line in shown if line.startswith("*")] == [
        '* system_prompt = "你好"                        # bot.toml, line 2; default: ""',
        '* admins = ["discord:1", "discord:2"]         # BOT_ACCESS__ADMINS; default: []',
        '* levels = { "bot.engine" = "debug" }         # bot.toml, line 4; default: {}',
    ]
    assert "Changed settings: 3" in shown


def test_a_setting_equal_to_its_default_has_a_source_but_no_mark(folder: Path) -> None:
    assert '  model = "demo"                              # bot.toml, line 2' in lines(
        folder, '[engine]\nmodel = "demo"'
    )


def test_secrets_are_shown_only_as_set(folder: Path) -> None:
    shown = lines(folder, BOT_DISCORD__TOKEN="canary-1", BOT_STORAGE__URL="postgresql+psycopg://u:canary-2@h/d")
    assert "canary" not in "\n".join(shown)
    assert "* token = (set)                               # BOT_DISCORD__TOKEN; default: (not set)" in shown
    assert any(line.startswith("* url = (set) ") for line in shown)
    assert shown[-1] == "Adapters that will run: discord"


def test_a_configuration_without_platforms_is_pointed_out(folder: Path) -> None:
    assert "none; enable one" in lines(folder, "[adapters.console]\nenabled = false")[-1]
