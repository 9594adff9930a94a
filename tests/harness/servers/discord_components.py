"""Discord's rules for message components and modals, and what an interaction with one of them contains."""

import re
from collections.abc import Iterator, Mapping

from tests.harness.servers.discord_payloads import Json

_ROW, _BUTTON, _SELECT, _TEXT, _LABEL = 1, 2, 3, 4, 18
_SLASH, _MESSAGE = 1, 3


def refused_commands(commands: list[Json], installs: set[int]) -> str | None:
    """Return why Discord refuses commands of an application that can be installed so."""
    names = [(each["type"], each["name"]) for each in commands]
    if len(set(names)) < len(names) or sum(kind == _MESSAGE for kind, _ in names) > 5:
        return "name: used twice, or more than 5 commands of messages"
    return next(filter(None, (_refused_command(each, installs) for each in commands)), None)


def _refused_command(command: Json, installs: set[int]) -> str | None:
    name, contexts = command["name"], command.get("contexts", [0, 1, 2])
    if not set(contexts) <= {0, 1, 2} or len(set(contexts)) < len(contexts):
        return f"{name}: contexts"
    if not set(command.get("integration_types", installs)) <= installs:
        return f"{name}: integration_types: the application cannot be installed so"
    if command["type"] == _MESSAGE:
        is_bare = not command.get("description") and not command.get("options")
        return None if _is_text(name, 32) and is_bare else f"{name}: a command of messages has a name alone"
    for each in (command, *command.get("options", [])):
        if not re.fullmatch(r"[a-z0-9_-]{1,32}", each["name"]) or not _is_text(each["description"], 100):
            return f"{each['name']}: Invalid Form Body"
        if not 1 <= each.get("max_length", 1) <= 6000:
            return f"{each['name']}: max_length"
    required = [each.get("required", False) for each in command.get("options", [])]
    return f"{name}: required options come first" if required != sorted(required, reverse=True) else None


def refused_rows(rows: list[Json]) -> str | None:
    """Return why Discord refuses the components of a message."""
    parts = [part for row in rows for part in row.get("components", [])]
    ids = [part.get("custom_id") for part in parts]
    if len(rows) > 5 or any(row.get("type") != _ROW for row in rows):
        return "components: at most 5 action rows"
    if len(set(ids)) < len(ids) or any(not _is_text(id, 100) for id in ids):
        return "custom_id: missing, too long or used twice"
    for row in rows:
        kinds = [part["type"] for part in row["components"]]
        if kinds != [_SELECT] and not (1 <= len(kinds) <= 5 and set(kinds) == {_BUTTON}):
            return "an action row has up to 5 buttons, or one menu"
    wrong = (_wrong_menu(part) for part in parts if part["type"] == _SELECT)
    return next(filter(None, wrong), None) or next(filter(None, map(_wrong_button, parts)), None)


def refused_modal(modal: Json) -> str | None:
    """Return why Discord refuses a modal."""
    labels = modal.get("components", [])
    if not (_is_text(modal.get("custom_id"), 100) and _is_text(modal.get("title"), 45)):
        return "custom_id or title: missing or too long"
    if not 1 <= len(labels) <= 5 or any(each.get("type") != _LABEL for each in labels):
        return "components: 1 to 5 labels"
    for label in labels:
        entry = label["component"]
        if not _is_text(label.get("label"), 45) or entry.get("type") != _TEXT or entry.get("style") not in (1, 2):
            return "a label has a text of up to 45 characters, and a text input"
        if not _is_text(entry.get("custom_id"), 100) or entry.get("label") is not None:
            return "a text input in a label has an id and no label of its own"
        if not 1 <= entry.get("max_length", 4000) <= 4000:
            return "max_length: 1 to 4000"
        if "value" in entry and not _is_text(entry["value"], entry.get("max_length", 4000)):
            return "value: empty or longer than max_length"
    return None


def buttons(message: Json) -> list[str]:
    return [part["custom_id"] for part in _parts(message) if part["type"] == _BUTTON]


def selected(message: Json, menu: str, value: str) -> Json:
    """Return the data of an interaction in which a person chooses this value."""
    found = next((part for part in _parts(message) if part["type"] == _SELECT and part["custom_id"] == menu), None)
    assert found is not None, f"there is no menu {menu}"
    assert value in [option["value"] for option in found["options"]], f"{menu} has no {value}"
    return {"custom_id": menu, "component_type": _SELECT, "values": [value]}


def submitted(modal: Json, values: Mapping[str, str]) -> Json:
    """Return the data of an interaction in which a person submits a modal with these values."""
    labels = modal["components"]
    written = {each["component"]["custom_id"]: each["component"].get("value", "") for each in labels} | dict(values)
    for label in labels:
        entry = label["component"]
        assert len(written[entry["custom_id"]]) <= entry.get("max_length", 4000), "more than can be typed"
        assert written[entry["custom_id"]] or entry.get("required", True) is False, "a required input is empty"
    return {
        "custom_id": modal["custom_id"],
        "components": [
            {
                "type": _LABEL,
                "id": 2 * number + 1,
                "component": {"type": _TEXT, "id": 2 * number + 2, "custom_id": id, "value": written[id]},
            }
            for number, id in enumerate(each["component"]["custom_id"] for each in labels)
        ],
    }


def _parts(message: Json) -> Iterator[Json]:
    for row in message["components"]:
        yield from row["components"]


def _wrong_menu(menu: Json) -> str | None:
    options = menu.get("options", [])
    values = [option.get("value") for option in options]
    if not 1 <= len(options) <= 25 or len(set(values)) < len(values):
        return "options: 1 to 25 different ones"
    texts = [*values, *(option.get("label") for option in options)]
    texts += [option["description"] for option in options if option.get("description") is not None]
    if not all(_is_text(text, 100) for text in texts):
        return "options: texts of 1 to 100 characters"
    if sum(option.get("default", False) for option in options) > menu.get("max_values", 1):
        return "options: more defaults than max_values"
    return None if len(menu.get("placeholder") or "") <= 150 else "placeholder: up to 150 characters"


def _wrong_button(part: Json) -> str | None:
    if part["type"] != _BUTTON or part.get("emoji") or _is_text(part.get("label"), 80):
        return None
    return "a button has an emoji, or a label of up to 80 characters"


def _is_text(value: object, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most
