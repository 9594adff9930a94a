"""A first configuration: the checks and the files of `bot init`, for a set-up page too."""

import asyncio
import json
import os
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from pydantic.fields import FieldInfo

from bot.config.report import as_toml
from bot.config.schema import AdapterSection, Key, known_settings, secret_file, variable
from bot.config.sources import LARGEST_FILE, LoadedConfig, load_config, secrets_folder
from bot.config.toml import TomlError, parse_toml
from bot.util.files import read_regular

# Where model servers listen unless told otherwise.
SERVERS: Mapping[str, str] = {
    "Ollama": "http://localhost:11434/v1",
    "vLLM": "http://localhost:8000/v1",
    "llama-server": "http://localhost:8080/v1",
    "LM Studio": "http://localhost:1234/v1",
}
# Seconds for a list of models: a server on this machine answers at once.
_SHORT_CALL = 1.0
# Bytes of a list of models.
_LONGEST_LIST = 2**20
# Settings that the questions decide.
_ASKED: Sequence[Key] = (
    ("engine", "backend"),
    ("engine", "model"),
    ("engine", "urls"),
    ("engine", "quantization"),
    ("conversation", "language"),
)
_DEFAULT = re.compile(r"# (\w+) = ")
# Of a config.toml from a checkout, which has no template.
_HEADER = "# Settings that differ from the defaults; `bot check` shows all settings.\n"
_COMMENT_COLUMN = 36  # of config.toml


@dataclass(frozen=True, slots=True)
class Setup:
    """What differs from the defaults: settings for config.toml, and secrets for files of their own."""

    settings: Mapping[Key, object] = field(default_factory=dict)
    secrets: Mapping[Key, str] = field(default_factory=dict)

    @property
    def has_platform(self) -> bool:
        """Whether a platform has a token; without one the bot chats in a terminal."""
        return any(key[0] == "adapters" for key in self.secrets)


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A model server that answers on this machine."""

    name: str
    url: str
    models: Sequence[str]


def check(
    setup: Setup, adapters: Mapping[str, type[AdapterSection]], backends: Collection[str], environ: Mapping[str, str]
) -> LoadedConfig:
    """Load these settings as `bot run` would, beside the variables of the environment.

    Raises:
        ConfigError: Lists all mistakes.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.toml")
        file.write_text(fill_in("", setup.settings, adapters), encoding="utf-8")
        named = {variable(key): secret for key, secret in setup.secrets.items()}
        return load_config(file, adapters, backends, {**environ, **named})


async def find_servers(servers: Mapping[str, str] = SERVERS) -> list[FoundServer]:
    """Ask the usual ports of this machine for model servers."""
    lists = await asyncio.gather(*map(models_of, servers.values()))
    found = zip(servers.items(), lists, strict=True)
    return [FoundServer(name, url, models) for (name, url), models in found if models]


async def models_of(
    url: str, key: str = "", seconds: float = _SHORT_CALL, *, use_proxies: bool = False
) -> list[str] | None:
    """Return the models that a server lists at `url`; None if it gives no list in time."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with suppress(httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, LookupError, TypeError):
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(headers=headers, trust_env=use_proxies) as client,
            client.stream("GET", f"{url.rstrip('/')}/models") as response,
        ):
            body = b""
            async for piece in response.raise_for_status().aiter_bytes():
                body += piece
                if len(body) > _LONGEST_LIST:
                    return None
            names = [str(each["id"]) for each in json.loads(body)["data"]]
            return [name for name in names if name.isprintable()]
    return None


def outranking(setup: Setup, environ: Mapping[str, str]) -> list[str]:
    """Return the variables that are used instead of what is written: they outrank config.toml and secret files.

    >>> outranking(Setup({("engine", "model"): "a"}), {"BOT_ENGINE__MODEL": "b", "BOT_ENGINE__QUANTIZATION": "none"})
    ['BOT_ENGINE__MODEL']
    """
    asked: dict[Key, object] = {key: known_settings({})[key].default for key in _ASKED}
    values = {key: _as_variable(value) for key, value in (asked | dict(setup.settings) | dict(setup.secrets)).items()}
    return [name for key, value in values.items() if environ.get(name := variable(key), "") not in ("", value)]


def also_enabled(
    setup: Setup, folder: Path, adapters: Mapping[str, type[AdapterSection]], environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the platforms that run although they were not asked for, each with a place of its token."""
    home = secrets_folder(folder, environ)
    found: dict[str, str] = {}
    for name, section in adapters.items():
        keys: list[Key] = [("adapters", name, token) for token in section.tokens]
        places = [_place(key, home, environ) for key in keys if key not in setup.secrets]
        if places and len(places) == len(keys) and all(places):
            found[name] = places[0]
    return found


