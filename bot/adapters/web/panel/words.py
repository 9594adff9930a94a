"""The frame of the panel in the language of its reader; the event stream fills it."""

from pathlib import Path

from bot.adapters.web.access import Person
from bot.adapters.web.sign_in.words import person_html, session_words
from bot.adapters.web.template import fill_page
from bot.chat.i18n import Language, Translate
from bot.observability.logging import KEPT_LINES

_PAGE = Path(__file__).parents[1] / "static" / "panel.html"


def panel_html(language: Language, translate: Translate, person: Person) -> str:
    """Return the page; what only operators may do is hidden for others."""
    return fill_page(
        _PAGE,
        language,
        _words(translate),
        right=person.right.name.lower(),
        person=person_html(person, translate),
    )


def _words(translate: Translate) -> dict[str, str]:
    return {
        "title": translate("Operator's panel"),
        "chat": translate("Chat"),
        "now": translate("Now"),
        "pause": translate("Pause"),
        "resume": translate("Resume"),
        "accepting": translate("Accepting questions"),
        "paused": translate("Paused: new questions are refused."),
        "platforms": translate("Platforms"),
        "models": translate("Models"),
        "model_note": translate(
            "The change is written to config.toml after a check that the model can be loaded. Answers that have begun end "
            "first, later questions wait for the new model; if it cannot be loaded, the present one stays."
        ),
        "model": translate("Model: demo, a folder, or a Hugging Face name"),
        "quantization": translate("Quantization"),
        "checking": translate("Checking …"),
        "change": translate("Change"),
        "cancel": translate("Cancel"),
        "usage": translate("Usage of the last 30 days"),
        "channels": translate("Settings from the chat"),
        "place": translate("Channel"),
        "settings": translate("Settings"),
        "settings_of": translate("Settings of {place}"),
        "done": translate("Done"),
        "audit": translate("Changes of settings"),
        "filter": translate("Only those with"),
        "no_change": translate("No change has these words."),
        "config": translate("Configuration: config.toml"),
        "table": translate("Table"),
        "as_text": translate("As text"),
        "config_text": translate("Content of config.toml"),
        "save": translate("Save"),
        "discard": translate("Discard changes"),
        "config_changed": translate("The file was changed meanwhile: discard your changes to see it."),
        "backups": translate("Backups"),
        "back_up": translate("Make a backup"),
        "log": translate("Log"),
        "lines": translate(
            "The last {count} lines of this process, newest first. Texts of messages are not logged."
        ).format(count=KEPT_LINES),
        "level": translate("Lines of level"),
        "all": translate("all"),
        "info": translate("info and above"),
        "warning": translate("warning and above"),
        "error": translate("error and above"),
        "none": translate("No line has this level."),
        "loading": translate("Loading …"),
        "offline": translate("Connection to the bot lost, reconnecting. Nothing is lost."),
        "elsewhere": translate("This page is paused: too many tabs are open. Click to continue."),
        "script": translate("This page needs JavaScript."),
        **session_words(translate),
    }
