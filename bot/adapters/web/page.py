"""The routes of the page: what it shows, and what its buttons do."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from bot.adapters.web.access import person_of, stays
from bot.adapters.web.chat import Chat
from bot.adapters.web.events import PING, PING_SECONDS, REPLACED, RETRY, PageEvents, encode
from bot.adapters.web.files import LONGEST_PICTURE, files_of, read_upload
from bot.adapters.web.guard import SESSION, PageGuard
from bot.adapters.web.panel.routes import panel_routes
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.requests import LONGEST_BODY, language_of, locale_of, read_object, refuse
from bot.adapters.web.session import COOKIE, MAX_AGE, Sessions
from bot.adapters.web.sign_in.routes import SignInParts, sign_in_routes
from bot.adapters.web.streams import Stream
from bot.adapters.web.uploads import Uploads
from bot.adapters.web.view import exchange_view, title
from bot.adapters.web.words import page_html
from bot.chat.files import MOST_FILES
from bot.chat.i18n import Translate, demo_note, translator
from bot.chat.settings import ChatSettings
from bot.chat.settings_form import form_command
from bot.config.http import WEB_PLATFORM
from bot.domain import Action, Attachment, Author, ChannelKey, Exchange, IncomingMessage, Status, Vote
from bot.errors import EngineError, NotErased, StoreError
from bot.util.http_server import end_unread

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_STATIC = Path(__file__).with_name("static")
_FILES = {
    "chat.js": "text/javascript",
    "chat.css": "text/css",
    "panel.js": "text/javascript",
    "panel-config.js": "text/javascript",
    "session.js": "text/javascript",
    "signin.js": "text/javascript",
    "signin.css": "text/css",
    "panel-models.js": "text/javascript",
    "panel-places.js": "text/javascript",
    "panel.css": "text/css",
    "icon.svg": "image/svg+xml",
}
# Exchanges of a conversation that are shown, and conversations that are listed at most.
_SHOWN = 200
_LISTED = 10_000
# Of a file's text in a request; a control character takes six, and no file has only those.
_BYTES_PER_CHARACTER = 4
# Seconds in which a body with files arrives.
_SECONDS = 60.0
_ID = re.compile(r"[0-9a-f]{32}")


def create_pages(
    find_chat: Callable[[], Chat | None],
    sessions: Sessions,
    sources: PanelSources | None = None,
    sign_in: SignInParts | None = None,
) -> Starlette:
    """Create the application; `find_chat` returns None while the platform starts or stops.

    With `sources` it has the operator's panel too, and with `sign_in` browsers elsewhere may use it.
    """
    uploads = Uploads()

    def chat_of(request: Request) -> Chat:
        if (chat := find_chat()) is None:
            raise HTTPException(503, "The bot is starting or stopping; the page tries again.")
        return chat

    def user_of(request: Request) -> str:
        if (who := person_of(request).who) is not None:
            return sessions.id_of(who.key)
        if (user := sessions.user(request.cookies.get(COOKIE))) is None:
            raise HTTPException(401, "The session has ended; please load the page again.")
        return user

    async def body_of(request: Request, chat: Chat) -> dict[str, Any]:
        """Read a body, which may have files; a large one waits until there is memory for it."""
        files = MOST_FILES * (chat.intake.settings.files.max_chars * _BYTES_PER_CHARACTER + LONGEST_PICTURE)
        user, length = user_of(request), request.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) <= LONGEST_BODY:
            return await read_object(request)
        translate = _translate(chat, request)
        try:
            async with uploads.place(user, translate), asyncio.timeout(_SECONDS):
                return await read_object(request, LONGEST_BODY + files)
        except TimeoutError:
            raise HTTPException(408, translate("This took too long to arrive.")) from None

    def find_settings() -> ChatSettings | None:
        return None if (chat := find_chat()) is None else chat.intake.settings

    async def page(request: Request) -> Response:
        intake = None if (chat := find_chat()) is None else chat.intake
        language = language_of(request, None if intake is None else intake.settings)
        translate = translator(language)
        note = "" if intake is None else demo_note(intake.engine.info.model, translate)
        return HTMLResponse(
            page_html(language, translate, note, person_of(request), "" if sources is None else "/admin")
        )

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _FILES:
            raise HTTPException(404)
        return FileResponse(_STATIC / name, media_type=_FILES[name], headers={"Cache-Control": "no-cache"})

    async def session(request: Request) -> Response:
        person = person_of(request)
        if sign_in is not None and not person.is_local:
            return JSONResponse({"token": sign_in.identity.csrf_token(person), "user": user_of(request)})
        # Not with the page: after a link on another page, the browser has withheld the cookie of the session.
        response = JSONResponse({"token": "", "user": ""})
        if sessions.user(request.cookies.get(COOKIE)) is None:
            response.set_cookie(COOKIE, sessions.issue(), max_age=MAX_AGE, httponly=True, samesite="strict")
        return response

    async def events(request: Request) -> Response:
        chat, channel = chat_of(request), ChannelKey(WEB_PLATFORM, user_of(request), _id(request.query_params, "chat"))
        page = partial(_Page, chat, translate=_translate(chat, request), listed=_listed(request.query_params))
        return PageEvents(_updates(chat, channel, page), partial(stays, request))

    def call_of(request: Request, named: Any, body: dict[str, Any]) -> "_Call":
        user = user_of(request)
        author = person_of(request).who or Author(WEB_PLATFORM, user, "")
        translate = _translate(chat_of(request), request)
        return _Call(user, author, _id(named, "chat"), body, locale_of(request), translate)

    def post(path: str, handle: Callable[[Chat, "_Call"], Awaitable[dict[str, Any]]]) -> Route:
        async def run(request: Request) -> Response:
            chat = chat_of(request)
            body = await body_of(request, chat)
            call = call_of(request, body, body)
            try:
                return JSONResponse(await handle(chat, call))
            except StoreError as error:
                # For operators only: it names the database's server or path.
                log.warning("web: database failed", path=path, error=str(error))
                why = call.translate("My database has a problem, so I cannot answer now. Please try again later.")
                raise HTTPException(503, why) from error

        return Route(path, run, methods=["POST"])

    async def read(request: Request) -> Response:
        chat = chat_of(request)
        call = call_of(request, request.query_params, {})
        message = call.message_of(chat, "", "")  # only for those whom [access] admits
        try:
            sees = await chat.intake.conversations.most_pictures(message) > 0
        except (EngineError, StoreError):
            sees = False
        async with uploads.place(call.user, call.translate):
            return JSONResponse(await read_upload(request, chat.intake.files, call.translate, sees=sees))

    return Starlette(
        routes=[
            Route("/", page),
            *([] if sign_in is None else sign_in_routes(sign_in, find_settings)),
            Route(SESSION, session, methods=["POST"]),
            Route("/web/events", events),
            post("/web/ask", _ask),
            post("/web/edit", _edit),
            post("/web/press", _press),
            post("/web/delete", _delete),
            post("/web/settings", _settings),
            Route("/web/read", read, methods=["POST"]),
            Route("/web/{name}", file),
            *([] if sources is None else panel_routes(find_chat, sources)),
        ],
        middleware=[
            Middleware(PageGuard) if sign_in is None else Middleware(PageGuard, "", sign_in.gate, sign_in.identity)
        ],
        exception_handlers={HTTPException: refuse, ClientDisconnect: end_unread},
    )


@dataclass(frozen=True, slots=True)
class _Call:
    """A request of the page."""

    user: str
    author: Author
    conversation: str
    body: dict[str, Any]
    locale: str | None
    translate: Translate

    @property
    def channel(self) -> ChannelKey:
        return ChannelKey(WEB_PLATFORM, self.user, self.conversation)

    def message(self, chat: Chat) -> IncomingMessage:
        """Return what was written.

        Raises:
            HTTPException: It is no message, or [access] does not admit it.
        """
        files = files_of(self.body, chat.intake.settings.files.max_chars)
        return self.message_of(chat, _id(self.body, "id"), _text(self.body, "text"), files)

    def message_of(self, chat: Chat, id: str, text: str, files: tuple[Attachment, ...] = ()) -> IncomingMessage:
        """Return a message of the page's user.

        Raises:
            HTTPException: [access] does not admit it.
        """
        message = IncomingMessage(
            id=id,
            channel=self.channel,
            author=self.author,
            text=text,
            sent_at=chat.intake.today(),
            is_direct=True,
            locale=self.locale,
            files=files,
        )
        if not chat.intake.access.admits(message):
            raise HTTPException(403, self.translate("You may not use this bot here."))
        return message


async def _ask(chat: Chat, call: _Call) -> dict[str, Any]:
    await chat.inbox.accept(call.message(chat))
    chat.streams.reload(call.channel)
    return {}


async def _edit(chat: Chat, call: _Call) -> dict[str, Any]:
    await chat.inbox.edit(call.message(chat))
    chat.streams.reload(call.channel)
    return {}


async def _press(chat: Chat, call: _Call) -> dict[str, Any]:
    try:
        action = Action(_text(call.body, "action"))
    except ValueError:
        raise HTTPException(400, "action is stop, retry, up or down") from None
    notice = await chat.inbox.press(call.channel, _text(call.body, "reply"), action, call.author)
    chat.streams.reload(call.channel)
    return {"notice": notice}


async def _delete(chat: Chat, call: _Call) -> dict[str, Any]:
    if not chat.intake.access.may_clear(call.author):
        return {"notice": call.translate("Only admins may delete a conversation.")}
    try:
        await chat.intake.exchanges.clear(call.channel)
    except NotErased:
        return {"notice": call.translate("Deleted; the files of the database are cleaned as soon as possible.")}
    finally:
        chat.streams.reload(call.channel)
    return {}


async def _settings(chat: Chat, call: _Call) -> dict[str, Any]:
    """Change a setting of the conversation if one is named; return the fields of its form."""
    message = call.message_of(chat, "", "")
    fields, notice = await chat.intake.forms.fields(message), ""
    if "setting" in call.body:
        name = _text(call.body, "setting")
        command = form_command(name, _text(call.body, "value"))
        if command is None or name not in [each.name for each in fields]:
            raise HTTPException(400, f"setting is one of {', '.join(each.name for each in fields)}")
        notice = await chat.intake.forms.carry_out(replace(message, text=command))
        fields = await chat.intake.forms.fields(message)
    return {"notice": notice, "fields": [asdict(field) for field in fields]}


async def _updates(
    chat: Chat, channel: ChannelKey, open_page: Callable[[Stream], "_Page"]
) -> AsyncGenerator[bytes, None]:
    """Yield the whole conversation, then what changes of it."""
    yield RETRY
    with chat.streams.open(channel) as stream:
        page = open_page(stream)
        while not stream.is_closed:
            if stream.is_replaced:
                yield REPLACED
                return
            if not await stream.wait(PING_SECONDS):
                yield PING
                continue
            try:
                update = await page.update()
            except StoreError as error:
                log.warning("web: conversation not read, the page tries again", error=str(error))
                return
            if update is not None:
                yield update


class _Page:
    """What one page shows, with so many conversations in its list."""

    def __init__(self, chat: Chat, stream: Stream, translate: Translate, listed: int) -> None:
        self._chat = chat
        self._listed = listed
        self._stream = stream
        self._translate = translate
        self._is_new = True
        self._rows: dict[str, Exchange] = {}
        self._votes: dict[int, Vote] = {}  # the user's own, by exchange

    async def update(self) -> bytes | None:
        """Return an event with what has changed since the last call, all of it at the first; None if that is nothing.

        Raises:
            StoreError: The database cannot be read.
        """
        changed, self._stream.changed = self._stream.changed, set()
        if not self._stream.is_stale:
            rows = [self._rows[question] for question in changed if question in self._rows]
            return await self._event(rows, dict) if rows else None
        self._stream.is_stale = False
        channel, intake = self._stream.channel, self._chat.intake
        rows = await intake.said_in(channel, _SHOWN)
        openings = await intake.openings(channel, self._listed + 1)
        before, self._rows = self._rows, {row.message.id: row for row in rows}
        voted, self._votes = self._votes, {}
        if intake.settings.feedback.enabled:
            voter = Author(WEB_PLATFORM, channel.channel, "")
            self._votes = await intake.own_votes(voter, [row.id for row in rows])
        new = [
            row
            for row in rows
            if before.get(row.message.id) != row
            or row.status is Status.OPEN
            or voted.get(row.id) != self._votes.get(row.id)
        ]
        is_new, self._is_new = self._is_new, False
        order, listed = list(self._rows), openings[: self._listed]
        has_older = len(openings) > len(listed)

        def lists() -> dict[str, Any]:
            chats = [{"id": each.message.channel.thread, "title": title(each)} for each in listed]
            return {"reset": is_new, "order": order, "chats": chats, "older": has_older}

        return await self._event(new, lists)

    async def _event(self, rows: list[Exchange], more: Callable[[], dict[str, Any]]) -> bytes:
        """Return an event with these exchanges, and `more`."""
        find = self._chat.messenger.reply
        replies = [find(row.message.id, row.parts) if row.answer is None else {} for row in rows]
        votes = self._votes
        translate, asks_for_votes = self._translate, self._chat.intake.settings.feedback.enabled

        def make() -> bytes:
            views = [
                exchange_view(row, reply, translate, asks_for_votes=asks_for_votes, vote=votes.get(row.id))
                for row, reply in zip(rows, replies, strict=True)
            ]
            return encode({"exchanges": views, **more()})

        # Rendering a long conversation takes a while, and hostile Markdown longer; so does encoding megabytes.
        return await asyncio.to_thread(make)


def _text(body: Any, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise HTTPException(400, f"{name} is missing or not a string")
    return value


def _listed(query: Mapping[str, str]) -> int:
    text = query.get("listed", "100")
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= _LISTED):
        raise HTTPException(400, f"listed is not a number from 1 to {_LISTED}")
    return int(text)


def _id(body: Any, name: str) -> str:
    value = _text(body, name)
    if not _ID.fullmatch(value):
        raise HTTPException(400, f"{name} is not 32 hexadecimal digits")
    return value


def _translate(chat: Chat, request: Request) -> Translate:
    return translator(language_of(request, chat.intake.settings))
