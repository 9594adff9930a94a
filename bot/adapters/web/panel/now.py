"""The state of the program: load, models, platforms, database.  Read from counters, whatever their size."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import cache

from bot import __version__
from bot.adapters.web.access import Right
from bot.adapters.web.panel.faults import state_html
from bot.adapters.web.panel.html import Html, facts, items, table
from bot.adapters.web.panel.models import models_html
from bot.adapters.web.panel.sources import PanelSources
from bot.chat.i18n import Translate, demo_note
from bot.chat.status import duration, reload_lines, upkeep_lines
from bot.domain import EngineLoad, RunningBot
from bot.observability import process
from bot.observability.health import Readiness

_MINUTE = timedelta(minutes=1)
_IDLE = EngineLoad(running=0, waiting=0)


async def now_parts(sources: PanelSources, right: Right, translate: Translate) -> dict[str, Html]:
    """Return the fragments of the section by the ids of their elements."""
    components = sources.components
    readiness = {state.component: state for state in await sources.health.readiness()}
    return {
        "facts": facts(_facts(sources, readiness, right, translate)),
        "platforms": _platforms(readiness, list(components.adapters), right, translate),
        "bots": _bots(components.bots, right, translate),
        "models": models_html(sources, right, translate),
        "notes": items(_notes(sources, right, translate)),
    }


def _facts(
    sources: PanelSources, readiness: dict[str, Readiness], right: Right, translate: Translate
) -> Iterator[tuple[str, str]]:
    engine = sources.components.engine
    load = _IDLE if engine is None else engine.load
    speed = load.tokens_per_second
    yield translate("Answering"), str(load.running)
    yield translate("Waiting"), str(load.waiting)
    yield translate("Tokens per second"), "–" if speed is None else str(round(speed))
    yield translate("Memory"), f"{process.memory() >> 20} MiB"
    if load.device_bytes:
        yield translate("Memory of the device"), f"{load.device_bytes >> 20} MiB"
    yield translate("Database"), state_html(readiness["store"].reason, "database", right, translate)
    yield translate("Running for"), _uptime(translate)
    yield translate("Version"), __version__


def _platforms(readiness: dict[str, Readiness], names: list[str], right: Right, translate: Translate) -> Html:
    rows = [(name, state_html(readiness[name].reason, "platform", right, translate)) for name in names]
    return table("table-platforms", translate("Platforms"), (translate("Platform"), translate("State")), rows)


def _bots(bots: Sequence[RunningBot], right: Right, translate: Translate) -> Html:
    """Return the bots that share the database, which names their hosts; nothing where one has it alone."""
    if not bots or right < Right.OPERATOR:
        return Html("")
    heads = (translate("Bot"), translate("Version"), translate("Platforms"))
    rows = [(bot.name, bot.version, ", ".join(bot.platforms) or translate("standing by")) for bot in bots]
    return table("table-bots", translate("Bots"), heads, rows)


def _notes(sources: PanelSources, right: Right, translate: Translate) -> Iterator[str]:
    components = sources.components
    if components.engine is not None and (note := demo_note(components.engine.info.model, translate)):
        yield note
    if components.store is not None:
        yield from upkeep_lines(components.store.upkeep, translate)
    # Its mistakes and failures name paths.
    if right >= Right.OPERATOR and (last := sources.last_reload()) is not None:
        yield from reload_lines(last, translate)
    yield translate("Runs on: {versions}").format(versions=", ".join(_versions()))


def _uptime(translate: Translate) -> str:
    """Return the time since the start in whole minutes: with seconds, the page would change every second."""
    minutes = process.uptime() // _MINUTE * _MINUTE
    return f"{duration(minutes, translate).removesuffix(':00')} h"


@cache
def _versions() -> list[str]:
    return process.versions()
