"""A form for the settings of a conversation: its fields, and the commands that they write."""

from collections.abc import Sequence
from dataclasses import dataclass

from bot.chat.command_table import parse
from bot.chat.i18n import Translate, gettext_noop
from bot.chat.rules import OF_PLACES, PLAIN, WRITTEN
from bot.chat.settings import ChatSettings
from bot.chat.settings_commands import OFFERED
from bot.config.schema import DEFAULT_MODEL
from bot.domain import OWN_PERSONA, IncomingMessage

# What a field writes to take the value of the conversation back.
CLEAR = "clear"
# The value of a persona that was written in the chat: no name of one.
OWN_TEXT = OWN_PERSONA
# The field for this text; the setting is the persona.
PERSONA_TEXT = "persona_text"
# Stands in place of a setting where the last change is taken back.
UNDO = "undo"

_NUMBERS = ("temperature", "top_p", "max_answer_tokens")
_TITLES = {
    "persona": gettext_noop("Persona"),
    PERSONA_TEXT: gettext_noop("Persona in your own words"),
    "model": gettext_noop("Model"),
    "answer": gettext_noop("Messages that I answer"),
    "triggers": gettext_noop("Words that messages to me may begin with"),
    "history": gettext_noop("Earlier turns that I answer with"),
    "language": gettext_noop("Language of my own messages"),
    "temperature": gettext_noop("Temperature"),
    "top_p": gettext_noop("Top p"),
    "max_answer_tokens": gettext_noop("Longest answer, in tokens"),
    "show_thoughts": gettext_noop("Show a model's reasoning"),
    "name_speakers": gettext_noop("Tell the model who writes"),
}
_LABELS = {
    ("persona", ""): gettext_noop("Default"),
    ("persona", OWN_TEXT): gettext_noop("(own text)"),
    ("answer", "mention"): gettext_noop("mentions"),
    ("answer", "thread"): gettext_noop("mentions, each in a thread"),
    ("answer", "all"): gettext_noop("all"),
    ("history", "shared"): gettext_noop("everybody's"),
    ("history", "member"): gettext_noop("each person's own"),
    ("language", "auto"): gettext_noop("automatic"),
    ("language", "en"): "English",
    ("language", "zh"): "中文",
    ("max_answer_tokens", "0"): gettext_noop("as many as fit"),
    ("show_thoughts", "true"): gettext_noop("on"),
    ("show_thoughts", "false"): gettext_noop("off"),
    ("name_speakers", "true"): gettext_noop("on"),
    ("name_speakers", "false"): gettext_noop("off"),
}


@dataclass(frozen=True, slots=True)
class FormField:
    """A setting as it is in force; one with `options` is chosen from them, any other is a number or a text.

    The value of a persona is empty where none is set, and `OWN_TEXT` where it was written in the chat.
    """

    name: str
    value: str
    options: tuple[str, ...] = ()

    @property
    def is_text(self) -> bool:
        return self.name in (PERSONA_TEXT, *WRITTEN)


@dataclass(frozen=True, slots=True)
class SettingsForm:
    """Settings that may be changed in a conversation, in a reader's language; `text` is what `/settings show` prints."""

    text: str
    fields: tuple[FormField, ...]
    translate: Translate

    def field(self, name: str) -> FormField | None:
        return next((field for field in self.fields if field.name == name), None)

    def title(self, field: FormField) -> str:
        return self.translate(_TITLES[field.name])

    def label(self, field: FormField, value: str) -> str:
        """Return a value of the field as people read it."""
        if value == CLEAR:
            return self.translate("Default")
        label = _LABELS.get((field.name, value))
        return value if label is None else self.translate(label)

    def choices(self, field: FormField) -> Sequence[str]:
        """Return the values to choose from, the default last; of a number a few that are common, of a text none."""
        if field.is_text:
            return ()
        return (*(field.options or OFFERED[field.name]), CLEAR)


@dataclass(frozen=True, slots=True)
class FormResult:
    """Outcome of a use of a form: a sentence, and the form with the new values; None if it was refused."""

    notice: str
    form: SettingsForm | None = None


def outdated(translate: Translate) -> str:
    """Return the sentence about a form that no longer fits."""
    return translate("This form is out of date. Please send /settings again.")


def opens_form(text: str, *, is_addressed: bool = True) -> bool:
    """Return whether a message asks for the form, as `parse` reads it.

    >>> import bot.chat.commands  # fills the table
    >>> opens_form("/settings"), opens_form("/settings show"), opens_form("/settings top_p 1")
    (True, True, False)
    """
    called = parse(text, is_addressed=is_addressed)
    return called is not None and called[0].name == "settings" and called[1].lower() in ("", "show")


def form_command(name: str, value: str) -> str | None:
    """Return the command that sets this value, or takes it back with `CLEAR`; None where no form has the name.

    >>> form_command("persona", "pirate"), form_command("top_p", "0.9"), form_command("top_p", "")
    ('/persona use pirate', '/settings top_p 0.9', '/settings top_p clear')
    """
    written = value.strip()
    match name:
        case "persona":
            return f"/persona {CLEAR}" if written in ("", CLEAR) else f"/persona use {written}"
        case "persona_text":
            return f"/persona set {written}" if written else f"/persona {CLEAR}"
        case "model":
            return f"/model {written or CLEAR}"
        case "undo":
            return "/settings undo"
        case "max_answer_tokens" if written == "0":
            return f"/settings {name} {CLEAR}"
        case _:
            return f"/settings {name} {written or CLEAR}" if name in PLAIN else None


def form_fields(settings: ChatSettings, message: IncomingMessage) -> list[FormField]:
    """Return the fields for what may be changed where the message was sent, as the chat page shows them."""
    rules = settings.rules
    persona = rules.persona(message)
    own = OWN_TEXT if persona.scope is not None else ""
    personas, models = tuple(sorted(rules.personas)), rules.allowed_models(message)
    named = [
        FormField("persona", persona.value.name or own, personas if rules.may_be_set("persona", message) else ()),
        FormField("model", rules.model(message).value or DEFAULT_MODEL, models),
    ]
    return [*(field for field in named if field.options), *_plain_fields(settings, message, _NUMBERS)]


def all_fields(settings: ChatSettings, message: IncomingMessage) -> tuple[FormField, ...]:
    """Return all fields for what may be changed where the message was sent."""
    rules = settings.rules
    persona = rules.persona(message)
    text = persona.value.text if persona.is_from_chat and not persona.value.name else ""
    # In a direct chat there is one person, and every message is for the bot.
    others = [name for name in PLAIN if name not in _NUMBERS and not (name in OF_PLACES and message.is_direct)]
    return (
        *form_fields(settings, message),
        *([FormField(PERSONA_TEXT, text)] if rules.may_be_set("persona", message) else ()),
        *_plain_fields(settings, message, others),
    )


def _plain_fields(settings: ChatSettings, message: IncomingMessage, names: Sequence[str]) -> list[FormField]:
    return [
        FormField(name, _written(settings.value(name, message)), () if name in _NUMBERS else OFFERED[name])
        for name in names
        if settings.rules.may_be_set(name, message)
    ]


def _written(value: object) -> str:
    """Return a value as it is written in the chat.

    >>> _written(1.0), _written(True), _written(None), _written(("glm", "chat"))
    ('1', 'true', '0', 'glm, chat')
    """
    if isinstance(value, tuple):
        return ", ".join(value)
    return "0" if value is None else str(value).removesuffix(".0").lower()
