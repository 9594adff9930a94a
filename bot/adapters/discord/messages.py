"""The buttons of a message, and its id in an answer of Discord's."""

from collections.abc import Mapping

import discord

from bot.adapters.discord.errors import UnreadableAnswer
from bot.domain import Action, Controls

# Symbols, since the reader's language is unknown here.
_SYMBOLS = {Action.STOP: "⏹️", Action.RETRY: "🔄", Action.UP: "👍", Action.DOWN: "👎"}
# The most digits of an id.
_ID_DIGITS = 20


def buttons(controls: Controls) -> discord.ui.View:
    """Return the buttons below a message; an empty view removes them."""
    view = discord.ui.View(timeout=None)
    for action in (each for each in Action if each in controls):
        view.add_item(discord.ui.Button(emoji=_SYMBOLS[action], custom_id=action.value))
    # The library keeps every view that was not stopped; presses are matched by custom_id instead.
    view.stop()
    return view


def check_message(answer: object, **expected: str) -> str:
    """Return the id of the message in an answer, after comparing these fields.

    Raises:
        UnreadableAnswer: It is something else, so the call may or may not have had its effect.
    """
    id = id_in(answer, "a message")
    message = answer if isinstance(answer, Mapping) else {}
    if any(str(message.get(field)) != value for field, value in expected.items()):
        raise UnreadableAnswer("Discord's answer is another message")
    return id


def id_in(answer: object, kind: str) -> str:
    """Return the id of the object in an answer.

    Raises:
        UnreadableAnswer: It has none.
    """
    id = str(answer.get("id")) if isinstance(answer, Mapping) else ""
    if len(id) > _ID_DIGITS or not (id.isascii() and id.isdecimal()):
        raise UnreadableAnswer(f"Discord's answer is not {kind}")
    return id
