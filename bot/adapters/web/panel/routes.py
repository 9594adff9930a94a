"""The operator's panel at /admin: its routes, and the stream of what it shows.

Each route says which right it needs; see `bot.adapters.web.access`.
"""

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from bot.adapters.web.access import Right, person_of, restricted, stays
from bot.adapters.web.chat import Chat
from bot.adapters.web.events import PING, PING_SECONDS, REPLACED, RETRY, PageEvents, encode
from bot.adapters.web.panel import backups, config, models, places
from bot.adapters.web.panel.calls import PanelCall, PanelCalls, carry_out
from bot.adapters.web.panel.channels import channel_of, mark_of
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.panel.usage import RecentUsage
from bot.adapters.web.panel.view import PanelView
from bot.adapters.web.panel.words import panel_html
from bot.adapters.web.requests import language_of
from bot.chat.i18n import translator
from bot.chat.rules import WRITTEN
from bot.chat.settings_commands import shown_value
from bot.config.http import WEB_PLATFORM
from bot.domain import ChannelKey, Scope

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between two updates of a page.
_SECONDS = 1.0
# Where the operator's commands come from; no session has this id.
_PANEL = ChannelKey(WEB_PLATFORM, "admin")


def panel_routes(find_chat: Callable[[], Chat | None], sources: PanelSources) -> list[Route]:
    """Return the routes; `find_chat` returns None while the platform starts or stops."""
    usage, calls = RecentUsage(sources.read_usage, sources.clock), PanelCalls(find_chat, sources)

    async def page(request: Request) -> Response:
        chat = find_chat()
        language = language_of(request, None if chat is None else chat.intake.settings)
        return HTMLResponse(panel_html(language, translator(language), person_of(request)))

    async def events(request: Request) -> Response:
        chat = calls.chat()
        translate = translator(language_of(request, chat.intake.settings))
        person = person_of(request)
        view = PanelView(chat, sources, usage, translate, person.right)
        # The open tabs of one sign-in are limited, and do not pause those of others.
        tabs = replace(_PANEL, channel=f"{_PANEL.channel} {person.session}")
        return PageEvents(_updates(chat, view, tabs), partial(stays, request))

    async def download(request: Request) -> Response:
        return await backups.download(request, sources)

    return [
        Route("/admin", restricted(Right.ADMIN, page)),
        Route("/admin/events", restricted(Right.ADMIN, events)),
        calls.post("/admin/pause", _pause),
        calls.post("/admin/undo", _undo),
        calls.post("/admin/place", places.settings),
        calls.post("/admin/model", models.change),
        calls.post("/admin/config", config.draft, Right.OPERATOR),
        calls.post("/admin/config/save", config.save, Right.OPERATOR),
        calls.post("/admin/backup", backups.make, Right.OPERATOR),
        Route("/admin/backups/{name}", restricted(Right.OPERATOR, download)),
    ]


async def _pause(call: PanelCall) -> str:
    is_paused = call.body.get("paused")
    if not isinstance(is_paused, bool):
        raise HTTPException(400, "paused is true or false")
    notice = await carry_out(call, "/pause" if is_paused else "/resume", _PANEL)
    log.info("paused in the panel" if is_paused else "resumed in the panel", by=call.person.author.key)
    return notice


async def _undo(call: PanelCall) -> str:
    """Undo the last change of a place, if it is still the one that the page shows."""
    level, place, shown = (call.body.get(name) for name in ("level", "place", "change"))
    if level not in ("channel", "thread") or not isinstance(place, str) or not isinstance(shown, str):
        raise HTTPException(400, "level is channel or thread; place and change are strings")
    scope, intake = Scope(level, place), call.chat.intake
    changes = await intake.choices.changes(scope, 1)
    if not changes or changes[0].scope != scope or mark_of(changes[0]) != shown:
        return call.translate("This was changed meanwhile; please look again.")
    notice = await carry_out(call, "/settings undo", channel_of(scope))
    (last,) = await intake.choices.changes(scope, 1)
    if last.setting not in WRITTEN or last == changes[0] or call.sources.show_texts:
        return notice
    value = shown_value(last, call.translate)  # the notice quotes the texts that were set
    return call.translate("Undone: {setting} = {value}").format(setting=last.setting, value=value)


async def _updates(chat: Chat, view: PanelView, tabs: ChannelKey) -> AsyncGenerator[bytes, None]:
    """Yield all of the panel, then what has changed, at most once in `_SECONDS`."""
    yield RETRY
    silent = 0.0
    with chat.streams.open(tabs) as stream:
        while True:
            await stream.wait(_SECONDS)
            if stream.is_closed:
                return
            if stream.is_replaced:
                yield REPLACED
                return
            silent += _SECONDS
            if update := await view.update():
                silent = 0.0
                yield encode(update)
            elif silent >= PING_SECONDS:
                silent = 0.0
                yield PING
