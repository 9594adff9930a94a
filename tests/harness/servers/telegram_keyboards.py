"""Telegram's rules for inline keyboards."""

from typing import Any

from bot.domain import Action

Json = dict[str, Any]
# A label and its data, in the order in which they are shown.
Buttons = tuple[tuple[str, str], ...]

_LONGEST_DATA, _MOST_BUTTONS = 64, 100


def refused_keyboard(form: Json) -> str | None:
    """Return why Telegram refuses the keyboard of a message."""
    rows = _rows(form)
    if sum(map(len, rows)) > _MOST_BUTTONS:
        return "REPLY_MARKUP_TOO_LONG"
    for button in (button for row in rows for button in row):
        if set(button) != {"text", "callback_data"} or not button["text"].strip():
            return "can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard"
        if not 1 <= len(button["callback_data"].encode()) <= _LONGEST_DATA:
            return "BUTTON_DATA_INVALID"
    return None


def actions(form: Json) -> frozenset[Action]:
    """Return the actions among the buttons that a call gives a message."""
    return frozenset(Action(data) for _, data in _buttons(form) if data in list(Action))


def others(form: Json) -> Buttons:
    """Return the other buttons."""
    return tuple(button for button in _buttons(form) if button[1] not in list(Action))


def _buttons(form: Json) -> list[tuple[str, str]]:
    return [(button["text"], button["callback_data"]) for row in _rows(form) for button in row]


def _rows(form: Json) -> list[list[Json]]:
    rows: list[list[Json]] = form.get("reply_markup", {}).get("inline_keyboard", [])
    return rows
