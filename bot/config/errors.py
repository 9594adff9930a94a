"""What is wrong with a setting, in words an operator can act on."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bot.config.schema import Key, variable
from bot.config.secrets import is_secret


def explain(errors: Sequence[ErrorDetails], known: Mapping[Key, FieldInfo]) -> dict[Key, list[str]]:
    """Turn what pydantic found into sentences, by the setting or table they are about."""
    groups: dict[tuple[Key, str], list[ErrorDetails]] = {}
    for error in errors:
        key = _setting(error, known)
        groups.setdefault((key, repr(error["input"])), []).append(error)
    sentences: dict[Key, list[str]] = {}
    for (key, _), group in groups.items():
        sentences.setdefault(key, []).append(_sentence(key, group, known))
    return sentences


def unknown(near: Sequence[str]) -> str:
    return "there is no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _setting(error: ErrorDetails, known: Mapping[Key, FieldInfo]) -> Key:
    """Drop what pydantic adds below a setting: positions in a list, branches of a union."""
    key = tuple(str(part) for part in error["loc"])
    if error["type"] == "one_setting":
        return (*key, error["ctx"]["setting"])
    return next((key[:length] for length in range(1, len(key)) if key[:length] in known), key)


def _sentence(key: Key, errors: Sequence[ErrorDetails], known: Mapping[Key, FieldInfo]) -> str:
    error, field = errors[0], known.get(key)
    context = error.get("ctx", {})
    if field is not None and is_secret(field) and error["type"] != "value_error":  # that is a sentence of our own
        return "this is not a text"  # what it is instead is not shown
    value = _shown(error["input"])
    if options := [word for each in errors for word in _options(each)]:
        return f"{value} is not one of {', '.join(options)}"
    match error["type"]:
        case "extra_forbidden":
            return unknown(_near(key, known))
        case "one_setting":
            return str(context["why"])
        case "tokens_missing":
            missing = [variable((*key, name)) for name in context["missing"]]
            return f"{context['why']}, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{value} is not a whole number"
        case "float_type" | "float_parsing" | "finite_number":
            return f"{value} is not a number"
        case "string_type":
            return f"{value} is not a text; put it in quotes"
        case "tuple_type":
            return f'{value} is not a list; write ["…", "…"]'
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{value} is not a table; write [{'.'.join(key)}], and its settings below that"
        case "greater_than_equal":
            return f"{value} is too small; the least is {context['ge']:g}"
        case "greater_than":
            return f"{value} is too small; it must be more than {context['gt']:g}"
        case "less_than_equal":
            return f"{value} is too large; the most is {context['le']:g}"
        case "string_pattern_mismatch" if field is not None:
            return f"{value} is not one of {field.description}"
        case "value_error":
            return str(context["error"])
        case _:
            return f"{value} does not fit: {error['msg']}"


def _near(key: Key, known: Mapping[Key, FieldInfo]) -> list[str]:
    """Find the likeliest setting or table for a key that is none."""
    tables = {k[:length] for k in known for length in range(1, len(k))}
    beside = {k[-1] for k in (*known, *tables) if k[:-1] == key[:-1]}
    if near := get_close_matches(key[-1], sorted(beside), n=1):
        return [".".join((*key[:-1], near[0]))]
    elsewhere = [".".join(k) for k in known if k[-1] == key[-1]]
    return elsewhere if len(elsewhere) == 1 else []


def _options(error: ErrorDetails) -> list[str]:
    match error["type"]:
        case "literal_error":
            return re.findall(r"'([^']*)'", error["ctx"]["expected"])
        case "bool_type" | "bool_parsing":
            return ["true", "false"]
        case _:
            return []


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
