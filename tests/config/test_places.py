"""Tables of personas, places and people in config.toml."""

from pathlib import Path
from typing import ClassVar

import pytest

from bot.adapters import SETTINGS
from bot.config.places import PlaceSection
from bot.config.reload import _changed_names, _with_reloadable
from bot.config.report import report
from bot.config.schema import AdapterSection, Config
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


class WithNumericIds(AdapterSection):
    has_numeric_ids: ClassVar[bool] = True


def load(path: Path, toml: str) -> LoadedConfig:
    file = path / "config.toml"
    file.write_text(toml, encoding="utf-8")
    return load_config(file, {**ADAPTERS, "numbers": WithNumericIds}, environ={"BOT_SECRETS_DIR": str(path)})


def test_places_and_people_have_tables(tmp_path: Path) -> None:
    config = load(tmp_path, PLACES).config
    assert list(config.roles) == ["discord:2", "discord:1"], "the first one listed is in force"
    assert config.threads["slack:C1:1718.2"].models == ("engine", "big")
    assert config.platforms["discord"].persona == "pirate"
    assert config.personas["pirate"].system_prompt == "You are a pirate."


@pytest.mark.parametrize(
    ("written", "who"),
    [
        ('"everyone"', ("everyone",)),
        ('"managers"', ("managers",)),
        ('["discord:1", "discord:2"]', ("discord:1", "discord:2")),
    ],
)
def test_a_place_says_who_may_ask(tmp_path: Path, written: str, who: tuple[str, ...]) -> None:
    config = load(tmp_path, f'[channels."discord:3"]\nwho = {written}').config
    assert config.channels == {"discord:3": PlaceSection(who=who)}
    assert config.channels["discord:3"].model_fields_set == {"who"}


def test_the_chat_page_is_a_platform(tmp_path: Path) -> None:
    config = load(
        tmp_path, '[access]\ndeny_users = ["web:0b"]\n[platforms.web]\nlanguage = "zh"\n[channels."web:0a"]'
    ).config
    assert (config.access.deny_users, config.platforms["web"].language) == (("web:0b",), "zh")
    assert list(config.channels) == ["web:0a"]


