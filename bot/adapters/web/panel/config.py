"""config.toml as a form and as text: checked while it is written, saved as a whole."""

import asyncio
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, get_args

import structlog
from pydantic.fields import FieldInfo
from starlette.exceptions import HTTPException

from bot.adapters.web.panel.calls import PanelCall, editor_of, record
from bot.adapters.web.panel.html import Html, items, text
from bot.chat.i18n import Translate
from bot.config.edit import ConfigEditor, Draft, parse_field, plain_default, with_setting
from bot.config.reload import needs_restart
from bot.config.report import as_toml
from bot.config.schema import NAMED_TABLES, Key, known_settings
from bot.config.secrets import is_address, is_secret
from bot.config.toml import TomlError, parse_toml
from bot.errors import ConfigError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Settings of several lines.
_LONG = ("system_prompt",)


async def draft(call: PanelCall) -> dict[str, Any]:
    """Return the file, or the draft that the page sends with what was changed in its form, as the page shows it."""
    editor, translate = editor_of(call), call.translate
    answer: dict[str, Any] = {}
    if "text" in call.body:
        written = call.text("text")
    else:
        read = await asyncio.to_thread(editor.read)
        written, answer["revision"] = read.text, read.revision
    for key, value in _changes(call.body.get("changes", []), editor, written):
        written = await asyncio.to_thread(with_setting, written, key, value, editor.adapters)
    checked = await asyncio.to_thread(editor.check, written)
    tables = _tables(written, editor)
    asked = call.body.get("table")
    table = next((each for each in tables if list(each) == asked), next(iter(tables)))
    return answer | {
        "text": written,
        "table": list(table),
        "tables": _options(tables, table),
        "fields": _fields(tables[table], table, checked, editor, translate),
        "mistakes": items(checked.mistakes),
        "effect": items(effect_lines(checked, translate)),
        "fixed": _fixed(editor, translate),
        "is_right": not checked.mistakes,
    }


async def save(call: PanelCall) -> dict[str, Any]:
    """Save a draft after all checks of the start; it is loaded at once."""
    editor, translate = editor_of(call), call.translate
    checked = await asyncio.to_thread(editor.check, call.text("text"))
    if checked.mistakes:
        raise ConfigError(str(editor.path), checked.mistakes)
    await editor.check_models(checked)
    saved = await asyncio.to_thread(editor.save, checked, call.text("revision"))
    await record(call, saved)
    log.info("config.toml saved in the panel", changed=checked.changed, by=call.person.author.key)
    return {"notice": "\n".join([translate("Saved."), *effect_lines(checked, translate)]), "revision": saved.revision}


def effect_lines(checked: Draft, translate: Translate) -> Iterator[str]:
    """Yield what a draft without mistakes changes."""
    if checked.changed:
        yield translate("Takes effect at once: {settings}").format(settings=", ".join(checked.changed))
    if checked.needs_restart:
        yield translate("Needs a restart: {settings}").format(settings=", ".join(checked.needs_restart))


def _changes(sent: object, editor: ConfigEditor, written: str) -> list[tuple[Key, object]]:
    """Return the settings that were changed in the form, with what was meant.

    Raises:
        HTTPException: They are not in the form.
    """
    if not isinstance(sent, list):
        raise HTTPException(400, "changes is a list")
    fields = {key: field for table in _tables(written, editor).values() for key, field in table.items()}
    changes = []
    for each in sent:
        match each:
            case [list(parts), str(value)] if (key := tuple(map(str, parts))) in fields and _is_shown(fields[key]):
                changes.append((key, parse_field(fields[key], value)))
            case _:
                raise HTTPException(400, "a change is the parts of a setting and its text")
    return changes


def _tables(written: str, editor: ConfigEditor) -> dict[Key, dict[Key, FieldInfo]]:
    """Return the settings of each table: all that there are, and those whose names are in the text."""
    values = _values(written)
    models = values.get("models")
    tables: dict[Key, dict[Key, FieldInfo]] = {}
    for key, field in known_settings(editor.adapters, models if isinstance(models, dict) else ()).items():
        tables.setdefault(key[:-1], {})[key] = field
    for table, section in NAMED_TABLES.items():
        named = values.get(table)
        for name in named if isinstance(named, dict) else ():
            tables[table, name] = {(table, name, each): field for each, field in section.model_fields.items()}
    return tables


