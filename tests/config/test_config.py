import re
import tomllib
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, SecretStr, ValidationError

from bot.adapters import SETTINGS
from bot.config.schema import AdapterSection, Config, known_settings
from bot.config.sources import load_config
from bot.engine import BACKENDS
from bot.errors import ConfigError

CANARY = "canary-7f3a91"


class ConsoleLike(AdapterSection):
    pass


class OneToken(AdapterSection):
    tokens: ClassVar[tuple[str, ...]] = ("token",)

    token: SecretStr | None = None
    proxy: str = Field(default="none", min_length=2)


class TwoTokens(AdapterSection):
    tokens: ClassVar[tuple[str, ...]] = ("app_token", "bot_token")

    app_token: SecretStr | None = None
    bot_token: SecretStr | None = None


ADAPTERS: Mapping[str, type[AdapterSection]] = {"console": ConsoleLike, "discord": OneToken, "slack": TwoTokens}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secrets").mkdir()
    return tmp_path


def load(toml: str = "", **variables: str) -> Config:
    Path("config.toml").write_text(toml, encoding="utf-8")
    return load_config(
        None, ADAPTERS, ("auto", "chatglm", "echo", "remote"), {"BOT_SECRETS_DIR": "secrets"} | variables
    ).config


def mistakes(toml: str = "", **variables: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(toml, **variables)
    assert caught.value.exit_code == 2
    return caught.value.mistakes


def test_models_are_tables_like_that_of_the_engine(folder: Path) -> None:
    config = load(
        '[engine]\nfallback = "big"\n[models.big]\nmodel = "/a"\nmax_waiting = 3\n[models."q-2.5"]\nurls = ["http://a/v1"]\n',
        BOT_MODELS__BIG__KEY=CANARY,
        BOT_MODELS__ENV__URLS="http://a/v1,http://b/v1",
    )
    assert list(config.sections) == ["engine", "big", "q-2.5", "env"]
    assert (config.models["big"].model, config.models["big"].max_waiting) == ("/a", 3)
    assert config.models["env"].urls == ("http://a/v1", "http://b/v1")
    assert config.secrets == (CANARY,)


def mistake(toml: str = "", **variables: str) -> str:
    (only,) = mistakes(toml, **variables)
    return only


def test_without_a_file_the_defaults_apply(folder: Path) -> None:
    config = load_config(None, ADAPTERS, environ={"BOT_SECRETS_DIR": "secrets"}).config
    assert config.model_copy(update={"adapters": {}}) == Config()
    assert list(config.adapters) == ["console", "discord", "slack"]


def test_a_named_file_that_is_missing_is_a_mistake(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the file does not exist") as caught:
        load_config(Path("other.toml"), ADAPTERS, environ={"BOT_SECRETS_DIR": "secrets"})
    assert caught.value.place == "other.toml"


def test_a_folder_instead_of_a_file_is_a_mistake(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(folder, ADAPTERS, environ={"BOT_SECRETS_DIR": "secrets"})


def test_a_file_in_another_encoding_is_a_mistake(folder: Path) -> None:
    Path("config.toml").write_bytes('[conversation]\nsystem_prompt = "你好"'.encode("gbk"))
    with pytest.raises(ConfigError, match="byte 32 is not UTF-8"):
        load_config(None, ADAPTERS, environ={"BOT_SECRETS_DIR": "secrets"})


def test_a_file_with_a_byte_order_mark_is_read(folder: Path) -> None:
    assert load('\ufeff[engine]\nquantization = "int8"').engine.quantization == "int8"


def test_the_environment_overrides_secret_files_which_override_the_file(folder: Path) -> None:
    toml = '[engine]\nquantization = "int8"\nmodel = "in the file"\ndevice = "cuda:1"'
    Path("secrets/engine__model").write_text("in a secret\n")
    Path("secrets/engine__quantization").write_text("none\n")
    engine = load(toml, BOT_ENGINE__QUANTIZATION="int4").engine
    assert (engine.quantization, engine.model, engine.device) == ("int4", "in a secret", "cuda:1")


def test_variables_hold_lists_and_tables(folder: Path) -> None:
    config = load(BOT_ACCESS__ADMINS="discord:1, slack:U01", BOT_LOGS__LEVELS="bot.engine=debug,alembic=info")
    assert config.access.admins == ("discord:1", "slack:U01")
    assert config.logs.levels == {"bot.engine": "debug", "alembic": "info"}


def test_logger_names_are_read_with_and_without_quotes(folder: Path) -> None:
    levels = load("[logs.levels]\nbot.engine.serving = 'debug'\n'bot.engine' = 'info'").logs.levels
    assert levels == {"bot.engine.serving": "debug", "bot.engine": "info"}


def test_an_empty_variable_counts_as_unset(folder: Path) -> None:
    assert load(BOT_DISCORD__TOKEN="", BOT_ENGINE__MODEL="").engine.model == "demo"


def test_values_are_frozen(folder: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().engine.model = "other"


def test_all_mistakes_are_reported_at_once_in_file_order(folder: Path) -> None:
    found = mistakes(
        """
        [engine]
        quantization = "int3"
        max_wait = 3
        [sampling]
        top_p = [
            1,
        ]
        temperature = 9
        [engin]
        """,
        BOT_ENGINE__QUANTISATION="int4",
        BOT_LIMITS__TOKENS_PER_HOUR="many",
    )
    assert found == (
        "line 3, engine.quantization: 'int3' is not one of none, int8, int4",
        "line 4, engine.max_wait: unknown setting; did you mean engine.max_waiting?",
        "line 6, sampling.top_p: [1] is not a number",
        "line 9, sampling.temperature: 9 is too large; the maximum is 2",
        "line 10, engin: unknown section; did you mean engine?",
        "BOT_ENGINE__QUANTISATION: unknown setting; did you mean BOT_ENGINE__QUANTIZATION?",
        "BOT_LIMITS__TOKENS_PER_HOUR: 'many' is not an integer",
    )


def test_the_report_names_file_and_environment(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load("[engine]\nx = 1", BOT_FOO__BAR="1")
    assert str(caught.value) == (
        "config.toml with the environment has 2 mistakes:\n"
        "  line 2, engine.x: unknown setting\n"
        "  BOT_FOO__BAR: unknown setting"
    )


@pytest.mark.parametrize("name", ["BOT_QUOTAS__USER__ANSWERS_PER_DAY", "BOT_CHANNELS__DISCORD:1__LANGUAGE"])
def test_a_variable_for_a_table_with_a_free_name_is_sent_to_the_file(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("", **{name: "1"})
    table = name.removeprefix("BOT_").partition("__")[0].lower()
    assert caught.value.mistakes == (f"{name}: the tables of [{table}] have names, and are set in config.toml only",)
    with pytest.raises(ConfigError, match="did you mean BOT_SERVER__PORT"):
        load("", BOT_SERVERS__PORT="1")


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("engine = 5", "line 1, engine: 5 is not a table; write [engine], with its settings below"),
        ("[engine]\nmodel = 6", "line 2, engine.model: 6 is not a string; put it in quotes"),
        ("[engine]\nmax_batch_size = 0", "line 2, engine.max_batch_size: 0 is too small; the minimum is 1"),
        ("[engine]\nmax_batch_size = true", "line 2, engine.max_batch_size: true is not a number"),
        ("[engine]\nmax_batch_size = 1.5", "line 2, engine.max_batch_size: 1.5 is not an integer"),
        ("[engine]\ndevice = 'gpu'", "'gpu' is not one of auto, cuda, cuda:1 (the second GPU), \"cuda:0,cuda:1\""),
        ("[engine]\nbackend = 'remote'", 'line 1, engine.urls: with backend = "remote" it must name a server'),
        (
            "[engine]\nfallback = 'big'",
            "line 2, engine.fallback: 'big' is not another model; add a table [models.NAME]",
        ),
        (
            "[models.big]\nmodel = 'x'\nfallback = 'bgi'",
            "line 3, models.big.fallback: 'bgi' is not another model; name one of engine",
        ),
        ("[engine]\nbase = 'big'\n[models.big]\nmodel = 'x'", "line 2, engine.base: [engine] has weights of its own"),
        ("[models.club]\nbase = 'engin'", "line 2, models.club.base: 'engin' is not a model with weights of its own"),
        (
            "[models.a]\nbase = 'engine'\n[models.b]\nbase = 'a'",
            "line 4, models.b.base: 'a' is not a model with weights of its own; name one of engine",
        ),
        (
            "[models.club]\nbase = 'engine'\nptuning = 'p'\nquantization = 'int4'",
            "line 4, models.club.quantization: this table shares the model of engine, and with it this setting",
        ),
        ("[models.big]\nmodle = 'x'", "line 2, models.big.modle: unknown setting; did you mean models.big.model?"),
        ("[models.big]\nmax_waiting = 1", "line 1, models.big.model: set the model, or urls, or the backend"),
        ("[models.Big]\nmodel = 'x'", "line 1, models.Big: 'Big' cannot be the name of a model: use lower-case"),
        ("[models.engine]\nmodel = 'x'", "line 1, models.engine: 'engine' cannot be the name of a model"),
        ("[models.big]\nmodel = 'x'\nkey = 'k'", "line 3, models.big.key: secrets are not allowed in this file"),
        ("[models]\nbig = 'x'", "line 2, models.big: 'x' is not a table; write [models.big]"),
        ("[engine]\nbackend = 'llama'", "line 2, engine.backend: 'llama' is not one of auto, chatglm, echo, remote"),
        ("[storage]\nurl = 7", "line 2, storage.url: the value is not a string"),
        ("[adapters.discord]\nproxy = '?'", "'?' is invalid: String should have at least 2 characters"),
        ("[sampling]\ntemperature = nan", "line 2, sampling.temperature: nan is not a number"),
        ("[sampling]\ntop_p = 0", "line 2, sampling.top_p: 0 is too small; it must be greater than 0"),
        ("[conversation]\nname_speakers = 'x'", "'x' is not one of true, false"),
        ("[access]\nadmins = 7", 'line 2, access.admins: 7 is not a list; write ["…", "…"]'),
        ("[access]\nadmins = ['7']", "line 2, access.admins: '7' is not written \"platform:id\""),
        ("[access]\nadmins = ['irc:7']", "'irc:7': unknown platform; known platforms: console, discord, slack"),
        ("[logs]\nlevels = 7", "line 2, logs.levels: 7 is not a table"),
        ("[logs.levels]\n'bot.engine' = 'loud'", "'loud' is not one of debug, info, warning, error"),
        ("temperature = 1", "line 1, temperature: unknown setting; did you mean sampling.temperature?"),
        ("[adapters.discord]\nenabled = 'yes, please'", "'yes, please' is not one of auto, true, false"),
        ("[adapters.discrod]", "line 1, adapters.discrod: unknown platform; did you mean adapters.discord?"),
        ("[engine]\nquantization = '" + "x" * 99 + "'", "xxx… is not one of none, int8, int4"),
        ("[engine\nmodel = 6", "line 1, column 8: expected ']' at the end of a table declaration"),
        ("[engine]\nmodel = 'a'\nmodel = 'b'", "line 3, column 12: cannot overwrite a value"),
        ("[engine]\nmodel = '''a", "end of document"),
    ],
)
def test_a_mistake_in_the_file_is_reported_with_line_and_reason(folder: Path, toml: str, sentence: str) -> None:
    assert sentence in mistake(toml)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("BOT_ENGINE_DEVICE", "did you mean BOT_ENGINE__DEVICE?"),
        ("BOT_ADAPTERS__DISCORD__TOKEN", "did you mean BOT_DISCORD__TOKEN?"),
        ("BOT_SECRET_DIR", ""),
        ("BOT_TOKEN", ""),  # another bot's, perhaps
    ],
)
def test_only_variables_similar_to_ours_are_mistakes(folder: Path, name: str, sentence: str) -> None:
    if sentence:
        assert mistake(**{name: "x"}).endswith(sentence)
    else:
        load(**{name: "x"})


@pytest.mark.parametrize(
    ("toml", "home"),
    [
        ("[adapters.discord]\ntoken = '{}'", "BOT_DISCORD__TOKEN or the file secrets/discord__token"),
        ("[adapters.telegram]\ntoken = '{}'", "BOT_TELEGRAM__TOKEN or the file secrets/telegram__token"),
        ("[discord]\ntoken = '{}'", "BOT_DISCORD__TOKEN or the file secrets/discord__token"),
        ("[slack]\nbot_token = '{}'", "BOT_SLACK__BOT_TOKEN or the file secrets/slack__bot_token"),
        ("[storage]\nurl = 'postgresql://u:{}@h/d'", "BOT_STORAGE__URL or the file secrets/storage__url"),
        ("[storage]\nurl = 'postgresql://h/d?password={}'", "BOT_STORAGE__URL or the file secrets/storage__url"),
        ("[engine]\napi_key = '{}'", "the environment variable"),
        ("[engine]\nmirrors = [{{ password = '{}' }}]", "the environment variable"),
        ("[storage]\nmaster_key = '{}'", "BOT_STORAGE__MASTER_KEY or the file secrets/storage__master_key"),
        ("[[x]]\n[[x.y]]\nsigning_secret = '{}'", "the environment variable"),
    ],
)
def test_a_secret_in_the_file_is_rejected_and_its_place_named(folder: Path, toml: str, home: str) -> None:
    found = mistakes(toml.format(CANARY))
    assert any("secrets are not allowed in this file" in each and home in each for each in found)
    assert CANARY not in "".join(found)


def test_a_raw_at_sign_in_a_database_password_is_reported_without_the_password(folder: Path) -> None:
    assert mistake(BOT_STORAGE__URL="postgresql://bot:p@ss/word@h/d?sslmode=require") == (
        "BOT_STORAGE__URL: it has more than one @: in a password @ is written %40, : %3A, / %2F and % %25"
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://bot:p%40ss@h/d",
        "postgresql://bot:sec/ret@h/d",
        "postgresql://bot:secret@h/d?application_name=me@home",
        "postgresql://bot@h/d@e",
        "sqlite+aiosqlite:///data/a:b@c@d.db",
    ],
)
def test_other_at_signs_in_a_database_url_are_accepted(folder: Path, url: str) -> None:
    assert load(BOT_STORAGE__URL=url).storage.url.get_secret_value() == url


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_database_url_without_a_password_is_allowed_in_the_file(folder: Path, scheme: str) -> None:
    url = f"{scheme}://bot@db/bot"
    assert load(f"[storage]\nurl = '{url}'").storage.url.get_secret_value() == url


def test_a_secret_is_in_no_repr_and_no_traceback(folder: Path) -> None:
    variables = {"BOT_DISCORD__TOKEN": CANARY, "BOT_STORAGE__URL": f"postgresql+psycopg://u:{CANARY}@h/d"}
    config = load(**variables)
    assert CANARY not in repr(config)
    assert CANARY not in str(config)
    assert {*config.secrets} == {f"postgresql+psycopg://u:{CANARY}@h/d", f"u:{CANARY}", CANARY}
    with pytest.raises(ConfigError) as caught:
        load(f"[adapters.slack]\nbot_token = ['{CANARY}']\n[engine]\nx = '{CANARY}'", **variables, BOT_X__Y=CANARY)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_a_master_key_that_could_be_guessed_is_a_mistake(folder: Path) -> None:
    assert load(BOT_STORAGE__MASTER_KEY="x" * 32).storage.master_key == SecretStr("x" * 32)
    assert mistake(BOT_STORAGE__MASTER_KEY="a password") == (
        "BOT_STORAGE__MASTER_KEY: it must have 32 characters or more, and be random: make it with openssl rand -base64 32"
    )


@pytest.mark.parametrize(
    "url",
    ["", "garbage", "mysql://x", "sqlite:///x.db", "sqlite+aiosqlite://", "postgresql+asyncpg://h/d", "/data/bot.db"],
)
def test_an_unknown_database_scheme_is_reported_with_other_mistakes(folder: Path, url: str) -> None:
    assert mistakes(f"[engine]\nmax_wait = 3\n[storage]\nurl = '{url}'") == (
        "line 2, engine.max_wait: unknown setting; did you mean engine.max_waiting?",
        "line 4, storage.url: it must begin with sqlite+aiosqlite:/// (a file) or postgresql:// (a server)",
    )


def test_bots_share_platforms_on_a_server_only(folder: Path) -> None:
    shared = "[cluster]\nenabled = true\nshare = true"
    (sentence,) = mistakes(shared)
    assert sentence.endswith("bots share platforms on a server only: set storage.url to a PostgreSQL database")
    assert load(f"{shared}\n[storage]\nurl = 'postgresql://bot@db/bot'").cluster.is_shared
    assert not load("[cluster]\nshare = true").cluster.is_shared


def test_a_wrong_url_is_rejected_without_its_password(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"BOT_STORAGE__URL: it must begin with sqlite\+aiosqlite:///") as caught:
        load(BOT_STORAGE__URL=f"mysql://u:{CANARY}@h/d")
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert CANARY not in mistake(f"[storage]\nurl = 'mysql://u:{CANARY}@h/d'")


def test_a_database_url_without_a_password_is_not_secret(folder: Path) -> None:
    assert load().secrets == ()


def test_unknown_platforms_in_access_are_reported_with_other_mistakes(folder: Path) -> None:
    Path("config.toml").write_text(
        '[access]\nadmins = ["foo:12", "discord:7", "Discord:5", "12"]\nclear_by = "all"\ndeny_users = ["tele:1"]'
    )
    environ = {"BOT_SECRETS_DIR": "secrets", "BOT_ACCESS__ALLOW_ROLES": "Slack:U01"}
    with pytest.raises(ConfigError) as caught:
        load_config(Path("config.toml"), SETTINGS, BACKENDS, environ)  # as `bot check` does
    no_platform = "unknown platform; known platforms: console, discord, telegram, slack, web"
    assert sorted(caught.value.mistakes) == [
        f"BOT_ACCESS__ALLOW_ROLES: 'Slack:U01': {no_platform}",
        'line 2, access.admins: \'12\' is not written "platform:id", as in "discord:1234"',
        f"line 2, access.admins: 'Discord:5': {no_platform}",
        f"line 2, access.admins: 'foo:12': {no_platform}",
        "line 3, access.clear_by: 'all' is not one of everyone, admins",
        f"line 4, access.deny_users: 'tele:1': {no_platform}",
    ]


def test_secret_files_of_other_programs_are_ignored(folder: Path) -> None:
    Path("secrets/kubernetes.io").mkdir()
    Path("secrets/somebody_elses").write_bytes(b"\xff")
    Path("secrets/discord__token").write_text(" \n")
    assert load().secrets == ()


def test_secret_files_with_a_wrong_name_or_content_are_mistakes(folder: Path) -> None:
    Path("secrets/discord__tokn").write_text(CANARY)
    Path("secrets/slack__bot_token").write_bytes(b"\xff")
    Path("secrets/slack__app_token").mkdir()
    assert mistakes(BOT_SECRETS_DIR="secrets") == (
        "secrets/discord__tokn: unknown setting; did you mean discord__token?",
        "secrets/slack__app_token: cannot be read: Is a directory",
        "secrets/slack__bot_token: not UTF-8",
    )


def test_a_secrets_folder_that_cannot_be_read_is_a_mistake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> None:  # permissions would not stop a test that runs as root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    assert mistake() == "secrets: cannot be read: Permission denied"


def test_a_variable_that_is_not_unicode_is_a_mistake(folder: Path) -> None:
    assert mistake(BOT_ENGINE__MODEL="model\udcff") == "BOT_ENGINE__MODEL: not UTF-8"


def test_a_named_secrets_folder_that_is_missing_is_a_mistake(folder: Path) -> None:
    assert mistake(BOT_SECRETS_DIR="nowhere") == "BOT_SECRETS_DIR: nowhere is not a directory"


@pytest.mark.parametrize(
    ("toml", "variables", "names"),
    [
        ("", {}, ["console"]),
        ("", {"BOT_DISCORD__TOKEN": "x"}, ["discord"]),
        ("[adapters.console]\nenabled = true", {"BOT_DISCORD__TOKEN": "x"}, ["console", "discord"]),
        ("[adapters.discord]\nenabled = false", {"BOT_DISCORD__TOKEN": "x"}, ["console"]),
        ("[adapters.discord]\nenabled = true", {"BOT_DISCORD__TOKEN": "x"}, ["discord"]),
        ("[adapters.console]\nenabled = false", {}, []),
        ("", {"BOT_SLACK__APP_TOKEN": "x", "BOT_SLACK__BOT_TOKEN": "y"}, ["slack"]),
        ("", {"BOT_CONSOLE__ENABLED": "false", "BOT_DISCORD__ENABLED": "auto"}, []),
    ],
)
def test_a_platform_is_enabled_by_its_tokens_and_the_console_if_no_other_is(
    folder: Path, toml: str, variables: dict[str, str], names: list[str]
) -> None:
    assert list(load(toml, **variables).enabled_adapters) == names


def test_an_enabled_platform_without_its_token_is_a_mistake(folder: Path) -> None:
    assert (
        mistake("\n[adapters.discord]\nenabled = true")
        == "line 2, adapters.discord: enabled = true, but BOT_DISCORD__TOKEN is not set"
    )
    assert mistake(BOT_SLACK__ENABLED="1") == (
        "adapters.slack: enabled = true, but BOT_SLACK__APP_TOKEN and BOT_SLACK__BOT_TOKEN are not set"
    )


def test_one_token_of_two_is_a_mistake(folder: Path) -> None:
    assert mistake(BOT_SLACK__APP_TOKEN="x") == (
        "adapters.slack: only one token is set, but BOT_SLACK__BOT_TOKEN is not set"
    )


def test_each_setting_has_its_source(folder: Path) -> None:
    Path("secrets/discord__token").write_text(CANARY)
    Path("config.toml").write_text(
        "# settings\n[engine]\nmodel = '''\nglm'''\n\n  [ logs . levels ]\n  'a.b' = 'info'\n"
    )
    variables = {"BOT_SECRETS_DIR": "secrets", "BOT_ENGINE__DEVICE": "cpu"}
    assert load_config(None, ADAPTERS, environ=variables).origins == {
        ("engine", "model"): "config.toml, line 3",
        ("engine", "device"): "BOT_ENGINE__DEVICE",
        ("logs", "levels"): "config.toml, line 6",
        ("adapters", "discord", "token"): "secrets/discord__token",
    }


def test_line_numbers_are_right_after_strings_that_look_like_tables(folder: Path) -> None:
    toml = (
        '[conversation]\r\nsystem_prompt = """\r\n[engine]\r\nmodel = 1\r\n"""\r\n\r\n[engine]  # [x]\r\nmodel = 2\r\n'
    )
    Path("config.toml").write_bytes(toml.encode())
    with pytest.raises(ConfigError, match=r"line 8, engine\.model: 2 is not a string"):
        load_config(None, ADAPTERS, environ={"BOT_SECRETS_DIR": "secrets"})


def example() -> str:
    return (Path(__file__).parents[2] / "config.toml").read_text(encoding="utf-8")


def test_the_config_toml_of_the_repository_changes_no_default(folder: Path) -> None:
    Path("config.toml").write_text(example(), encoding="utf-8")
    loaded = load_config(None, SETTINGS, environ={"BOT_SECRETS_DIR": "secrets"})
    assert loaded.config.model_copy(update={"adapters": {}}) == Config()
    assert not loaded.origins


def test_config_toml_lists_all_settings_with_defaults_and_descriptions() -> None:
    shown = re.sub(r"^# (?=\w+ = )", "", example(), flags=re.MULTILINE)
    tables = tomllib.loads(shown)
    expected: dict[str, dict[str, object]] = {}
    for key, field in known_settings(SETTINGS).items():
        default = field.get_default(call_default_factory=True)
        if default is None:
            continue  # tokens are not listed
        table = expected
        for name in key[:-1]:
            table = table.setdefault(name, {})  # type: ignore[assignment]  # tables in tables
        value = default.get_secret_value() if isinstance(default, SecretStr) else default
        table[key[-1]] = list(value) if isinstance(value, tuple) else value  # type: ignore[assignment]  # a value
        assert re.search(rf"^{key[-1]} = .*  # {re.escape(field.description or '?')}$", shown, re.MULTILINE), key
    assert tables == expected
