"""The models: what each does and needs, and how it is changed, by way of config.toml."""

from collections.abc import Iterator
from html import escape

import structlog
from starlette.exceptions import HTTPException

from bot.adapters.web.access import Right
from bot.adapters.web.panel.calls import PanelCall, editor_of, record
from bot.adapters.web.panel.faults import reason_of, state_html
from bot.adapters.web.panel.html import Html, table, text
from bot.adapters.web.panel.sources import PanelSources
from bot.chat.i18n import Translate
from bot.chat.status import public_info, public_name
from bot.config.edit import ConfigEditor
from bot.config.schema import DEFAULT_MODEL, EngineSection, Key
from bot.domain import EngineLoad, ModelStatus

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# What the panel changes of a model, and who may: a model's name may be a path.
_SETTINGS: dict[str, Right] = {"quantization": Right.ADMIN, "model": Right.OPERATOR}
_NOTHING = "–"


def models_html(sources: PanelSources, right: Right, translate: Translate) -> Html:
    """Return the section's content."""
    engine, models = sources.components.engine, sources.components.models()
    if not models and engine is not None:
        models = [ModelStatus(DEFAULT_MODEL, engine.info, engine.load)]
    heads = (
        translate("Name"),
        translate("Model"),
        translate("Backend and device"),
        translate("State"),
        translate("Tokens per second"),
        translate("Answering, waiting"),
        translate("Memory"),
        translate("Change"),
    )
    rows = [_row(status, sources, right, translate) for status in models]
    listed = table("table-models", translate("Models"), heads, rows)
    refusals = "" if sources.editor is None else "".join(_refusals(sources.editor, right, translate))
    return Html(listed + refusals)


def _row(status: ModelStatus, sources: PanelSources, right: Right, translate: Translate) -> tuple[str, ...]:
    load, needed = status.load, status.bytes_needed
    if load is not None and load.is_changing:
        state = _progress(status.name, load, translate)
    else:
        state = state_html(status.fault or sources.health.fault_of(load), "model", right, translate)
    button = _button(status, sources.editor, right, translate)
    if load is None:
        return (status.name, _NOTHING, _NOTHING, state, _NOTHING, _NOTHING, _NOTHING, button)
    speed = _NOTHING if load.tokens_per_second is None else str(round(load.tokens_per_second))
    held = max(needed, load.device_bytes)
    memory = f"{held >> 20} MiB" if held else _NOTHING
    return (status.name, *_described(status, right), state, speed, f"{load.running}, {load.waiting}", memory, button)


def _described(status: ModelStatus, right: Right) -> tuple[str, str]:
    info = status.info
    if info is None:
        return _NOTHING, _NOTHING
    if right < Right.OPERATOR:
        info = public_info(info)
    model = f"{info.model} ({status.base})" if status.base else info.model
    return model, f"{info.backend}, {info.quantization}, {info.dtype}, {info.device}"


def _progress(name: str, load: EngineLoad, translate: Translate) -> Html:
    """Return how far a change is."""
    if load.loaded is None:
        sentence = translate("Change: answers that have begun end first ({count})").format(count=load.running)
        return Html(f'<span class="quiet">{text(sentence)}</span>')
    share = round(load.loaded * 100)
    label = translate("Loading the new model: {share} %").format(share=share)
    return Html(
        f'<progress max="100" value="{share}" aria-label="{escape(name)}"></progress> '
        f'<span class="quiet">{text(label)}</span>'
    )


def _button(status: ModelStatus, editor: ConfigEditor | None, right: Right, translate: Translate) -> str:
    """Return the button of the dialog; models with the weights of another have none."""
    wanted = None if editor is None else editor.wanted_models.get(status.name)
    if wanted is None or status.base:
        return ""
    label, change = translate("Change the model {name}").format(name=status.name), text(translate("Change"))
    return Html(
        f'<button id="change-{escape(status.name)}" class="change" type="button" aria-haspopup="dialog" '
        f'aria-label="{escape(label)}"{_data(status.name, wanted, right)}>{change}</button>'
    )


def _refusals(editor: ConfigEditor, right: Right, translate: Translate) -> Iterator[str]:
    """Yield what config.toml asks for in vain, with a way back to what runs."""
    for name, why in editor.failures.items():
        running = editor.current.sections.get(name)
        reason = reason_of(why, right, translate)
        sentence = translate("{name} was not changed: {why}").format(name=name, why=reason)
        yield f'<p class="bad">{text(sentence)}</p>'
        if running is not None and running != editor.wanted_models.get(name):
            label = translate("Let config.toml have what runs: {model}, {quantization}").format(
                model=running.model if right >= Right.OPERATOR else public_name(running.model),
                quantization=running.quantization,
            )
            yield (
                f'<p><button id="back-{escape(name)}" class="back" type="button"{_data(name, running, right)}>'
                f"{text(label)}</button></p>"
            )


def _data(name: str, section: EngineSection, right: Right) -> str:
    values = {setting: getattr(section, setting) for setting, needed in _SETTINGS.items() if right >= needed}
    values["name"] = name
    return "".join(f' data-{key}="{escape(value)}"' for key, value in values.items())


async def change(call: PanelCall) -> str:
    """Change a model by changing config.toml, after the checks of a start; the model is replaced as after any edit."""
    editor, translate = editor_of(call), call.translate
    name, values = call.text("name"), call.body.get("values")
    wanted = editor.wanted_models.get(name)
    if wanted is None or not isinstance(values, dict) or not values or not values.keys() <= _SETTINGS.keys():
        raise HTTPException(400, f"name is a model, values has {' or '.join(_SETTINGS)}")
    new = {setting: str(value) for setting, value in values.items() if value != getattr(wanted, setting)}
    if any(_SETTINGS[setting] > call.person.right for setting in new):
        raise HTTPException(403, translate("Only operators may do that: see server.operators."))
    if not new:
        return translate("config.toml has these values already.")
    table: Key = ("engine",) if name == DEFAULT_MODEL else ("models", name)
    saved = await editor.set({(*table, setting): value for setting, value in new.items()})
    await record(call, saved)
    log.info("model changed in the panel", table=name, by=call.person.author.key, **new)
    return translate("Saved in config.toml. The model is replaced as soon as it can be; see its state.")
