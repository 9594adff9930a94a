"""Settings that name other tables of config.toml: fallbacks, personas, models."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from bot.config.places import PlaceSection
from bot.config.schema import DEFAULT_MODEL, NAMED_TABLES, Config, Key, table_of


def named_settings(tables: Mapping[str, Any]) -> Iterator[tuple[Key, FieldInfo]]:
    """Yield the settings of the personas, places and people that a file names."""
    for table, section in NAMED_TABLES.items():
        names = tables.get(table)
        for name in names if isinstance(names, dict) else ():
            for setting, field in section.model_fields.items():
                yield (table, name, setting), field


def wrong_names(config: Config) -> Iterator[tuple[Key, str]]:
    """Yield each setting that names what config.toml does not have, and a sentence about it."""
    sections = config.sections
    for name, section in sections.items():
        key: Key = (name,) if name == DEFAULT_MODEL else ("models", name)
        others = [other for other in sections if other != name]
        if section.fallback and section.fallback not in others:
            known = f"name one of {', '.join(others)}" if others else "add a table [models.NAME]"
            yield (*key, "fallback"), f"{section.fallback!r} is not another model; {known}"
    for level, places in config.places.items():
        for id, place in places.items():
            yield from _wrong_in(place, (table_of(level), id), config)


def _wrong_in(place: PlaceSection, table: Key, config: Config) -> Iterator[tuple[Key, str]]:
    if place.persona is not None and place.persona not in config.personas:
        known = f"name one of {', '.join(config.personas)}" if config.personas else "add a table [personas.NAME]"
        yield (*table, "persona"), f"{place.persona!r} is not a persona; {known}"
    named = {"model": () if place.model is None else (place.model,), "models": place.models or ()}
    for setting, models in named.items():
        for model in models:
            if model not in config.sections:
                known = ", ".join(config.sections)
                yield (*table, setting), f"{model!r} is not a model; name one of {known}"
