"""Slash commands: their registration with options, and the text of a use."""

from collections.abc import Iterator, Mapping
from typing import Any

import discord

from bot.chat.command_table import Command, Option, Subcommand
from bot.chat.commands import called_by
from bot.chat.i18n import translator
from bot.domain import IncomingMessage

_SUBCOMMAND = discord.AppCommandOptionType.subcommand.value
_STRING = discord.AppCommandOptionType.string.value
_GROUPS = (_SUBCOMMAND, discord.AppCommandOptionType.subcommand_group.value)
# Commands that affect the whole channel are answered in public, the others only to their user.
_PUBLIC = frozenset({"clear", "persona", "model"})


def command_payload(command: Command) -> dict[str, Any]:
    """Return a command as Discord's API takes it, described in English and Chinese."""
    options = [_subcommand(each) for each in command.subcommands]
    if command.option is not None:
        options.append(_option(command.option))
    if command.argument:
        fixed = {"name": command.argument, "value": command.argument}
        said = {"name": "what", **described(command.summary)}
        options.append({"type": _STRING, **said, "required": False, "choices": [fixed]})
    return {
        "type": discord.AppCommandType.chat_input.value,
        "name": command.name,
        **described(command.summary),
        "options": options,
    }


def command_text(data: Mapping[str, Any]) -> str:
    """Return a used command as the message with the same effect.

    >>> option = {"type": 3, "name": "name", "value": "pirate"}
    >>> command_text({"name": "persona", "options": [{"type": 1, "name": "use", "options": [option]}]})
    '/persona use pirate'
    """
    return " ".join(["/" + str(data.get("name")), *_words(data.get("options"))])


def is_private(use: IncomingMessage) -> bool:
    """Return whether only its user sees the reply to the use of a slash command; False for a question."""
    called = called_by(use)
    return called is not None and called[0].name not in _PUBLIC


def _words(options: object) -> Iterator[str]:
    for option in options if isinstance(options, list) else ():
        if not isinstance(option, Mapping):
            continue
        if option.get("type") in _GROUPS:
            yield str(option.get("name"))
            yield from _words(option.get("options"))
        elif isinstance(option.get("value"), str):
            yield option["value"]


def _subcommand(subcommand: Subcommand) -> dict[str, Any]:
    options = [] if subcommand.option is None else [_option(subcommand.option)]
    return {"type": _SUBCOMMAND, "name": subcommand.name, **described(subcommand.summary), "options": options}


def _option(option: Option) -> dict[str, Any]:
    shown = {"name": option.name, **described(option.summary), "required": option.is_required}
    return {"type": _STRING, **shown, "autocomplete": option.offers is not None}


def described(summary: str) -> dict[str, Any]:
    """Return a description in English and Chinese."""
    chinese = translator("zh")(summary)
    return {"description": summary, "description_localizations": {"zh-CN": chinese, "zh-TW": chinese}}
