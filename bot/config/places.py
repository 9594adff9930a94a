"""Settings of personas, places and people: `[personas.NAME]`, `[channels."discord:123"]`."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from bot.config.section import Section, check_id, split_list

Language = Literal["auto", "en", "zh"]
# Settings that can be changed in the chat; `models` says where the model can be.
PlainSetting = Literal[
    "answer",
    "triggers",
    "history",
    "language",
    "temperature",
    "top_p",
    "max_answer_tokens",
    "show_thoughts",
    "name_speakers",
]
ChatSetting = Literal["persona", PlainSetting]


# Messages before a question that are read with it; a platform lists as many at once.
MOST_CONTEXT = 50

# Words that messages may begin with, and the characters of each.
_MOST_TRIGGERS, _LONGEST_TRIGGER = 20, 40


def _split_words(value: object) -> object:
    """Split a list as it is written in a chat: "glm, 小智", also with Chinese commas."""
    return split_list(re.sub("[，、]", ",", value)) if isinstance(value, str) else value


def _check_trigger(word: str) -> str:
    # Commands, mentions and the platforms' own notation begin so; a list in a chat has commas.
    if (
        not (word.isprintable() and re.fullmatch(rf"[^\s/@<#`,，、][^`,，、]{{0,{_LONGEST_TRIGGER - 1}}}", word))
        or word[-1] == " "
    ):
        raise ValueError(
            f"{word!r} cannot be a trigger: use up to {_LONGEST_TRIGGER} characters, without commas and `, and none of "
            "/ @ < # at the beginning"
        )
    return word


Trigger = Annotated[str, AfterValidator(_check_trigger)]


# Who may ask in a place, beside lists of people and roles.
EVERYONE, MANAGERS = "everyone", "managers"


def _check_who(who: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if who is not None and len(who) > 1 and not {EVERYONE, MANAGERS}.isdisjoint(who):
        raise ValueError(f'write "{EVERYONE}", "{MANAGERS}", or a list of people and roles')
    return who


def _check_asker(who: str) -> str:
    return who if who in (EVERYONE, MANAGERS) else check_id(who)


Asker = Annotated[str, AfterValidator(_check_asker)]


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
    answer: Literal["mention", "thread", "all"] | None = Field(
        default=None,
        description="messages that are answered here: mention (and in its threads), thread (a mention in a thread that "
        "is opened for it), all (but those to other people)",
    )
    triggers: Annotated[tuple[Trigger, ...] | None, BeforeValidator(_split_words)] = Field(
        default=None,
        max_length=_MOST_TRIGGERS,
        description='messages that begin with one of these words are answered here too: ["glm", "小智"]; people and '
        "roles have none",
    )
    history: Literal["shared", "member"] | None = Field(
        default=None,
        description="earlier turns that an answer here is based on: shared (all of them), member (those of its author); "
        "people and roles have none",
    )
    language: Language | None = Field(default=None, description="conversation.language here")
    temperature: float | None = Field(default=None, ge=0, le=2, description="sampling.temperature here")
    top_p: float | None = Field(default=None, gt=0, le=1, description="sampling.top_p here")
    max_answer_tokens: int | None = Field(default=None, ge=1, description="limits.max_answer_tokens here")
    show_thoughts: bool | None = Field(default=None, description="conversation.show_thoughts here")
    name_speakers: bool | None = Field(default=None, description="conversation.name_speakers here")
    context_messages: int | None = Field(
        default=None, ge=0, le=MOST_CONTEXT, description="conversation.context_messages here"
    )
    who: Annotated[tuple[Asker, ...] | None, BeforeValidator(split_list), AfterValidator(_check_who)] = Field(
        default=None,
        description='people who may ask here, beside admins: everyone, managers, or ["discord:1234"], ids of people and '
        "roles; people and roles have none",
    )
    settings: Annotated[tuple[ChatSetting, ...] | None, BeforeValidator(split_list)] = Field(
        default=None,
        description='settings that may be changed in the chat here: ["persona", "language"]; all if not set; '
        "people and roles have none",
    )


def _check_persona(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+([_.-][a-z0-9]+)*", name):
        raise ValueError(
            f"{name!r} cannot be the name of a persona: use lower-case letters, digits, and single - _ . between them"
        )
    return name


PersonaName = Annotated[str, AfterValidator(_check_persona)]
