"""Settings that name other tables of config.toml: fallbacks, bases, personas, models."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from bot.config.places import PlaceSection
from bot.config.schema import DEFAULT_MODEL, NAMED_TABLES, Config, EngineSection, Key, table_of
from bot.config.section import Section

S = TypeVar("S", bound=Section)

# Settings that people and roles have not.
_OF_PLACES = ("models", "settings", "triggers", "history", "who")


def named_settings(tables: Mapping[str, Any]) -> Iterator[tuple[Key, FieldInfo]]:
    """Yield the settings of the personas, places and people that a file names."""
    for table, section in NAMED_TABLES.items():
        names = tables.get(table)
        for name in names if isinstance(names, dict) else ():
            for setting, field in section.model_fields.items():
                yield (table, name, setting), field


def with_valid_settings(tables: Mapping[str, Any], overrides: Mapping[Key, str]) -> Config:
    """Return models, personas, places and people, without the settings that are mistakes.

    The names in a file are then checked at the same time as all else in it.
    """
    models = {name: _with_valid(EngineSection, _table(tables.get("models"), name)) for name in _table(tables, "models")}
    for key, value in overrides.items():
        if key[0] == "models" and len(key) == 3:
            models[key[1]] = models.get(key[1], EngineSection()).model_copy(update={key[2]: value})
    engine = _with_valid(EngineSection, _table(tables, DEFAULT_MODEL))
    if ("engine", "fallback") in overrides:
        engine = engine.model_copy(update={"fallback": overrides["engine", "fallback"]})
    named: dict[str, Any] = {
        table: {name: _with_valid(section, _table(tables.get(table), name)) for name in _table(tables, table)}
        for table, section in NAMED_TABLES.items()
    }
    return Config.model_construct(engine=engine, models=models, **named)


def _table(tables: object, name: str) -> Mapping[str, Any]:
    found = tables.get(name) if isinstance(tables, dict) else None
    return found if isinstance(found, dict) else {}


def _with_valid(section: type[S], settings: Mapping[str, Any]) -> S:
    valid = {}
    for name, value in settings.items():
        with suppress(ValidationError):
            valid[name] = getattr(section.model_validate({name: value}), name)
    return section.model_construct(**valid)


def wrong_names(config: Config) -> Iterator[tuple[Key, str]]:
    """Yield each setting that names what config.toml does not have, and a sentence about it."""
    if config.oidc.issuer and not config.server.public_url:
        yield ("oidc", "issuer"), "the provider sends people back to server.public_url, which is not set"
    if config.cluster.is_shared and config.storage.url.get_secret_value().startswith("sqlite"):
        yield ("cluster", "share"), "bots share platforms on a server only: set storage.url to a PostgreSQL database"
    sections = config.sections
    for name, section in sections.items():
        key: Key = (name,) if name == DEFAULT_MODEL else ("models", name)
        others = [other for other in sections if other != name]
        if section.fallback and section.fallback not in others:
            known = f"name one of {', '.join(others)}" if others else "add a table [models.NAME]"
            yield (*key, "fallback"), f"{section.fallback!r} is not another model; {known}"
        bases = [other for other in others if not sections[other].base]
        if section.base and name != DEFAULT_MODEL and section.base not in bases:
            yield (
                (*key, "base"),
                f"{section.base!r} is not a model with weights of its own; name one of {', '.join(bases)}",
            )
    for level, places in config.places.items():
        for id, place in places.items():
            yield from _wrong_in(place, (table_of(level), id), config)
            yield from _wrong_askers(place, (table_of(level), id))
            for setting in _OF_PLACES if level in ("user", "role") else ():
                if getattr(place, setting) is not None:
                    why = "it is in force for places only: move it to a table such as [channels.…] or [servers.…]"
                    yield (table_of(level), id, setting), why


def _wrong_askers(place: PlaceSection, table: Key) -> Iterator[tuple[Key, str]]:
    platform = table[1].partition(":")[0]
    for who in place.who or ():
        if ":" in who and who.partition(":")[0] != platform:
            yield (*table, "who"), f"{who!r} is of another platform than {table[1]!r}"


def described(model: EngineSection) -> EngineSection:
    """Refuse a table that says nothing of its model, as after a typing error in a variable, or shares one and says more."""
    own = [
        name for name in type(model).model_fields if name in model.model_fields_set - {"base", "ptuning", "fallback"}
    ]
    if model.base and own:
        why = f"this table shares the model of {model.base}, and with it this setting; remove it, or base"
        raise PydanticCustomError("one_setting", "see the context", {"setting": own[0], "why": why})
    if not model.base and not model.model_fields_set & {"backend", "model", "urls"}:
        why = "set the model, or urls, or the backend of this table"
        raise PydanticCustomError("one_setting", "see the context", {"setting": "model", "why": why})
    return model


def alone(model: EngineSection) -> EngineSection:
    """Refuse a default model that shares another's weights."""
    if model.base:
        why = "[engine] has weights of its own; a table [models.NAME] may share them"
        raise PydanticCustomError("one_setting", "see the context", {"setting": "base", "why": why})
    return model


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