def _values(written: str) -> dict[str, Any]:
    try:
        return parse_toml(written)
    except TomlError:
        return {}


def _options(tables: Iterable[Key], chosen: Key) -> Html:
    options = (
        f'<option value="{escape(json.dumps(table))}"{" selected" if table == chosen else ""}>'
        f"{text('.'.join(table))}</option>"
        for table in tables
    )
    return Html("".join(options))


def _fields(
    fields: Mapping[Key, FieldInfo], table: Key, checked: Draft, editor: ConfigEditor, translate: Translate
) -> Html:
    values: Any = _values(checked.text)
    for part in table:
        values = values.get(part, {}) if isinstance(values, dict) else {}
    overrides = editor.overrides
    rows = []
    for key, field in fields.items():
        value = values.get(key[-1]) if isinstance(values, dict) else None
        name = re.escape(".".join(key))
        wrong = [each for each in checked.mistakes if re.match(rf"(line \d+, )?{name}: ", each)]
        rows.append(_field(key, field, value, wrong, overrides.get(key), translate))
    return Html("".join(rows))


def _field(
    key: Key, field: FieldInfo, value: object, wrong: list[str], override: str | None, translate: Translate
) -> str:
    """Return a setting with its control; one that another source outranks, or that is secret, cannot be changed here."""
    id = re.sub(r"[^\w.-]", "_", "set-" + "-".join(key))
    notes = [translate(field.description) if field.description else ""]
    if needs_restart(key):
        notes.append(translate("Needs a restart."))
    if override is not None:
        notes.append(translate("{source} is set and overrides this file.").format(source=override))
    if not _is_shown(field):
        elsewhere = translate("(not in this file)")
        control = f'<input id="{id}" disabled value="{escape(elsewhere)}">'
        notes.append(translate("Secrets are set in the environment or in a file of their own, never here."))
    else:
        control = _control(
            id, key, field, value, is_wrong=bool(wrong), is_fixed=override is not None, translate=translate
        )
    mistakes = f'<span class="bad">{text(" ".join(wrong))}</span>' if wrong else ""
    return (
        f'<div class="setting"><label for="{id}">{text(key[-1])}</label>{control}'
        f'<p id="about-{id}">{text(" ".join(filter(None, notes)))} {mistakes}</p></div>'
    )


def _control(
    id: str, key: Key, field: FieldInfo, value: object, *, is_wrong: bool, is_fixed: bool, translate: Translate
) -> str:
    attributes = f'id="{id}" data-key="{escape(json.dumps(key))}" aria-describedby="about-{id}"'
    attributes += ' aria-invalid="true"' * is_wrong + " disabled" * is_fixed
    default, written = _written(plain_default(field)), "" if value is None else _written(value)
    options = _choices(field.annotation)
    if options and written in ("", *options):
        standard = translate("default: {value}").format(value=default) if default else translate("not set")
        shown = "".join(
            f'<option value="{escape(each)}"{" selected" if each == written else ""}>{text(each or standard)}</option>'
            for each in ("", *options)
        )
        return f"<select {attributes}>{shown}</select>"
    if key[-1] in _LONG:
        return f'<textarea {attributes} rows="4" placeholder="{escape(default)}">{text(written)}</textarea>'
    return (
        f'<input {attributes} value="{escape(written)}" placeholder="{escape(default)}" '
        'autocomplete="off" spellcheck="false">'
    )


def _choices(annotation: Any) -> list[str]:
    """Return the values of a setting that has only some; none for a number or a text.

    >>> from bot.config.http import ServerSection
    >>> _choices(ServerSection.model_fields["web"].annotation), _choices(int), _choices(str | None)
    (['auto', 'true', 'false'], [], [])
    """
    if annotation is bool:
        return ["true", "false"]
    found: list[str] = []
    for each in get_args(annotation):
        if isinstance(each, str):
            found.append(each)
        elif each is not type(None):
            inner = _choices(each)
            if not inner:
                return []
            found += inner
    return found


def _written(value: object) -> str:
    """Return a value as it is written into the form."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value))
    return "" if value == {} else as_toml(value)


def _is_shown(field: FieldInfo) -> bool:
    return not is_secret(field) or is_address(field)


def _fixed(editor: ConfigEditor, translate: Translate) -> str:
    """Return why the file cannot be saved here, empty if it can be."""
    why = editor.why_fixed()
    return "" if why is None else translate("It cannot be saved here: {why}.").format(why=why)
