"""The page in the language of its reader."""

from html import escape
from pathlib import Path

from bot.adapters.web.access import Person
from bot.adapters.web.sign_in.words import person_html, session_words
from bot.adapters.web.template import fill_page
from bot.chat.i18n import Language, Translate

_PAGE = Path(__file__).with_name("static") / "chat.html"


def page_html(language: Language, translate: Translate, note: str, person: Person, panel: str = "") -> str:
    """Return the page; `note` is shown where a conversation is empty, `panel` is the address of the panel, if there is one."""
    return fill_page(
        _PAGE, language, _words(translate), note=escape(note), person=person_html(person, translate, panel)
    )


def _words(translate: Translate) -> dict[str, str]:
    return {
        "title": translate("Chat"),
        "new": translate("New chat"),
        "chats": translate("Conversations"),
        "older": translate("Show older ones"),
        "menu": translate("Show the conversations"),
        "close": translate("Hide the conversations"),
        "log": translate("Conversation"),
        "empty": translate("What would you like to know?"),
        "ask": translate("Your message"),
        "send": translate("Send"),
        "stop": translate("Stop"),
        "retry": translate("Regenerate"),
        "up": translate("Good answer"),
        "down": translate("Bad answer"),
        "edit": translate("Edit"),
        "save": translate("Save"),
        "cancel": translate("Cancel"),
        "copy": translate("Copy"),
        "copied": translate("Copied"),
        "delete": translate("Delete"),
        "sure": translate("Delete this conversation for good?"),
        "you": translate("You"),
        "bot": translate("Bot"),
        "answering": translate("Answering"),
        "hint": translate("Enter sends, Shift-Enter starts a new line, /help lists the commands."),
        "offline": translate("Connection to the bot lost, reconnecting. Nothing is lost."),
        "elsewhere": translate("This conversation is paused here: too many tabs are open. Click to continue."),
        "script": translate("This page needs JavaScript."),
        "attach": translate("Attach files"),
        "reading": translate("Reading {name} …"),
        "remove": translate("Remove"),
        "again": translate("Send again"),
        "many": translate("Only {count} files go with a question; the rest was not attached."),
        "lost": translate("The connection to the bot was lost, so {name} was not attached."),
        "settings": translate("Settings"),
        "persona": translate("Persona"),
        "model": translate("Model"),
        "temperature": translate("Temperature: 0 always takes the likeliest word"),
        "top_p": translate("Top p: share of the likeliest words"),
        "max_answer_tokens": translate("Longest answer in tokens, 0 for as many as fit"),
        "default": translate("Default"),
        "own": translate("(own text)"),
        "defaults": translate("Back to the defaults"),
        "done": translate("Done"),
        "skip": translate("Go to the message field"),
        **session_words(translate),
    }
