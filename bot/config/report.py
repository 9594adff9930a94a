"""Output of `bot check`: current settings, their sources and defaults."""

import json
from collections.abc import Iterator

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from bot.config.schema import NAMED_TABLES, AdapterSection, Config, Key
from bot.config.secrets import has_password, is_address
from bot.config.section import Section
from bot.config.sources import LoadedConfig


def report(loaded: LoadedConfig) -> Iterator[str]:
    """Yield lines; settings that differ from their default are marked with a star."""
    changed = 0
    for table, section, default in _tables(loaded.config):
        yield f"[{'.'.join(table)}]"
        for (name, value), (_, standard) in zip(section, default, strict=True):
            key, field = (*table, name), type(section).model_fields[name]
            differs = value != standard
            changed += differs
            line = f"{'*' if differs else ' '} {name} = {_shown(field, value)}"
            remarks = [loaded.origins.get(key, ""), f"default: {_shown(field, standard)}" if differs else ""]
            remark = "; ".join(filter(None, remarks))
            yield f"{line:<44}  # {remark}" if remark else line
        yield ""
    yield f"Changed settings: {changed}"
    yield f"Adapters that will run: {', '.join(loaded.config.enabled_adapters) or 'none; enable one under [adapters]'}"


def _tables(config: Config) -> Iterator[tuple[Key, Section, Section]]:
    for name, section in config:
        if isinstance(section, Section):
            yield (name,), section, type(section)()
    for name, model in config.models.items():
        yield ("models", name), model, type(model)()
    for table in NAMED_TABLES:
        for name, section in getattr(config, table).items():
            yield (table, name), section, type(section)()
    for name, adapter in config.adapters.items():
        standard: AdapterSection = type(adapter)()
        yield ("adapters", name), adapter, standard


def _shown(field: FieldInfo, value: object) -> str:
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        return as_toml(secret) if is_address(field) and not has_password(secret) else "(set)"
    return "(not set)" if value is None else as_toml(value)


def as_toml(value: object) -> str:
    """Format a value as in config.toml; secrets inside are hidden."""
    match value:
        case SecretStr():
            return "(set)"
        case BaseModel():
            return as_toml(dict(iter(value)))
        case tuple() | list():
            return f"[{', '.join(as_toml(item) for item in value)}]"
        case dict() if value:
            return f"{{ {', '.join(f'{json.dumps(key)} = {as_toml(item)}' for key, item in value.items())} }}"
        case float() if value.is_integer():
            return str(int(value))
        case _:
            # TOML and JSON write strings, numbers and booleans alike.
            return json.dumps(value, ensure_ascii=False)
