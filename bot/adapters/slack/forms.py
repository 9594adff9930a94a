"""The form for settings as a modal: an input for each setting, and what its submission says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from bot.adapters.slack.markup import escaped
from bot.adapters.slack.parse import id_of, text_of
from bot.chat.i18n import Translate
from bot.chat.settings_commands import MOST_CHARACTERS
from bot.chat.settings_form import CLEAR, FormField, SettingsForm
from bot.domain import ChannelKey

CALLBACK = "settings"
_INPUT = "value"
# Slack's limits: choices of a menu, characters of a choice's text and value, of a section.
_MOST_OPTIONS, _LONGEST_TEXT, _LONGEST_VALUE, _LONGEST_SECTION = 100, 75, 150, 3000
_INTEGERS = frozenset({"max_answer_tokens"})


@dataclass(frozen=True, slots=True)
class Submission:
    """Values that a person changed in a modal that was opened in `channel`."""

    channel: str
    changes: dict[str, str]


def modal(form: SettingsForm, channel: ChannelKey) -> dict[str, Any]:
    """Return the modal of a form for one channel."""
    shown = {field.name: _mark(_shown(field)) for field in form.fields}
    inputs = [_input(form, field) for field in form.fields]
    return {
        **_view(form.translate, form.text, form.translate("Cancel")),
        "blocks": [_section(form.text), *inputs],
        "callback_id": CALLBACK,
        "private_metadata": json.dumps({"channel": channel.channel, "shown": shown}),
        "submit": _plain(form.translate("Save")),
    }


def notice(translate: Translate, text: str) -> dict[str, Any]:
    """Return a modal that only shows a text."""
    return _view(translate, text, translate("Done"))


def read_submission(view: Mapping[str, Any]) -> Submission:
    """Return the values that were changed since the modal was opened: others may have set the rest meanwhile.

    Raises:
        One of PARSE_ERRORS: It is none of these modals.
    """
    opened = json.loads(text_of(view, "private_metadata"))
    shown, inputs = opened["shown"], view["state"]["values"]
    written = {name: _value(inputs[name][_INPUT]) for name in shown if name in inputs}
    return Submission(
        id_of(opened, "channel"), {name: value for name, value in written.items() if _mark(value) != shown[name]}
    )


def _shown(field: FormField) -> str:
    """Return what the modal gives back where the field was left as it is."""
    return field.value if not field.options or field.value in _fitting(field.options) else ""


def _value(element: Mapping[str, Any]) -> str:
    chosen = element.get("selected_option")
    return text_of(chosen, "value") if isinstance(chosen, Mapping) else text_of(element, "value").strip()


def _mark(value: str) -> str:
    """Return a short stand-in for a value: a persona's text would not fit into the metadata of a modal."""
    return blake2b(value.strip().encode(), digest_size=8).hexdigest()


def _input(form: SettingsForm, field: FormField) -> dict[str, Any]:
    return {
        "type": "input",
        "block_id": field.name,
        "optional": True,
        "label": _plain(form.title(field)),
        "element": {"action_id": _INPUT, **_element(form, field)},
    }


def _element(form: SettingsForm, field: FormField) -> dict[str, Any]:
    if field.options:
        options = {value: _option(form, field, value) for value in (*_fitting(field.options), CLEAR)}
        hint = _plain(form.label(field, field.value)[:_LONGEST_TEXT] or "…")
        menu = {"type": "static_select", "options": list(options.values()), "placeholder": hint}
        return menu | ({"initial_option": options[field.value]} if field.value in options else {})
    initial = {"initial_value": field.value} if field.value else {}
    if field.is_text:
        return {"type": "plain_text_input", "multiline": True, "max_length": MOST_CHARACTERS, **initial}
    return {"type": "number_input", "is_decimal_allowed": field.name not in _INTEGERS, **initial}


def _fitting(options: tuple[str, ...]) -> list[str]:
    return [each for each in options if len(each) <= _LONGEST_VALUE][: _MOST_OPTIONS - 1]


def _option(form: SettingsForm, field: FormField, value: str) -> dict[str, Any]:
    return {"text": _plain(form.label(field, value)[:_LONGEST_TEXT]), "value": value}


def _view(translate: Translate, text: str, close: str) -> dict[str, Any]:
    return {
        "type": "modal",
        "title": _plain(translate("Settings")),
        "close": _plain(close),
        "blocks": [_section(text)],
    }


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": escaped(text)[:_LONGEST_SECTION]}}


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text}