def test_ids_that_are_numbers_may_be_negative_and_have_a_thread(tmp_path: Path) -> None:
    config = load(tmp_path, '[channels."numbers:-100123"]\n[threads."numbers:-100123:45"]').config
    assert (list(config.channels), list(config.threads)) == (["numbers:-100123"], ["numbers:-100123:45"])


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
        (
            '[channels."irc:1"]\nmodel = "engine"',
            "'irc:1': unknown platform; known platforms: console, discord, slack, numbers, web",
        ),
        ('[platforms.irc]\nmodel = "engine"', "'irc': unknown platform"),
        ('[personas.Pirate]\nsystem_prompt = ""', "'Pirate' cannot be the name of a persona"),
        ('[channels."discord:1"]\nmodle = "engine"', "unknown setting; did you mean channels.discord:1.model?"),
        ("[channels]\nmodel = 3", "is not a table"),
        ('[users."discord:1"]\nmodels = ["engine"]', "line 2, users.discord:1.models: it is in force for places only"),
        ('[roles."discord:1"]\nsettings = ["persona"]', "roles.discord:1.settings: it is in force for places only"),
        ('[users."discord:1"]\ntriggers = ["glm"]', "users.discord:1.triggers: it is in force for places only"),
        ('[channels."discord:1"]\ntriggers = ["a", "b,c"]', "line 2, channels.discord:1.triggers"),
        ('[channels."discord:1"]\ntriggers = ["a", "/c"]', "'/c' cannot be a trigger: use up to 40 characters"),
        ('[users."discord:1"]\nwho = "managers"', "users.discord:1.who: it is in force for places only"),
        ('[channels."discord:1"]\nwho = "admins"', "'admins' is not written \"platform:id\""),
        ('[channels."discord:1"]\nwho = ["managers", "discord:1"]', "or a list of people and roles"),
        ('[channels."discord:1"]\nwho = ["irc:1"]', "'irc:1': unknown platform"),
        ('[channels."discord:1"]\nwho = ["slack:U1"]', "'slack:U1' is of another platform than 'discord:1'"),
        ('[channels."discord:1"]\nsettings = ["who"]', "line 2, channels.discord:1.settings"),
        ('[channel."discord:1"]\nanswer = "all"', "line 1, channel: unknown section; did you mean channels?"),
        ('[threads."discord:1"]\nanswer = "all"', "'discord:1' is not written \"platform:channel:thread\""),
        (
            '[channels."numbers:general"]\nanswer = "all"',
            "'numbers:general': an id of numbers is a number, as in \"numbers:1234\"",
        ),
        ('[access]\nadmins = ["numbers:me"]', "access.admins: 'numbers:me': an id of numbers is a number"),
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


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ('[servers."telegram:3"]', 'the id of a group on telegram is negative, as in "telegram:-1001234"'),
        ('[roles."telegram:3"]', "telegram has no roles"),
        ('[roles."slack:S1"]', "slack has no roles"),
        ('[servers."console:1"]', "console has no servers"),
        ('[servers."web:1"]', "web has no servers"),
        (
            '[quotas."channel:console:terminal"]',
            'a direct chat is no channel; write [quotas.user] or [quotas."user:console',
        ),
        ('[quotas."channel:web:1"]', "a direct chat is no channel"),
        ('[quotas."channel:telegram:3"]', "a direct chat is no channel"),
        ('[quotas."role:slack:S1"]', "slack has no roles"),
        ('[access]\nallow_servers = ["telegram:3"]', "the id of a group on telegram is negative"),
        ('[access]\nallow_roles = ["slack:S1"]', "slack has no roles"),
    ],
)
def test_what_a_platform_cannot_have_is_a_mistake(tmp_path: Path, toml: str, sentence: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(toml, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, SETTINGS, environ={})
    assert len(caught.value.mistakes) == 1
    assert sentence in str(caught.value)


def test_groups_and_workspaces_are_servers(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[servers."telegram:-1001"]\n[servers."slack:T1"]\n[servers."discord:1"]\n[channels."telegram:3"]')
    assert list(load_config(file, SETTINGS, environ={}).config.servers) == ["telegram:-1001", "slack:T1", "discord:1"]


def test_channels_and_people_of_direct_chats_may_have_a_quota(tmp_path: Path) -> None:
    names = ["channel:telegram:-1001", "channel:slack:C1", "user:web:1", "user:telegram:3"]
    file = tmp_path / "config.toml"
    file.write_text("\n".join(f'[quotas."{name}"]\nanswers_per_day = 1' for name in names))
    assert list(load_config(file, SETTINGS, environ={}).config.quotas) == names


def test_unknown_names_are_listed_together_with_all_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(
            tmp_path,
            '[engine]\nmax_waiting = "many"\nfallback = "huge"\n[models.big]\nmax_batch_size = 0\nfallback = "other"\n'
            '[channels."discord:1"]\ntemperature = "hot"\nmodel = "big"\npersona = "pirate"\nmodels = ["big", "small"]',
        )
    assert list(caught.value.mistakes) == [
        "line 2, engine.max_waiting: 'many' is not an integer",
        "line 3, engine.fallback: 'huge' is not another model; name one of big",
        "line 5, models.big.max_batch_size: 0 is too small; the minimum is 1",
        "line 6, models.big.fallback: 'other' is not another model; name one of engine",
        "line 8, channels.discord:1.temperature: 'hot' is not a number",
        "line 10, channels.discord:1.persona: 'pirate' is not a persona; add a table [personas.NAME]",
        "line 11, channels.discord:1.models: 'small' is not a model; name one of engine, big",
    ]


def test_quotas_have_tables(tmp_path: Path) -> None:
    toml = '[quotas.user]\nanswers_per_day = 5\n[quotas."role:discord:1"]\ntokens_per_month = 0\n'
    quotas = load(tmp_path, toml).config.quotas
    assert (quotas["user"].answers_per_day, quotas["role:discord:1"].limit("tokens", "month")) == (5, 0)


@pytest.mark.parametrize(
    ("toml", "mistake"),
    [
        ("[quotas.role]\nanswers_per_day = 5", "'role' cannot have a quota: write user, channel or server"),
        ('[quotas."discord:1"]\nanswers_per_day = 5', "'discord:1' cannot have a quota"),
        ('[quotas."user:irc:1"]\nanswers_per_day = 5', "'irc:1': unknown platform"),
        ('[quotas."user:numbers:mei"]\nanswers_per_day = 5', "an id of numbers is a number"),
        ("[quotas.user]\nanswers_per_hour = 5", "unknown setting; did you mean quotas.user.answers_per_"),
        ("[quotas.user]\nanswers_per_day = -1", "-1 is too small; the minimum is 0"),
        ("[quotas]\nuser = 5", "is not a table"),
        (
            "[quotas]\ntokens_per_week = 9",
            "tokens_per_week is a setting of tables with a name, such as [quotas.user]",
        ),
        ("[channels]\nlanguage = 'zh'", 'such as [channels."discord:1234"]'),
        ("[quotas.user]\nanswers_per_week = true", "true is not a number"),
        ('[channels."numbers:1"]\ntemperature = false', "false is not a number"),
        ('[quotas."channel:numbers:1:2"]\nanswers_per_day = 5', "names a thread"),
    ],
)
def test_a_mistake_in_a_quota_is_named(tmp_path: Path, toml: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml)
    assert mistake in str(caught.value)
