"""Tables of personas, places and people in config.toml."""

from pathlib import Path

import pytest

from bot.config.reload import _changed_names, _with_reloadable
from bot.config.report import report
from bot.config.schema import Config
from bot.config.sources import LoadedConfig, load_config
from bot.errors import ConfigError
from tests.config.test_config import ADAPTERS

PLACES = """
[personas.pirate]
system_prompt = "You are a pirate."
[models.big]
model = "demo"
[roles."discord:2"]
model = "big"
[roles."discord:1"]
model = "engine"
[threads."slack:C1:1718.2"]
persona = "pirate"
models = ["engine", "big"]
[platforms.discord]
persona = "pirate"
"""


def load(path: Path, toml: str) -> LoadedConfig:
    file = path / "config.toml"
    file.write_text(toml, encoding="utf-8")
    return load_config(file, ADAPTERS, environ={"BOT_SECRETS_DIR": str(path)})


def test_places_and_people_have_tables(tmp_path: Path) -> None:
    config = load(tmp_path, PLACES).config
    assert list(config.roles) == ["discord:2", "discord:1"], "the first one listed is in force"
    assert config.threads["slack:C1:1718.2"].models == ("engine", "big")
    assert config.platforms["discord"].persona == "pirate"
    assert config.personas["pirate"].system_prompt == "You are a pirate."


@pytest.mark.parametrize(
    ("toml", "mistake"),
    [
        ('[channels."discord:1"]\npersona = "cook"', "line 2, channels.discord:1.persona: 'cook' is not a persona"),
        (
            '[users."discord:1"]\nmodel = "big"',
            "line 2, users.discord:1.model: 'big' is not a model; name one of engine",
        ),
        ('[servers."discord:1"]\nmodels = ["engine", "big"]', "line 2, servers.discord:1.models: 'big' is not a model"),
        ('[channels.general]\npersona = "cook"', "'general' is not written \"platform:id\""),
        ('[channels."irc:1"]\nmodel = "engine"', "'irc:1': unknown platform; known platforms: console, discord, slack"),
        ('[platforms.irc]\nmodel = "engine"', "'irc': unknown platform"),
        ('[personas.Pirate]\nsystem_prompt = ""', "'Pirate' cannot be the name of a persona"),
        ('[channels."discord:1"]\nmodle = "engine"', "unknown setting; did you mean channels.discord:1.model?"),
        ("[channels]\nmodel = 3", "is not a table"),
    ],
)
def test_a_mistake_is_reported_with_its_place(tmp_path: Path, toml: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml)
    assert mistake in "\n".join(caught.value.mistakes)


def test_the_report_shows_them_with_their_lines(tmp_path: Path) -> None:
    shown = "\n".join(report(load(tmp_path, PLACES)))
    assert "[threads.slack:C1:1718.2]" in shown
    assert any(line.startswith("* persona") and "line 11" in line for line in shown.splitlines()), shown


def test_a_reload_applies_them_at_once(tmp_path: Path) -> None:
    config = load(tmp_path, PLACES).config
    live = _with_reloadable(Config(), config)
    assert live.threads == config.threads
    assert "threads.slack:C1:1718.2.persona" in _changed_names(Config(), live)
