"""Error messages for invalid settings."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bot.config.schema import NAMED_TABLES, Config, Key, variable
from bot.config.secrets import is_secret

# Tables whose names an operator chooses, as they may be called.
_NAMED = {
    "personas": "[personas.pirate]",
    "users": '[users."discord:1234"]',
    "roles": '[roles."discord:1234"]',
    "threads": '[threads."slack:C01:1718.2"]',
    "channels": '[channels."discord:1234"]',
    "servers": '[servers."discord:1234"]',
    "platforms": "[platforms.discord]",
    "quotas": "[quotas.user]",
}


def explain(errors: Sequence[ErrorDetails], known: Mapping[Key, FieldInfo]) -> dict[Key, list[str]]:
    """Translate pydantic's errors to sentences, grouped by setting or section."""
    groups: dict[tuple[Key, str], list[ErrorDetails]] = {}
    for error in errors:
        key = _setting(error, known)
        groups.setdefault((key, _repr(error["input"])), []).append(error)
    sentences: dict[Key, list[str]] = {}
    for (key, _), group in groups.items():
        sentences.setdefault(key, []).append(_sentence(key, group, known))
    return sentences


def unknown(near: Sequence[str], noun: str = "setting") -> str:
    """Return the message for an unknown name, with the most similar known one as a suggestion."""
    return f"unknown {noun}" + (f"; did you mean {near[0]}?" if near else "")


def _setting(error: ErrorDetails, known: Mapping[Key, FieldInfo]) -> Key:
    # Below a setting pydantic adds positions in lists and branches of unions.
    key = tuple(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "one_setting":
        return (*key, error["ctx"]["setting"])
    return next((key[:length] for length in range(1, len(key)) if key[:length] in known), key)


def _sentence(key: Key, errors: Sequence[ErrorDetails], known: Mapping[Key, FieldInfo]) -> str:
    error, field = errors[0], known.get(key)
    context = error.get("ctx", {})
    if field is not None and is_secret(field) and error["type"] != "value_error":  # our own messages show no secret
        return "the value is not a string"
    value = _shown(error["input"])
    if options := [word for each in errors for word in _options(each)]:
        return f"{value} is not one of {', '.join(options)}"
    match error["type"]:
        case "extra_forbidden":
            return unknown(_similar(key, known), _noun(key, error["input"]))
        case "one_setting":
            return str(context["why"])
        case "tokens_missing":
            missing = [variable((*key, name)) for name in context["missing"]]
            return f"{context['why']}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{value} is not an integer"
        case "float_type" | "float_parsing" | "finite_number":
            return f"{value} is not a number"
        case "string_type":
            return f"{value} is not a string; put it in quotes"
        case "tuple_type":
            return f'{value} is not a list; write ["…", "…"]'
        case "dict_type" | "model_type" | "model_attributes_type" if _is_misplaced(key):
            return f"{value} is not a table; {key[1]} is a setting of tables with a name, such as {_NAMED[key[0]]}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{value} is not a table; write [{'.'.join(key)}], with its settings below"
        case "greater_than_equal":
            return f"{value} is too small; the minimum is {context['ge']:g}"
        case "greater_than":
            return f"{value} is too small; it must be greater than {context['gt']:g}"
        case "less_than_equal":
            return f"{value} is too large; the maximum is {context['le']:g}"
        case "string_pattern_mismatch" if field is not None:
            return f"{value} is not one of {field.description}"
        case "value_error":
            return str(context["error"])
        case _:
            return f"{value} is invalid: {error['msg']}"


def _noun(key: Key, value: object) -> str:
    if key[0] == "adapters" and len(key) == 2:
        return "platform"
    return "section" if isinstance(value, dict) else "setting"


def _similar(key: Key, known: Mapping[Key, FieldInfo]) -> list[str]:
    """Find the most similar setting or section, or the only setting of this name in another section."""
    tables = {k[:length] for k in known for length in range(1, len(k))} | {(name,) for name in Config.model_fields}
    beside = {k[-1] for k in (*known, *tables) if k[:-1] == key[:-1]}
    if near := get_close_matches(key[-1], sorted(beside), n=1):
        return [".".join((*key[:-1], near[0]))]
    elsewhere = [".".join(k) for k in known if k[-1] == key[-1]]
    return elsewhere if len(elsewhere) == 1 else []


def _is_misplaced(key: Key) -> bool:
    """Return whether a setting is where the name of its table should be: [channels] persona = "pirate"."""
    return len(key) == 2 and key[0] in NAMED_TABLES and key[1] in NAMED_TABLES[key[0]].model_fields


def _options(error: ErrorDetails) -> list[str]:
    match error["type"]:
        case "literal_error":
            return re.findall(r"'([^']*)'", error["ctx"]["expected"])
        case "bool_type" | "bool_parsing":
            return ["true", "false"]
        case _:
            return []


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else _repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _repr(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # it holds an integer of more than 4300 digits, written as 0x…
        return "a number of thousands of digits"
