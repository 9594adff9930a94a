"""The routes of the page: what it shows, checks and writes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from bot.adapters import SETTINGS, web
from bot.adapters.web.guard import PageGuard
from bot.adapters.web.requests import locale_of, read_object, refuse
from bot.chat.i18n import Translate, language_for, translator
from bot.cli.first_setup import load, notes, run_commands
from bot.cli.setup_page.answers import ModelAnswer, NoAnswer, SetupAnswers, TokenAnswer
from bot.cli.setup_page.checks import LocalModels, SetupChecks
from bot.cli.setup_page.link import COOKIE, OneTimeLink
from bot.cli.setup_page.words import fits, page_html, refusal_html
from bot.config.setup import Setup, files_of, fill_in, sets_nothing, write
from bot.util.http_server import end_unread

_STATIC = Path(__file__).with_name("static")
_FILES = {
    "setup.js": (_STATIC, "text/javascript"),
    "setup.css": (_STATIC, "text/css"),
    "icon.svg": (Path(web.__path__[0], "static"), "image/svg+xml"),
}
_NOT_HERE = (
    "The set-up page is served on this machine only: open the link that bot setup shows there, or forward its port, "
    "as with ssh -L PORT:127.0.0.1:PORT."
)

A = TypeVar("A", bound=BaseModel)
_Handler = Callable[[A, Translate], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class SetupOutcome:
    """What the page has done: the files that it wrote, and the command of `bot` that goes on in the terminal."""

    written: list[Path] = field(default_factory=list)
    has_platform: bool = False
    then: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the commands that start the bot; without a platform, the chat in the browser first."""
        return ("run",) if self.has_platform else ("serve", "run")


