"""The state of the program: load, models, platforms, database.  Read from counters, whatever their size."""

from collections.abc import Iterator
from datetime import timedelta
from functools import cache

from bot import __version__
from bot.adapters.web.panel.html import Html, facts, items, table, text
from bot.adapters.web.panel.sources import PanelSources
from bot.chat.i18n import Translate, demo_note
from bot.chat.status import duration, reload_lines, upkeep_lines
from bot.domain import EngineLoad, ModelStatus
from bot.observability import process
from bot.observability.health import Readiness

_MINUTE = timedelta(minutes=1)
_IDLE = EngineLoad(running=0, waiting=0)


async def now_parts(sources: PanelSources, translate: Translate) -> dict[str, Html]:
    """Return the fragments of the section by the ids of their elements."""
    components = sources.components
    readiness = {state.component: state for state in await sources.health.readiness()}
    return {
        "facts": facts(_facts(sources, readiness, translate)),
        "platforms": _platforms(readiness, list(components.adapters), translate),
        "models": _models(sources, translate),
        "notes": items(_notes(sources, translate)),
    }


def _facts(sources: PanelSources, readiness: dict[str, Readiness], translate: Translate) -> Iterator[tuple[str, str]]:
    engine = sources.components.engine
    load = _IDLE if engine is None else engine.load
    speed = load.tokens_per_second
    yield translate("Answering"), str(load.running)
    yield translate("Waiting"), str(load.waiting)
    yield translate("Tokens per second"), "–" if speed is None else str(round(speed))
    yield translate("Memory"), f"{process.memory() >> 20} MiB"
    if load.device_bytes:
        yield translate("Memory of the device"), f"{load.device_bytes >> 20} MiB"
    yield translate("Database"), _state(readiness["store"].reason, translate)
    yield translate("Running for"), _uptime(translate)
    yield translate("Version"), __version__


def _platforms(readiness: dict[str, Readiness], names: list[str], translate: Translate) -> Html:
    rows = [(name, _state(readiness[name].reason, translate, "connected")) for name in names]
    return table("table-platforms", translate("Platforms"), (translate("Platform"), translate("State")), rows)


def _models(sources: PanelSources, translate: Translate) -> Html:
    engine = sources.components.engine
    models = sources.components.models()
    if not models and engine is not None:
        models = [ModelStatus(engine.info.model, engine.info, engine.load)]
    heads = (translate("Name"), translate("Model"), translate("Backend"), translate("Device"), translate("State"))
    rows = [
        (status.name, *_described(status), _state(status.fault or sources.health.fault_of(status.load), translate))
        for status in models
    ]
    return table("table-models", translate("Models"), heads, rows)


def _described(status: ModelStatus) -> tuple[str, str, str]:
    info = status.info
    if info is None:
        return "–", "–", "–"
    model = f"{info.model} ({status.base})" if status.base else info.model
    return model, f"{info.backend}, {info.quantization}, {info.dtype}", info.device


def _state(fault: str | None, translate: Translate, good: str = "ready") -> Html:
    """Return a state in words, marked as good or bad."""
    words = {"ready": translate("ready"), "connected": translate("connected")}
    kind = "good" if fault is None else "bad"
    return Html(f'<span class="{kind}">{text(words[good] if fault is None else fault)}</span>')


def _notes(sources: PanelSources, translate: Translate) -> Iterator[str]:
    components = sources.components
    if components.engine is not None and (note := demo_note(components.engine.info.model, translate)):
        yield note
    if components.store is not None:
        yield from upkeep_lines(components.store.upkeep, translate)
    if (last := sources.last_reload()) is not None:
        yield from reload_lines(last, translate)
    yield translate("Runs on: {versions}").format(versions=", ".join(_versions()))


def _uptime(translate: Translate) -> str:
    """Return the time since the start in whole minutes: with seconds, the page would change every second."""
    minutes = process.uptime() // _MINUTE * _MINUTE
    return f"{duration(minutes, translate).removesuffix(':00')} h"


@cache
def _versions() -> list[str]:
    return process.versions()
