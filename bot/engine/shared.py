"""Tables `[models.NAME]` that share the weights of another model, each with its own P-Tuning prefix."""

from collections.abc import Mapping

from pydantic import Field

from bot.config.schema import EngineSection


class SharedSection(EngineSection):
    """A model with the prefixes of the tables that share it: their folders by table, "" for none."""

    prefixes: Mapping[str, str] = Field(default_factory=dict)


def base_of(sections: Mapping[str, EngineSection], name: str) -> str:
    """Return the table whose model answers for a table: its own, unless it shares another's.

    >>> sections = {"engine": EngineSection(), "club": EngineSection(base="engine", ptuning="data/club")}
    >>> base_of(sections, "club"), base_of(sections, "engine")
    ('engine', 'engine')
    """
    section = sections.get(name)
    return name if section is None or not section.base else section.base


def with_prefixes(sections: Mapping[str, EngineSection], name: str) -> EngineSection:
    """Return the section of a model, with the prefixes of the tables that share it."""
    prefixes = {other: section.ptuning for other, section in sections.items() if section.base == name}
    if not prefixes:
        return sections[name]
    return SharedSection.model_construct(**dict(sections[name]), prefixes=prefixes)
