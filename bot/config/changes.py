"""Settings that an edit of config.toml changed, with their values before and after."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from bot.config.report import as_toml
from bot.config.schema import AdapterSection, Key, known_settings
from bot.config.secrets import has_password, is_address, is_secret, is_secret_name
from bot.config.toml import TomlError, parse_toml

WITHHELD = "(secret)"


@dataclass(frozen=True, slots=True)
class ValueChange:
    """One setting; a value is written as in config.toml, None where the file has none."""

    setting: str
    before: str | None
    after: str | None


def changes_between(before: str, after: str, adapters: Mapping[str, type[AdapterSection]]) -> tuple[ValueChange, ...]:
    r"""Return what differs between two contents of config.toml, without the values of secrets.

    A content that is no TOML has no settings.

    >>> before, after = '[engine]\nmodel = "a"\n', '[engine]\nmodel = "b"\nkey = "s"\n'
    >>> [(each.setting, each.before, each.after) for each in changes_between(before, after, {})]
    [('engine.model', '"a"', '"b"'), ('engine.key', None, '(secret)')]
    """
    old, new = _parsed(before), _parsed(after)
    names = {name for each in (old, new) if isinstance(models := each.get("models"), dict) for name in models}
    known = known_settings(adapters, names)
    first, second = dict(_leaves(old)), dict(_leaves(new))
    return tuple(
        ValueChange(".".join(key), _shown(key, first.get(key), known), _shown(key, second.get(key), known))
        for key in first | second
        if first.get(key) != second.get(key)
    )


def _parsed(text: str) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except TomlError:
        return {}


def _leaves(table: Mapping[str, Any], path: Key = ()) -> Iterator[tuple[Key, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _shown(key: Key, value: object, known: Mapping[Key, FieldInfo]) -> str | None:
    if value is None:
        return None
    # A setting may be a table, such as server.keys.
    fields = [field for end in range(1, len(key) + 1) if (field := known.get(key[:end])) is not None]
    if any(map(is_secret_name, key)) or any(is_secret(each) and not is_address(each) for each in fields):
        return WITHHELD
    return _written(value)


def _written(value: object) -> str:
    match value:
        case str():
            return WITHHELD if has_password(value) else as_toml(value)
        case bool() | int() | float():
            return as_toml(value)
        case list():
            return f"[{', '.join(map(_written, value))}]"
        case dict():  # no setting has tables in a list
            return "{…}"
        case _:  # a date or time, which JSON does not have
            return str(value)
