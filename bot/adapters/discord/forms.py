"""The form for settings: a private message with menus, and a modal for numbers and texts."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import discord
import structlog

from bot.adapters.discord.parse import Use, parse_command
from bot.chat.intake import Intake
from bot.chat.settings_commands import MOST_CHARACTERS
from bot.chat.settings_form import UNDO, FormField, FormResult, SettingsForm
from bot.delivery.markdown.format import Format
from bot.domain import ChannelKey
from bot.errors import PlatformError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Ids of components: the menu of settings has this one, and what sets NAME has "settings:NAME".
_MENU = "settings"
# The button that shows the menu again has this id instead of a setting's name.
_BACK = "back"
_INPUT = "value"
# Discord's limits: choices of a menu, characters of a choice, of a title.
_MOST_OPTIONS, _LONGEST_OPTION, _LONGEST_TITLE = 25, 100, 45
_FORM_TYPES = (discord.InteractionType.component, discord.InteractionType.modal_submit)


def is_of_form(interaction: discord.Interaction) -> bool:
    """Return whether it comes from a component or modal of a form."""
    data: Mapping[str, Any] = interaction.data or {}
    return interaction.type in _FORM_TYPES and str(data.get("custom_id")).partition(":")[0] == _MENU


class DiscordForms:
    """Shows forms as responses to interactions, which only one person sees, and carries out their uses.

    A form needs no memory: its components say what they set, also after a restart.
    """

    def __init__(
        self,
        intake: Intake,
        format: Format,
        channel_of: Callable[[Use], Awaitable[ChannelKey | None]],
        respond: Callable[[Awaitable[object]], Awaitable[object]],
    ) -> None:
        self._intake = intake
        self._format = format
        self._channel_of = channel_of
        self._respond = respond

    async def show(self, interaction: discord.Interaction, form: SettingsForm) -> None:
        """Answer a command with a form."""
        text = self._text(form.text)
        await self._respond(interaction.response.send_message(text, view=_menu(form), ephemeral=True))

    async def use(self, use: Use) -> None:
        """Carry out a choice, a button or a modal, and show the form as it is then."""
        interaction = use.interaction
        try:
            channel = await self._channel_of(use)
        except PlatformError as error:
            # Without a response Discord shows that the interaction failed.
            log.warning("form not carried out", error=str(error))
            return
        if channel is None:
            return
        shown, changes = _asked(interaction.data or {})
        message = replace(parse_command(interaction, channel), text="")
        result = await self._intake.forms.use(message, changes)
        await self._respond(self._answer(interaction.response, result, shown))

    def _answer(self, response: discord.InteractionResponse[Any], result: FormResult, shown: str) -> Awaitable[object]:
        form = result.form
        if form is None:
            return response.send_message(self._text(result.notice), ephemeral=True)
        field = form.field(shown)
        if field is not None and not field.options:
            return response.send_modal(_modal(form, field))
        view = _menu(form) if field is None else _choices(form, field)
        return response.edit_message(content=self._text(result.notice or form.text), view=view)

    def _text(self, text: str) -> str:
        return self._format.render(text).text[: self._format.limit]


def _asked(data: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the setting whose choices are to be shown, or "", and the values to set.

    Raises:
        One of PARSE_ERRORS: The interaction is none of the form's.
    """
    name = str(data["custom_id"]).partition(":")[2]
    if not name:
        return str(data["values"][0]), {}
    if name == _BACK:
        return "", {}
    if name == UNDO:
        return "", {UNDO: ""}
    value = next(_inputs(data["components"])) if "components" in data else data["values"][0]
    return "", {name: str(value)}


def _inputs(components: Any) -> Iterator[str]:
    """Yield what was written into a modal's fields, in labels or in rows."""
    for component in components:
        inner = [component["component"]] if "component" in component else component.get("components", [])
        yield from _inputs(inner)
        if component.get("custom_id") == _INPUT:
            yield component["value"]


def _menu(form: SettingsForm) -> discord.ui.View:
    """Return a menu of all settings, and a button for undo."""
    menu = discord.ui.Select[Any](custom_id=_MENU, placeholder=form.translate("Choose a setting"))
    for field in form.fields[:_MOST_OPTIONS]:
        shown = " ".join(form.label(field, field.value).split())[:_LONGEST_OPTION]
        menu.add_option(label=form.title(field), value=field.name, description=shown or None)
    undo = discord.ui.Button[Any](label=form.translate("Undo"), custom_id=f"{_MENU}:{UNDO}")
    return _view(menu, undo)


def _choices(form: SettingsForm, field: FormField) -> discord.ui.View:
    """Return a menu of one setting's values, and a button that leads back."""
    menu = discord.ui.Select[Any](custom_id=f"{_MENU}:{field.name}", placeholder=form.title(field))
    *values, default = (each for each in form.choices(field) if len(each) <= _LONGEST_OPTION)
    for value in (*values[: _MOST_OPTIONS - 1], default):
        menu.add_option(label=form.label(field, value), value=value, default=value == field.value)
    back = discord.ui.Button[Any](label=form.translate("Back"), custom_id=f"{_MENU}:{_BACK}")
    return _view(menu, back)


def _view(*items: discord.ui.Item[Any]) -> discord.ui.View:
    view = discord.ui.View(timeout=None)
    for item in items:
        view.add_item(item)
    # The library keeps every view that was not stopped; uses are matched by custom_id instead.
    view.stop()
    return view


def _modal(form: SettingsForm, field: FormField) -> discord.ui.Modal:
    """Return a modal for a number or a text."""
    entry = discord.ui.TextInput[Any](
        custom_id=_INPUT,
        style=discord.TextStyle.paragraph if field.is_text else discord.TextStyle.short,
        default=field.value or None,
        required=False,
        max_length=MOST_CHARACTERS if field.is_text else None,
    )
    title = form.title(field)[:_LONGEST_TITLE]
    modal = discord.ui.Modal(title=title, custom_id=f"{_MENU}:{field.name}")
    modal.add_item(discord.ui.Label(text=title, component=entry))
    modal.stop()
    return modal
