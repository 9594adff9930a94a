"""Edit config.toml: texts checked as at the start, settings changed with the comments kept, saved as a whole."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import tomlkit
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from tomlkit.exceptions import TOMLKitError

from bot.config.changes import ValueChange, changes_between
from bot.config.reload import ConfigWatcher, revision_of
from bot.config.report import as_toml
from bot.config.schema import AdapterSection, Config, EngineSection, Key, known_settings
from bot.config.section import split_list
from bot.config.setup import described, fill_in
from bot.config.sources import LARGEST_FILE, LoadedConfig
from bot.config.toml import TomlError, find_lines, names_secret, parse_toml
from bot.errors import ConfigError
from bot.util.files import read_regular, replace_file

# Checks in a thread whether a model can be replaced; raises EngineError.
CheckModel = Callable[[str, EngineSection], Awaitable[None]]

_BOM = b"\xef\xbb\xbf"
# A setting of this form, also in a comment: the parser of TOML does not see those.
_WRITTEN = re.compile(r"""(?:^[\s#]*|[{,]\s*)["']?([\w.-]+)["']?\s*=\s*["']?[^\s"']""")
_PASSWORD_IN_URL = re.compile(r"""://[^/\s"']*:[^/\s"']+@""")
# Shorter ones may be words.
_SHORTEST_SECRET = 6


@dataclass(frozen=True, slots=True)
class ConfigText:
    """The content of config.toml; `revision` tells it from later contents."""

    text: str
    revision: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A text for config.toml: its mistakes, as the start would name them, else what it would change.

    `needs_restart` includes settings that config.toml has now, and that wait for a restart.
    """

    text: str
    mistakes: tuple[str, ...] = ()
    loaded: LoadedConfig | None = None
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Saved:
    """A saved file: its revision, and the settings that it changed."""

    revision: str
    changes: tuple[ValueChange, ...]


class ConfigEditor:
    """Reads, checks and saves the file that a watcher follows.  Methods without `async` block."""

    def __init__(
        self, watcher: ConfigWatcher, adapters: Mapping[str, type[AdapterSection]], check_model: CheckModel
    ) -> None:
        self._watcher = watcher
        self._adapters = adapters
        self._check_model = check_model
        self._overrides: Mapping[Key, str] = {}

    @property
    def path(self) -> Path:
        return self._watcher.source.path

    @property
    def adapters(self) -> Mapping[str, type[AdapterSection]]:
        return self._adapters

    @property
    def current(self) -> Config:
        """The settings in force."""
        return self._watcher.current

    @property
    def failures(self) -> Mapping[str, str]:
        """The reasons by name of models that are not as config.toml has them."""
        return self._watcher.failures

    @property
    def wanted_models(self) -> Mapping[str, EngineSection]:
        """The sections of the running models as config.toml has them, by name."""
        return self._watcher.wanted_models

    @property
    def revision(self) -> str:
        """The revision of the content that was loaded last."""
        return self._watcher.revision

    @property
    def overrides(self) -> Mapping[Key, str]:
        """The settings that environment variables and secret files have, as of the last check, with their sources."""
        return self._overrides

    def read(self) -> ConfigText:
        """Return the content; a missing file is empty.

        Raises:
            ConfigError: It cannot be read, or must not be shown: there is a secret in it.
        """
        content = self._read()
        try:
            text = content.removeprefix(_BOM).decode()
        except UnicodeDecodeError as error:
            raise ConfigError(str(self.path), [f"byte {error.start} is not UTF-8; save the file as UTF-8"]) from None
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        self._refuse_secrets(text, "it is not shown here: remove the secret in the file itself")
        return ConfigText(text, revision_of(content))

    def why_fixed(self) -> str | None:
        """Return why the file cannot be saved, as far as is known before it is tried."""
        target = self.path.resolve()
        if target.exists():
            if not target.stat().st_mode & 0o222 or not os.access(target, os.W_OK):
                return f"{self.path} is read-only"
            if target.is_mount():
                return f"{self.path} is mounted by itself, so it cannot be replaced: mount its folder"
        if not os.access(target.parent, os.W_OK):
            return f"the folder of {self.path} is read-only"
        return None

    def check(self, text: str) -> Draft:
        """Check a text as the start would."""
        load = self._watcher.source.load_text
        assert load is not None, "a source without load_text has no editor"
        try:
            self._refuse_secrets(text, "secrets are not allowed in this file, also not in comments")
            if len(text.encode("utf-8", "replace")) > LARGEST_FILE:
                raise ConfigError(str(self.path), [f"the text is larger than {LARGEST_FILE:,} bytes"])
            loaded = load(text)
        except ConfigError as error:
            return Draft(text, error.mistakes)
        self._overrides = loaded.overrides
        changed, needs_restart = self._watcher.effect_of(loaded.config)
        return Draft(text, (), loaded, changed, needs_restart)

    async def set(self, values: Mapping[Key, object]) -> Saved:
        """Set settings, None for the default, as an editor of the file would.

        Raises:
            ConfigError: One is overridden or invalid, or the file cannot be saved.
            EngineError: A model could not be loaded with them.
        """
        draft, revision = await asyncio.to_thread(self._with, values)
        await self.check_models(draft)
        return await asyncio.to_thread(self.save, draft, revision)

    def _with(self, values: Mapping[Key, object]) -> tuple[Draft, str]:
        read = self.read()
        text = read.text
        for key, value in values.items():
            text = with_setting(text, key, value, self._adapters)
        draft = self.check(text)
        if draft.loaded is not None:
            overrides = draft.loaded.overrides
            hidden = [f"{overrides[key]} overrides {'.'.join(key)} of the file" for key in values if key in overrides]
            draft = replace(draft, mistakes=tuple(hidden))
        if draft.mistakes:
            raise ConfigError(str(self.path), draft.mistakes)
        return draft, read.revision

    async def check_models(self, draft: Draft) -> None:
        """Check that the models that a draft would replace can be loaded.

        Raises:
            EngineError: One could not.
        """
        if draft.loaded is not None:
            for name, section in self._watcher.changed_models(draft.loaded.config).items():
                await self._check_model(name, section)

    def save(self, draft: Draft, revision: str) -> Saved:
        """Write a draft without mistakes and let it be loaded.

        Raises:
            ConfigError: It has mistakes, the file has changed since that revision, or it cannot be written.
        """
        if draft.mistakes:
            raise ConfigError(str(self.path), draft.mistakes)
        if (why := self.why_fixed()) is not None:
            raise ConfigError(str(self.path), [why])
        before = self._read()
        if revision_of(before) != revision:
            raise ConfigError(str(self.path), ["the file was changed meanwhile; look at it again"])
        text = draft.text.replace("\n", "\r\n") if b"\r\n" in before else draft.text
        content = (_BOM if before.startswith(_BOM) else b"") + text.encode()
        try:
            replace_file(self.path.resolve(), content)
        except OSError as error:
            raise ConfigError(str(self.path), [f"the file cannot be replaced ({error.strerror})"]) from None
        self._watcher.reload_now()
        earlier = before.removeprefix(_BOM).decode("utf-8", "replace")
        return Saved(revision_of(content), changes_between(earlier, draft.text, self._adapters))

    def _read(self) -> bytes:
        try:
            return read_regular(self.path, LARGEST_FILE)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ConfigError(str(self.path), [f"the file cannot be read ({error.strerror})"]) from None

    def _refuse_secrets(self, text: str, why: str) -> None:
        lines = secret_lines(text, self.current.secrets)
        if lines:
            raise ConfigError(str(self.path), [f"line {number} may have a secret; {why}" for number in lines])


def secret_lines(text: str, secrets: tuple[str, ...]) -> list[int]:
    r"""Return the numbers of lines, comments included, that have a secret or look as if they had one.

    >>> secret_lines('[engine]\n# token = "x"\nurls = ["http://me:pw@host"]\n', ())
    [2, 3]
    """
    known = [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET]
    return [number for number, line in enumerate(text.split("\n"), 1) if _has_secret(line, known)]


def _has_secret(line: str, secrets: list[str]) -> bool:
    return (
        any(map(names_secret, _WRITTEN.findall(line)))
        or _PASSWORD_IN_URL.search(line) is not None
        or any(secret in line for secret in secrets)
    )


def with_setting(text: str, key: Key, value: object, adapters: Mapping[str, type[AdapterSection]]) -> str:
    r"""Return a text with a setting changed, or with None taken out; comments stay.

    >>> with_setting('[engine]\nmodel = "demo"  # mine\n', ("engine", "model"), "/models/6b", {})
    '[engine]\nmodel = "/models/6b"  # mine\n'

    Raises:
        ConfigError: The text is not TOML.
    """
    try:
        tables = parse_toml(text)
        wanted = _set(tables, key, value)
        if wanted == tables:
            return text
        for changed in (_by_line(text, key, value, adapters), _by_parser(text, key, value)):
            # A line inside a string can look like a setting or a header.
            if _parsed(changed) == wanted:
                return changed
    except (TomlError, TOMLKitError) as error:
        raise ConfigError("config.toml", [str(error)]) from None
    raise ConfigError("config.toml", [f"{'.'.join(key)} is written in a way that only an editor can change"])


def _by_line(text: str, key: Key, value: object, adapters: Mapping[str, type[AdapterSection]]) -> str:
    """Change the line of a setting that has a default: comment it out, or write it where its comment is."""
    known = known_settings(adapters)
    line = find_lines(text).get(key)
    if key not in known or (value is None) == (line is None):
        return text
    if line is None:
        return fill_in(text, {key: value}, adapters)
    lines = text.split("\n")
    lines[line - 1] = described(f"# {key[-1]} = {as_toml(plain_default(known[key]))}", known[key])
    return "\n".join(lines)


def _by_parser(text: str, key: Key, value: object) -> str:
    document: Any = tomlkit.parse(text)
    table = document
    for part in key[:-1]:
        if part not in table:
            table[part] = tomlkit.table()
        table = table[part]
    if value is not None:
        table[key[-1]] = value
    elif key[-1] in table:
        del table[key[-1]]
    written: str = document.as_string()
    return written


def _set(tables: dict[str, Any], key: Key, value: object) -> dict[str, Any]:
    changed = deepcopy(tables)
    table: Any = changed
    for part in key[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise TomlError(f"{'.'.join(key[:-1])} is not a table")
    if value is not None:
        table[key[-1]] = list(value) if isinstance(value, tuple) else value
    else:
        table.pop(key[-1], None)
    return changed


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return parse_toml(text)
    except TomlError:
        return None


def plain_default(field: FieldInfo) -> object:
    """Return the default of a setting, with an address as it is written."""
    default = field.get_default(call_default_factory=True)
    return default.get_secret_value() if isinstance(default, SecretStr) else default


def parse_field(field: FieldInfo, written: str) -> object:
    """Return the value that a person means by a text in a form; None, for the default, where it is empty.

    What is no value stays a text, which the check then names.

    >>> from bot.config.schema import EngineSection
    >>> fields = EngineSection.model_fields
    >>> parse_field(fields["max_waiting"], "9"), parse_field(fields["urls"], "http://a, http://b")
    (9, ['http://a', 'http://b'])
    >>> parse_field(fields["max_waiting"], "many"), parse_field(fields["model"], "7"), parse_field(fields["model"], "")
    ('many', '7', None)
    """
    written = written.strip()
    if not written:
        return None
    if any("tuple" in str(each) for each in (field.annotation, *get_args(field.annotation))):
        return split_list(written)
    if field.annotation in (str, SecretStr) or str in get_args(field.annotation):
        return written
    try:
        tables = parse_toml(f"value = {written}")
    except TomlError:
        return written
    return tables["value"] if list(tables) == ["value"] else written