def _place(key: Key, home: Path, environ: Mapping[str, str]) -> str:
    if environ.get(variable(key)):
        return variable(key)
    file = home / secret_file(key)
    return str(file) if file.is_file() else ""


def _as_variable(value: object) -> str:
    return ",".join(value) if isinstance(value, list | tuple) else str(value)


def fill_in(text: str, settings: Mapping[Key, object], adapters: Mapping[str, type[AdapterSection]]) -> str:
    r"""Set settings in a config.toml that sets none yet; its comments stay.

    >>> print(fill_in("[engine]\n# max_waiting = 64  # …\n", {("engine", "max_waiting"): 9}, {}), end="")
    [engine]
    max_waiting = 9                       # maximum queued requests; further ones are rejected with a message
    """
    lines = text.removesuffix("\n").split("\n") if text else []
    known = known_settings(adapters)
    for key, value in settings.items():
        header = f"[{'.'.join(key[:-1])}]"
        headers = [line.partition("#")[0].strip() for line in lines]
        if header not in headers:
            lines += [""] * bool(lines) + [header]
            headers = lines
        begin = headers.index(header) + 1
        end = next((number for number in range(begin, len(lines)) if lines[number].startswith("[")), len(lines))
        at = next((n for n in range(begin, end) if (name := _DEFAULT.match(lines[n])) and name[1] == key[-1]), None)
        line = described(f"{key[-1]} = {as_toml(value)}", known[key])
        if at is None:
            while not lines[end - 1]:
                end -= 1
            lines.insert(end, line)
        else:
            lines[at] = line
    return "\n".join([*lines, ""])


def described(setting: str, field: FieldInfo) -> str:
    """Return a line of config.toml with its comment."""
    return f"{setting:<{_COMMENT_COLUMN}}  # {field.description}"


def sets_nothing(file: Path) -> bool:
    """Return whether a config.toml is missing, or all of it is comments and headers."""
    try:
        # Some editors write a byte order mark.
        tables = parse_toml(read_regular(file, LARGEST_FILE).decode("utf-8-sig"))
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError, TomlError):
        return False
    return not _values(tables)


def _values(table: Mapping[str, object]) -> list[object]:
    nested = [_values(value) if isinstance(value, dict) else [value] for value in table.values()]
    return [value for values in nested for value in values]


def files_of(
    setup: Setup, folder: Path, adapters: Mapping[str, type[AdapterSection]], environ: Mapping[str, str]
) -> dict[Path, str]:
    """Return the files of a configuration in `folder`, with their texts."""
    config = folder / "config.toml"
    written = config if config.exists() and sets_nothing(config) else Path(__file__).with_name("template.toml")
    base = written.read_text(encoding="utf-8-sig") if written.exists() else _HEADER
    home = secrets_folder(folder, environ)
    texts = {config: fill_in(base, setup.settings, adapters)}
    return texts | {home / secret_file(key): f"{secret}\n" for key, secret in setup.secrets.items()}


def write(files: Mapping[Path, str], private: Collection[Path]) -> None:
    """Write all files, or none; those in `private` for the owner alone, as are folders made for them.

    Raises:
        OSError: A file cannot be written.
    """
    parts: dict[Path, Path] = {}
    try:
        for path, text in files.items():
            path.parent.mkdir(mode=0o700 if path in private else 0o755, parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            parts[part] = path
            mode = 0o600 if path in private else 0o644
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
                file.write(text)
        for part, path in parts.items():
            part.replace(path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
