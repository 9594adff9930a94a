"""The settings of a channel or thread as a form, with the commands that people use there."""

from collections.abc import Iterable
from html import escape
from typing import Any

import structlog
from starlette.exceptions import HTTPException

from bot.adapters.web.panel.calls import PanelCall, carry_out, message_of
from bot.adapters.web.panel.html import Html, text
from bot.chat.i18n import Translate
from bot.chat.settings_form import PERSONA_TEXT, FormField, SettingsForm, form_command
from bot.config.section import check_id
from bot.domain import ChannelKey

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Characters of a place; ids of platforms have fewer.
_LONGEST = 200


async def settings(call: PanelCall) -> dict[str, Any]:
    """Change a setting of a place if one is named; return the form of the place."""
    channel, notice = _channel(call), ""
    if "setting" in call.body:
        name, value = call.text("setting"), call.text("value")
        shown = {field.name for field in (await _form(call, channel)).fields}
        command = form_command(name, value)
        if command is None or name not in shown:
            raise HTTPException(400, f"setting is one of {', '.join(sorted(shown))}")
        notice = await carry_out(call, command, channel)
        log.info("setting changed in the panel", setting=name, place=str(channel), by=call.person.author.key)
    form = await _form(call, channel)
    fields = "".join(_field(form, field, show_texts=call.sources.show_texts) for field in form.fields)
    return {"notice": notice, "place": str(channel), "fields": fields}


async def _form(call: PanelCall, channel: ChannelKey) -> SettingsForm:
    return await call.chat.intake.forms.at_place(message_of(call, "", channel))


def _channel(call: PanelCall) -> ChannelKey:
    """Return the channel or thread that is named as in config.toml.

    Raises:
        HTTPException: It is none.
    """
    place = call.text("place").strip()
    try:
        platform, _, rest = check_id(place[:_LONGEST]).partition(":")
    except ValueError:
        raise HTTPException(
            400, call.translate('A channel is written "platform:channel", a thread "platform:channel:thread".')
        ) from None
    channel, _, thread = rest.partition(":")
    return ChannelKey(platform, channel, thread or None)


def _field(form: SettingsForm, field: FormField, *, show_texts: bool) -> str:
    """Return a setting with its control; what people wrote is counted instead of shown, unless it may be."""
    id = f"place-{field.name}"
    attributes = f'id="{id}" data-setting="{field.name}"'
    choices = form.choices(field)
    if field.is_text:
        hidden = form.translate("a text of {count} characters").format(count=len(field.value)) if field.value else ""
        value, hint = (field.value, "") if show_texts else ("", hidden)
        rows = 4 if field.name == PERSONA_TEXT else 1
        control = f'<textarea {attributes} rows="{rows}" placeholder="{escape(hint)}">{text(value)}</textarea>'
    elif field.options or field.value in choices:
        control = f"<select {attributes}>{_options(form, field, choices)}</select>"
    else:
        control = f'<input {attributes} value="{escape(field.value)}" autocomplete="off">'
    return f'<div class="setting"><label for="{id}">{text(form.title(field))}</label>{control}</div>'


def _options(form: SettingsForm, field: FormField, choices: Iterable[str]) -> str:
    values = list(choices)
    if field.value not in values:
        values.insert(0, field.value)
    return "".join(
        f'<option value="{escape(value)}"{" selected" if value == field.value else ""}>'
        f"{text(form.label(field, value))}</option>"
        for value in values
    )


def places_html(places: Iterable[str]) -> Html:
    """Return the options of the field that names a place."""
    return Html("".join(f'<option value="{escape(place)}"></option>' for place in sorted(set(places))))


def place_button(place: str, level: str, translate: Translate) -> Html:
    """Return the button that opens the form of a place."""
    label, change = translate("Change the settings of {place}").format(place=place), text(translate("Change"))
    return Html(
        f'<button id="set-{escape(level)}-{escape(place)}" class="place" type="button" aria-haspopup="dialog" '
        f'aria-label="{escape(label)}" data-place="{escape(place)}">{change}</button>'
    )
