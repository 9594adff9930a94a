"""Settings of personas, places and people: `[personas.NAME]`, `[channels."discord:123"]`."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from bot.config.section import Section, split_list


class PersonaSection(Section):
    """A persona: instructions that take the place of `conversation.system_prompt`."""

    system_prompt: str = Field(default="", description="instructions at the start of every conversation; may be empty")


class PlaceSection(Section):
    """A person, role, thread, channel, server or platform; what is not set is as in the next wider table."""

    persona: str | None = Field(default=None, description="a NAME of [personas.NAME]")
    model: str | None = Field(default=None, description='a NAME of [models.NAME], or "engine"')
    models: Annotated[tuple[str, ...] | None, BeforeValidator(split_list)] = Field(
        default=None, description='models that /model may choose here: ["engine", "big"]; people and roles have none'
    )


def _check_persona(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+([_.-][a-z0-9]+)*", name):
        raise ValueError(
            f"{name!r} cannot be the name of a persona: use lower-case letters, digits, and single - _ . between them"
        )
    return name


PersonaName = Annotated[str, AfterValidator(_check_persona)]
