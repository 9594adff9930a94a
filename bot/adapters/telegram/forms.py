"""The form for settings as an inline keyboard: a row for each setting, then a row for each of its values."""

from collections.abc import Iterator
from dataclasses import dataclass

from telegram import InlineKeyboardButton, InlineKeyboardMarkup

from bot.chat.settings_form import UNDO, FormField, SettingsForm
from bot.domain import IncomingMessage

# Data of buttons: this alone shows all settings, "settings:NAME" the values of one, "settings:NAME:VALUE" sets one.
_MENU = "settings"
# Telegram's limits: bytes of a button's data, buttons of a keyboard.
_LONGEST_DATA, _MOST_BUTTONS = 64, 100
_IN_FORCE = "✓ "


@dataclass(frozen=True, slots=True)
class FormEvent:
    """A press in a form; `query` is the id of the press, `form` that of the form's message.

    `message` is one of the person who pressed, in the form's conversation, with the id of the press; of an old form Telegram
    does not tell the topic.  With `value` the setting `name` is set, else its values are shown.
    """

    query: str
    form: str
    is_old: bool
    message: IncomingMessage
    name: str
    value: str | None

    @property
    def changes(self) -> dict[str, str]:
        return {} if self.value is None else {self.name: self.value}

    @property
    def shown(self) -> str:
        """The setting whose values are to be shown; empty for the menu of all settings."""
        return self.name if self.value is None else ""


def read_data(data: str) -> tuple[str, str | None] | None:
    """Return the name of a setting and its new value, as the data of a button has them; None for another's data.

    >>> read_data("settings"), read_data("settings:persona"), read_data("settings:persona:pirate"), read_data("stop")
    (('', None), ('persona', None), ('persona', 'pirate'), None)
    """
    prefix, *rest = data.split(":", 2)
    if prefix != _MENU:
        return None
    name, *values = rest or [""]
    return name, values[0] if values else None


def keyboard(form: SettingsForm, shown: str = "") -> InlineKeyboardMarkup:
    """Return the keyboard of all settings, or that of the values of one."""
    field = form.field(shown)
    rows = list(_settings(form) if field is None else _values(form, field))
    return InlineKeyboardMarkup([[button] for button in rows])


def _settings(form: SettingsForm) -> Iterator[InlineKeyboardButton]:
    for field in form.fields:
        if form.choices(field):  # a text is written with the command
            label = f"{form.title(field)}: {form.label(field, field.value)}"
            yield InlineKeyboardButton(label, callback_data=f"{_MENU}:{field.name}")
    yield InlineKeyboardButton(form.translate("Undo"), callback_data=f"{_MENU}:{UNDO}:")


def _values(form: SettingsForm, field: FormField) -> Iterator[InlineKeyboardButton]:
    *values, default = ((each, f"{_MENU}:{field.name}:{each}") for each in form.choices(field))
    fitting = [(value, data) for value, data in values if len(data.encode()) <= _LONGEST_DATA]
    for value, data in (*fitting[: _MOST_BUTTONS - 2], default):
        mark = _IN_FORCE if value == field.value else ""
        yield InlineKeyboardButton(mark + form.label(field, value), callback_data=data)
    yield InlineKeyboardButton(form.translate("Back"), callback_data=_MENU)
