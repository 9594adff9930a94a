"""Slack's modals: the rules for a view, what people fill in, and what a submission's answer does."""

import json
from collections.abc import Mapping
from itertools import count
from typing import Any

from tests.harness.servers.slack_world import BOT, SlackRefusal

JSON = dict[str, Any]

_FIELDS = {"type", "title", "blocks", "submit", "close", "private_metadata", "callback_id"}


class SlackViews:
    """The modals that people see, by id."""

    def __init__(self) -> None:
        self.open: dict[str, JSON] = {}
        self.refused: str = ""  # the code that views.open answers with
        self._triggers: dict[str, str] = {}  # person, by trigger; gone once it was used
        self._used: set[str] = set()
        self._owners: dict[str, str] = {}
        self._ids = count(1)

    def offer(self, trigger: str, user: str) -> None:
        """Let this trigger open one modal for a person."""
        self._triggers[trigger] = user

    def open_view(self, arguments: JSON) -> JSON:
        """Carry out views.open."""
        trigger = arguments["trigger_id"]
        if self.refused:
            raise SlackRefusal(self.refused)
        if trigger in self._used:
            raise SlackRefusal("exchanged_trigger_id", is_violation=True)
        if trigger not in self._triggers:
            raise SlackRefusal("invalid_trigger_id", is_violation=True)
        view = arguments["view"]
        view = json.loads(view) if isinstance(view, str) else view
        _check(view)
        id = f"V{next(self._ids):03}"
        self._used.add(trigger)
        self.open[id], self._owners[id] = view, self._triggers.pop(trigger)
        return {"view": self._shown(id)}

    def submission(self, id: str, values: Mapping[str, str | None]) -> JSON:
        """Return what Slack sends when the modal is submitted with these values in place of those that it has."""
        view = self._shown(id)
        inputs = {block["block_id"]: block["element"] for block in view["blocks"] if block["type"] == "input"}
        assert "submit" in view, "the modal has no button for that"
        assert set(values) <= set(inputs), f"there are only {sorted(inputs)}"
        states = {
            name: {element["action_id"]: _state(element, values.get(name, ...))} for name, element in inputs.items()
        }
        user = self._owners[id]
        return {
            "type": "view_submission",
            "team": {"id": "T01", "domain": "loopback"},
            "user": {"id": user, "username": user.lower(), "name": user.lower(), "team_id": "T01"},
            "api_app_id": "A01",
            "trigger_id": f"{next(self._ids)}.2.2",
            "view": {**view, "state": {"values": states}},
            "response_urls": [],
            "is_enterprise_install": False,
            "enterprise": None,
        }

    def answered(self, id: str, answer: JSON) -> None:
        """Carry out the answer to a submission: without an action the modal closes."""
        match answer:
            case {"response_action": "update", "view": view}:
                _check(view)
                self.open[id] = view
            case {"response_action": _}:
                raise SlackRefusal("invalid_response_action", is_violation=True)
            case _:
                del self.open[id]

    def _shown(self, id: str) -> JSON:
        state = {"id": id, "team_id": "T01", "hash": "1.a", "root_view_id": id, "previous_view_id": None}
        return {**self.open[id], **state, "app_id": "A01", "bot_id": BOT, "state": {"values": {}}}


def text_of(view: JSON) -> str:
    """Return the text that a modal shows beside its inputs."""
    return "\n".join(block["text"]["text"] for block in view["blocks"] if block["type"] == "section")


def element_of(view: JSON, name: str) -> JSON:
    element: JSON = next(block["element"] for block in view["blocks"] if block.get("block_id") == name)
    return element


def _state(element: JSON, value: Any) -> JSON:
    """Return the state of an input; a value of `...` leaves it as it was shown."""
    kind = element["type"]
    if kind != "static_select":
        return {"type": kind, "value": (element.get("initial_value") if value is ... else value) or None}
    if value is ...:
        return {"type": kind, "selected_option": element.get("initial_option")}
    options = {option["value"]: option for option in element["options"]}
    assert value is None or value in options, f"{value} cannot be chosen"
    return {"type": kind, "selected_option": None if value is None else options[value]}


def _check(view: JSON) -> None:
    """Raise Slack's error about a view that it does not accept."""
    blocks = view.get("blocks", [])
    inputs = [block for block in blocks if block["type"] == "input"]
    ids = [block["block_id"] for block in blocks if "block_id" in block]
    is_right = (
        view.get("type") == "modal"
        and set(view) <= _FIELDS
        and all(_is_plain(view[name], 24) for name in ("title", "submit", "close") if name in view)
        and "title" in view
        and (not inputs or "submit" in view)
        and len(view.get("private_metadata", "")) <= 3000
        and len(view.get("callback_id", "")) <= 255
        and 1 <= len(blocks) <= 100
        and len(set(ids)) == len(ids)
        and all(map(_is_block, blocks))
    )
    if not is_right:
        raise SlackRefusal("invalid_arguments", is_violation=True)


def _is_block(block: JSON) -> bool:
    if block["type"] == "section":
        return block["text"]["type"] in ("mrkdwn", "plain_text") and 1 <= len(block["text"]["text"]) <= 3000
    return block["type"] == "input" and _is_plain(block["label"], 2000) and _is_element(block["element"])


def _is_element(element: JSON) -> bool:
    match element["type"]:
        case "static_select":
            options = element["options"]
            is_known = "initial_option" not in element or element["initial_option"] in options
            fits = all(_is_plain(each["text"], 75) and 1 <= len(each["value"]) <= 150 for each in options)
            return is_known and fits and 1 <= len(options) <= 100 and _is_plain(element["placeholder"], 150)
        case "number_input":
            initial = element.get("initial_value", "0")
            may_be_decimal = element["is_decimal_allowed"]
            return isinstance(may_be_decimal, bool) and (may_be_decimal or float(initial) % 1 == 0)
        case "plain_text_input":
            most = int(element.get("max_length", 3000))
            return 1 <= most <= 3000 and len(element.get("initial_value", "")) <= most
    return False


def _is_plain(text: JSON, most: int) -> bool:
    return text["type"] == "plain_text" and 1 <= len(text["text"]) <= most
