"""Load settings from config.toml, secret files and the environment."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from bot.config.errors import explain, unknown
from bot.config.http import KeySection
from bot.config.places import EVERYONE, MANAGERS, Asker, PlaceSection
from bot.config.platform_ids import check_platform_id, check_quota
from bot.config.quotas import QuotaName, QuotaSection
from bot.config.references import alone, described, named_settings, with_valid_settings, wrong_names
from bot.config.schema import (
    NAMED_TABLES,
    AccessSection,
    AdapterSection,
    Config,
    EngineSection,
    Key,
    ModelName,
    known_settings,
    secret_file,
    table_of,
    variable,
)
from bot.config.secrets import has_password, is_address, is_secret, is_secret_name
from bot.config.section import PlatformId, Section, ThreadId
from bot.config.toml import TomlError, find_lines, parse_toml
from bot.domain import LEVELS
from bot.errors import ConfigError
from bot.util.files import read_regular

SECRETS_DIR = Path("/run/secrets")  # the mount point of Docker, Podman and Swarm
LOCAL_SECRETS_DIR = "secrets"  # beside config.toml, where there is no such mount
# Bytes; larger ones are something else.
LARGEST_FILE = 256 * 1024
_LARGEST_SECRET = 64 * 1024
# Mistakes that are listed; each costs milliseconds to explain.
_MOST_MISTAKES = 50
_LONGEST_NAME = 60
_MODEL_VARIABLE = re.compile(r"BOT_MODELS__([A-Z0-9_.-]+?)__[A-Z]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """The settings, and the source of each one that is set.

    `overrides` has those sources that outrank config.toml: environment variables and secret files.
    """

    config: Config
    origins: Mapping[Key, str]
    overrides: Mapping[Key, str] = field(default_factory=dict)


def load_config(
    path: Path | None,
    adapters: Mapping[str, type[AdapterSection]],
    backends: Collection[str] = (),
    environ: Mapping[str, str] | None = None,
    text: str | None = None,
) -> LoadedConfig:
    """Load all settings, each with its source.

    Environment variables override secret files, which override config.toml.  With `path` None, ./config.toml is optional.  `adapters` are the sections allowed under
    `[adapters]`, `backends` the values allowed for `engine.backend`.  A `text` is checked as if the file had it.

    Raises:
        ConfigError: Lists all mistakes.
    """
    file = _File.read(path, text)
    environ = os.environ if environ is None else environ
    variables = known_settings(adapters, _model_names(file, environ))
    environment = _Environment(variables, environ, Path(file.name).parent)
    known = variables | dict(named_settings(file.tables))
    in_file: list[tuple[int, str]] = []
    elsewhere = list(environment.mistakes)

    def note(key: Key, sentence: str) -> None:
        if origin := environment.origin(key, file.lines):
            elsewhere.append(f"{origin}: {sentence}")
        elif line := file.line(key):
            in_file.append((line, f"line {line}, {_named(key)}: {sentence}"))
        else:
            elsewhere.append(f"{_named(key)}: {sentence}")

    for key in file.take_secrets(known):
        line, home = file.line(key), _home_of(key, known)
        places = f"the environment variable {variable(home)} or the file {environment.secrets_dir / secret_file(home)}"
        refusal = f"line {line}, {_named(key)}: secrets are not allowed in this file; use {places}"
        in_file.append((line, refusal))
    config = Config()
    try:
        config = _validated(adapters, backends, file.tables, environment)
    except ValidationError as error:
        config = with_valid_settings(file.tables, environment.files | environment.variables)
        errors = error.errors(include_url=False)
        for key, sentences in explain(errors[:_MOST_MISTAKES], known).items():
            for sentence in sentences:
                note(key, sentence)
        if len(errors) > _MOST_MISTAKES:
            elsewhere.append(f"and {len(errors) - _MOST_MISTAKES:,} more mistakes")
    for key, sentence in wrong_names(config):
        note(key, sentence)

    if in_file or elsewhere:
        where = [file.name] * bool(in_file) + ["the environment"] * bool(elsewhere)
        raise ConfigError(" with ".join(where), [*(text for _, text in sorted(in_file)), *elsewhere])
    origins = {key: f"{file.name}, line {file.lines[key]}" for key in known if key in file.lines}
    return LoadedConfig(config, origins | environment.origins, environment.origins)


def _model_names(file: "_File", environ: Mapping[str, str]) -> list[str]:
    """Return the names of the models in config.toml and in environment variables.

    A model has to be named in one of them: a secret file alone would be a model without an address.
    """
    tables = file.tables.get("models")
    named = (_MODEL_VARIABLE.match(name) for name in sorted(environ))
    return _unique([*(tables if isinstance(tables, dict) else ()), *(found[1].lower() for found in named if found)])


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class _File:
    """The contents of config.toml, with line numbers."""

    name: str
    tables: dict[str, Any]
    lines: Mapping[Key, int]

    @classmethod
    def read(cls, path: Path | None, text: str | None) -> "_File":
        where = path or Path("config.toml")
        try:
            if text is None:
                text = read_regular(where, LARGEST_FILE).decode("utf-8-sig")  # some editors write a byte order mark
            text = text.replace("\r\n", "\n").replace("\r", "\n")
            return cls(str(where), parse_toml(text), find_lines(text))
        except FileNotFoundError:
            if path is None:
                return cls(str(where), {}, {})
            raise ConfigError(str(where), ["the file does not exist; name another one, or omit --config"]) from None
        except OSError as error:
            raise ConfigError(str(where), [f"the file cannot be read ({error.strerror})"]) from None
        except UnicodeDecodeError as error:
            raise ConfigError(str(where), [f"byte {error.start} is not UTF-8; save the file as UTF-8"]) from None
        except TomlError as error:
            raise ConfigError(str(where), [str(error)]) from None

    def line(self, key: Key) -> int:
        above = (key[:length] for length in range(len(key), 0, -1))
        return next((self.lines[part] for part in above if part in self.lines), 0)

    def take_secrets(self, known: Mapping[Key, FieldInfo]) -> list[Key]:
        """Remove all secrets before anything can show them; return their keys."""
        return list(_remove_secrets(self.tables, (), known))


def _named(key: Key) -> str:
    """Join the parts of a key; a name with control characters is quoted, a long one is cut."""
    parts = (name if name.isprintable() else repr(name) for name in key)
    return ".".join(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in parts)


def _remove_secrets(table: dict[str, Any], parent: Key, known: Mapping[Key, FieldInfo]) -> Iterator[Key]:
    for name, value in list(table.items()):
        key = (*parent, name)
        if key in known and is_address(known[key]):
            found = isinstance(value, str) and has_password(value)
        elif (key in known and _is_table(known[key])) or (parent in known and _is_table(known[parent])):
            found = not isinstance(value, dict)
        else:
            found = is_secret_name(name) or (key in known and is_secret(known[key]))
        if found:
            del table[name]
            yield key
            continue
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                yield from _remove_secrets(inner, key, known)


def _home_of(key: Key, known: Mapping[Key, FieldInfo]) -> Key:
    """Guess the setting that a secret in config.toml was meant for."""
    if key in known or (key[0] == "adapters" and len(key) == 3):
        return key
    if key[:2] in known and _is_table(known[key[:2]]):
        return key[:3]
    secrets = {
        variable(k): k
        for k, field in known.items()
        if k[0] == "adapters" and is_secret(field) and not is_address(field)
    }
    near = get_close_matches(variable(key), secrets, n=1, cutoff=0.4)
    return secrets[near[0]] if near else ("adapters", "discord", "token")


@dataclass(frozen=True, slots=True)
class _Names:
    """Settings by the names of their variables or files; those of `tables` begin names that an operator chooses."""

    exact: dict[str, Key] = field(default_factory=dict)
    tables: dict[str, Key] = field(default_factory=dict)

    def find(self, name: str) -> Key | None:
        """Return the key of a setting; a chosen name is in lower case."""
        for prefix, key in self.tables.items():
            if name.startswith(prefix) and len(name) > len(prefix):
                return (*key, name.removeprefix(prefix).lower(), "secret")
        return self.exact.get(name)


def secrets_folder(folder: Path, environ: Mapping[str, str]) -> Path:
    """Return the folder of the secret files for a config.toml in `folder`."""
    usual = SECRETS_DIR if SECRETS_DIR.is_dir() else folder / LOCAL_SECRETS_DIR
    return Path(environ.get("BOT_SECRETS_DIR") or usual)


def _named_table(name: str) -> str | None:
    """Return the table that a variable is for, if its own name is free and only config.toml can have it."""
    table, separator, _ = name.removeprefix("BOT_").partition("__")
    is_one = name.startswith("BOT_") and separator and table.lower() in NAMED_TABLES
    return table.lower() if is_one else None


def _is_table(field: FieldInfo) -> bool:
    """Return whether the setting has tables with a secret each, whose names an operator chooses."""
    return field.annotation == dict[str, KeySection] | None


class _Environment:
    """Settings from environment variables and secret files, and mistakes among them."""

    def __init__(self, known: Mapping[Key, FieldInfo], environ: Mapping[str, str], folder: Path) -> None:
        self._names, self._files = _Names(), _Names()
        for key, info in known.items():
            if _is_table(info):
                self._names.tables[f"{variable(key)}__"] = self._files.tables[f"{secret_file(key)}__"] = key
            else:
                self._names.exact[variable(key)] = self._files.exact[secret_file(key)] = key
        self.origins: dict[Key, str] = {}
        self.mistakes: list[str] = []
        self.secrets_dir = secrets_folder(folder, environ)
        if environ.get("BOT_SECRETS_DIR") and not self.secrets_dir.is_dir():
            self.mistakes.append(f"BOT_SECRETS_DIR: {self.secrets_dir} is not a directory")
        self.files = self._read_files()
        self.variables = self._read_variables(environ)

    def origin(self, key: Key, lines: Mapping[Key, int]) -> str | None:
        """Return the variable or file of a setting; one of a model that config.toml, with these `lines`, does not have."""
        if key[0] == "models" and key[:2] not in lines:
            return next((origin for other, origin in self.origins.items() if other[:2] == key[:2]), None)
        return self.origins.get(key)

    def _read_variables(self, environ: Mapping[str, str]) -> dict[Key, str]:
        values: dict[Key, str] = {}
        for name, value in sorted(environ.items()):
            if (key := self._names.find(name)) is not None:
                if _LONE_SURROGATE.search(value):  # an undecodable byte
                    self.mistakes.append(f"{name}: not UTF-8")
                elif value:  # compose files pass unset variables as empty
                    values[key] = value
                    self.origins[key] = name
            elif name.startswith("BOT_") and name != "BOT_SECRETS_DIR":
                # Other programs may use BOT_SOMETHING; report only similar names and those with two underscores.
                table = _named_table(name)
                near = get_close_matches(
                    name, self._names.exact, n=1, cutoff=0.6 if "__" in name and not table else 0.9
                )
                if table and not near:
                    self.mistakes.append(f"{name}: the tables of [{table}] have names, and are set in config.toml only")
                elif near or "__" in name:
                    self.mistakes.append(f"{name}: {unknown(near)}")
        return values

    def _secret_files(self) -> list[Path]:
        try:
            return sorted(self.secrets_dir.iterdir()) if self.secrets_dir.is_dir() else []
        except OSError as error:
            self.mistakes.append(f"{self.secrets_dir}: cannot be read: {error.strerror}")
            return []

    def _read_files(self) -> dict[Key, str]:
        values: dict[Key, str] = {}
        sections = {name.partition("__")[0] for name in self._files.exact}
        for file in self._secret_files():
            key = self._files.find(file.name)
            if key is not None:
                try:
                    value = read_regular(file, _LARGEST_SECRET).decode("utf-8").strip()
                except OSError as error:
                    self.mistakes.append(f"{file}: cannot be read: {error.strerror}")
                except UnicodeDecodeError:
                    self.mistakes.append(f"{file}: not UTF-8")
                else:
                    if value:
                        values[key] = value
                        self.origins[key] = str(file)
            elif file.name.partition("__")[0] in sections and "__" in file.name:
                self.mistakes.append(f"{file}: {unknown(get_close_matches(file.name, self._files.exact, n=1))}")
        return values


class _Named(EnvSettingsSource):
    """Source for environment variables and secret files: strings under a flat name."""

    def __init__(self, settings: type[BaseSettings], values: Mapping[Key, str]) -> None:
        super().__init__(settings)
        self.env_vars = {self.env_prefix.lower() + "__".join(key): value for key, value in values.items()}


def _validated(
    adapters: Mapping[str, type[AdapterSection]],
    backends: Collection[str],
    tables: dict[str, Any],
    environment: _Environment,
) -> Config:
    class Sources(BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix="BOT_", env_nested_delimiter="__", enable_decoding=False, extra="forbid"
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                _Named(settings_cls, environment.variables),
                _Named(settings_cls, environment.files),
                InitSettingsSource(settings_cls, tables),
            )

    def known_backend(engine: EngineSection) -> EngineSection:
        if backends and engine.backend not in backends:
            why = f"{engine.backend!r} is not one of {', '.join(backends)}"
            raise PydanticCustomError("one_setting", "see the context", {"setting": "backend", "why": why})
        if engine.backend == "remote" and not engine.urls:
            why = 'with backend = "remote" it must name a server, as in urls = ["http://localhost:11434/v1"]'
            raise PydanticCustomError("one_setting", "see the context", {"setting": "urls", "why": why})
        return engine

    sections: dict[str, Any] = {
        name: (field.annotation, field) for name, field in Config.model_fields.items() if name != "adapters"
    }

    # Each item is validated by itself, so that no mistake hides another.
    def known(type: Any, table: str) -> Any:
        return Annotated[type, AfterValidator(partial(check_platform_id, adapters=adapters, table=table))]

    def known_asker(named: str) -> str:
        return named if named in (EVERYONE, MANAGERS) else check_platform_id(named, adapters, "users")

    asker: Any = Annotated[Asker, AfterValidator(known_asker)]
    who = PlaceSection.model_fields["who"]
    place: Any = create_model(
        "Place", __base__=PlaceSection, who=(Annotated[tuple[asker, ...] | None, *who.metadata], None)
    )

    lists: dict[str, Any] = {}
    for name, info in AccessSection.model_fields.items():
        if info.annotation == tuple[PlatformId, ...]:
            item: Any = known(PlatformId, name.partition("_")[2])
            lists[name] = (Annotated[tuple[item, ...], *info.metadata], info.default)
    access: Any = create_model("Access", __base__=AccessSection, **lists)
    sections["access"] = (Annotated[access, AfterValidator(lambda found: AccessSection(**dict(found)))], access())
    model: Any = Annotated[EngineSection, AfterValidator(known_backend)]
    sections["engine"] = (Annotated[model, AfterValidator(alone)], EngineSection())
    sections["models"] = (dict[ModelName, Annotated[model, AfterValidator(described)]], {})
    named: dict[str, Any] = {"platform": str, "thread": ThreadId}
    for level in LEVELS:
        id: Any = known(named.get(level, PlatformId), table_of(level))
        sections[table_of(level)] = (dict[id, Annotated[place, AfterValidator(_place)]], {})

    quota: Any = Annotated[QuotaName, AfterValidator(partial(check_quota, adapters=adapters))]
    sections["quotas"] = (dict[quota, QuotaSection], {})
    platforms: dict[str, Any] = {name: (section, Field(default_factory=section)) for name, section in adapters.items()}
    table = create_model("Adapters", __base__=Section, **platforms)
    settings: Any = create_model("Settings", __base__=Sources, **sections, adapters=(table, table()))()
    return Config(
        **{name: getattr(settings, name) for name in sections},
        adapters={name: getattr(settings.adapters, name) for name in adapters},
    )


def _place(found: PlaceSection) -> PlaceSection:
    """Return the place as one of the class that all others have."""
    return PlaceSection.model_construct(found.model_fields_set, **dict(found))