class SetupPages:
    """The page for a config.toml in `folder`; `ended` is set when it needs its server no more."""

    def __init__(self, folder: Path) -> None:
        self.link = OneTimeLink()
        self.outcome = SetupOutcome()
        self.ended = asyncio.Event()
        self._folder = folder
        self._checks = SetupChecks(folder)
        self._writing = asyncio.Lock()

    def app(self) -> Starlette:
        """Create the application."""
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/setup/enter", self._enter, methods=["POST"]),
                self._post("/setup/tokens", TokenAnswer, self._tokens),
                self._post("/setup/local", NoAnswer, self._local),
                self._post("/setup/model", ModelAnswer, self._model),
                self._post("/setup/files", SetupAnswers, self._files),
                self._post("/setup/write", SetupAnswers, self._write),
                Route("/setup/end", self._end, methods=["POST"]),
                Route("/setup/{name}", _file),
            ],
            middleware=[Middleware(PageGuard, not_here=_NOT_HERE)],
            exception_handlers={HTTPException: refuse, ClientDisconnect: end_unread},
        )

    async def _page(self, request: Request) -> Response:
        language = language_for("auto", locale_of(request) or "en", "")
        translate = translator(language)
        is_known = self.link.knows(request.cookies.get(COOKIE))
        if is_known or self.link.opens(request.query_params.get("link", "")):
            return HTMLResponse(page_html(language, translate))
        return HTMLResponse(refusal_html(language, translate), 403)

    async def _enter(self, request: Request) -> Response:
        token = (await read_object(request)).get("link")
        cookie = self.link.use(token) if isinstance(token, str) else None
        if cookie is None:
            raise HTTPException(403, _translate(request)("This link was used already, or is not complete."))
        response = Response(status_code=204)
        response.set_cookie(COOKIE, cookie, httponly=True, samesite="strict")
        return response

    def _admit(self, request: Request) -> Translate:
        translate = _translate(request)
        if not self.link.knows(request.cookies.get(COOKIE)):
            raise HTTPException(403, translate("Open the link that bot setup shows in the terminal."))
        return translate

    def _post(self, path: str, body: type[A], handle: _Handler[A]) -> Route:
        async def run(request: Request) -> Response:
            translate = self._admit(request)
            try:
                answer = body.model_validate(await read_object(request))
            except ValidationError as error:
                wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors(include_input=False))
                raise HTTPException(400, f"not an answer of the page: {wrong}") from None
            return JSONResponse(await handle(answer, translate))

        return Route(path, run, methods=["POST"])

    async def _tokens(self, answer: TokenAnswer, translate: Translate) -> dict[str, Any]:
        wanted = SETTINGS[answer.platform].tokens
        if not all(answer.tokens.get(name) for name in wanted):
            raise HTTPException(400, f"tokens are {', '.join(wanted)}")
        return asdict(await self._checks.tokens(answer.platform, answer.tokens, translate))

    async def _local(self, answer: NoAnswer, translate: Translate) -> dict[str, Any]:
        return _local_view(await self._checks.local_models(), translate)

    async def _model(self, answer: ModelAnswer, translate: Translate) -> dict[str, Any]:
        check = await self._checks.model(answer, translate)
        return {"verdict": check.verdict, "text": check.text, "models": check.models}

    async def _files(self, answer: SetupAnswers, translate: Translate) -> dict[str, Any]:
        setup, missing = await self._checks.setup(answer, translate)
        texts, config = self._texts(setup)
        return {
            "files": [{"path": str(path), "is_private": path != config} for path in texts],
            "config": fill_in("", setup.settings, SETTINGS).strip(),
            "missing": missing,
            "notes": notes(setup, self._folder, translate),
            "replaces": not sets_nothing(config),
        }

    def _texts(self, setup: Setup) -> tuple[dict[Path, str], Path]:
        return files_of(setup, self._folder, SETTINGS, os.environ), self._folder / "config.toml"

    async def _write(self, answer: SetupAnswers, translate: Translate) -> dict[str, Any]:
        async with self._writing:
            if self.outcome.written:
                raise HTTPException(409, translate("The files are written already."))
            setup, missing = await self._checks.setup(answer, translate)
            texts, config = self._texts(setup)
            if not answer.replaces and not sets_nothing(config):
                missing.append(translate("{file} has settings: say that they may be replaced.").format(file=config))
            if missing:
                raise HTTPException(409, "\n".join(missing))
            try:
                await asyncio.to_thread(write, texts, [path for path in texts if path != config])
            except OSError as error:
                place = error.filename or self._folder
                sentence = translate("{file} cannot be written: {reason}")
                raise HTTPException(409, sentence.format(file=place, reason=error.strerror)) from error
            self.outcome.written, self.outcome.has_platform = list(texts), bool(answer.platforms)
        server = load(setup).server
        has_chat = not answer.platforms and server.web is not False and server.port
        return {
            "written": [str(path) for path in texts],
            "commands": run_commands(self._folder, *self.outcome.names),
            "chat": f"http://{server.host}:{server.port}/" if has_chat else "",
        }

    async def _end(self, request: Request) -> Response:
        translate = self._admit(request)
        if not self.outcome.written:
            raise HTTPException(409, translate("Nothing is written yet."))
        if (await read_object(request)).get("starts") is True:
            self.outcome.then = self.outcome.names[0]
        # Once the answer is on its way, the server may end.
        return Response(status_code=204, background=BackgroundTask(self._set_ended))

    async def _set_ended(self) -> None:
        self.ended.set()


def _local_view(local: LocalModels, translate: Translate) -> dict[str, Any]:
    machine = local.machine
    return {
        "servers": [asdict(server) for server in local.servers],
        "cached": list(local.cached),
        "folders": [str(folder) for folder in local.folders],
        "fits": fits(machine, translate),
    }


async def _file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _FILES:
        raise HTTPException(404)
    folder, media_type = _FILES[name]
    return FileResponse(folder / name, media_type=media_type, headers={"Cache-Control": "no-cache"})


def _translate(request: Request) -> Translate:
    return translator(language_for("auto", locale_of(request) or "en", ""))
