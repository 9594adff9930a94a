"""The routes of the HTTP server, and who may use them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bot.config.schema import ServerSection
from bot.server.chatglm import answer, api_error, glm_chat, glm_stream
from bot.server.errors import ApiError, bad_request
from bot.server.generation import Backend
from bot.server.openai import chat_completions, model_object, openai_error, served_model
from bot.server.polling import Polling, polling_error
from bot.server.requests import read_object
from bot.util.aio import BackgroundTasks
from bot.util.clock import Clock
from bot.util.http_server import serve_app

Handler = Callable[[Request, Mapping[str, Any], Backend], Awaitable[Response | None]]

# Connections, and seconds that each may take: an answer and the queue before it are minutes.
_LIMIT = 512
_SECONDS = 1800.0

# Names under which a browser reaches this machine only.
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
# The client has gone: nobody reads it.
_NO_ANSWER = Response(status_code=499)


def create_server(backend: Backend, clock: Clock, tasks: BackgroundTasks) -> Starlette:
    """Create the application with all APIs; the answers of the polling API run as `tasks`."""
    polling = Polling(tasks, clock)

    def post(path: str, handler: Handler, write_error: Callable[[ApiError], Response]) -> Route:
        async def handle(request: Request) -> Response:
            try:
                return await handler(request, await read_object(request), backend) or _NO_ANSWER
            except ApiError as error:
                return write_error(error)

        return Route(path, handle, methods=["POST"])

    async def chat(request: Request) -> Response:
        """`POST /chat` is two APIs: `request_id` and `query` tell the polling API, `prompt` the GLM API."""
        try:
            body = await read_object(request)
        except ApiError as error:
            return api_error(error)
        is_polling = "request_id" in body or "query" in body
        if not is_polling and "prompt" not in body:
            return api_error(bad_request("the body has neither prompt nor request_id and query"))
        handler, write_error = (polling.start, polling_error) if is_polling else (glm_chat, api_error)
        try:
            return await handler(request, body, backend) or _NO_ANSWER
        except ApiError as error:
            return write_error(error)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model_object(backend)]})

    async def model(request: Request) -> Response:
        try:
            served_model(backend, request.path_params["id"])
        except ApiError as error:
            return openai_error(error)
        return JSONResponse(model_object(backend))

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        refusal = ApiError(error.status_code, error.detail, headers=error.headers)
        return openai_error(refusal) if request.url.path.startswith("/v1/") else api_error(refusal)

    return Starlette(
        routes=[
            post("/", answer, api_error),
            Route("/chat", chat, methods=["POST"]),
            post("/get_response", polling.read, polling_error),
            post("/chat-stream", glm_stream, api_error),
            post("/v1/chat/completions", chat_completions, openai_error),
            Route("/v1/models", models),
            Route("/v1/models/{id:path}", model),
        ],
        middleware=[Middleware(LocalOnly)],
        exception_handlers={HTTPException: refuse},
    )


@asynccontextmanager
async def serve_apis(settings: ServerSection, backend: Backend, clock: Clock) -> AsyncIterator[int]:
    """Serve all APIs inside the block; yield the port.

    Raises:
        AddressUnavailable: The port is in use.
    """
    async with BackgroundTasks() as tasks:
        app = create_server(backend, clock, tasks)
        async with serve_app(app, "server", settings.host, settings.port, limit=_LIMIT, seconds=_SECONDS) as port:
            yield port


class LocalOnly:
    """Refuses requests that a web page made a browser send: of another origin, or by another name of this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            host = headers.get(b"host", b"").decode("latin-1")
            if b"origin" in headers or _name(host) not in _LOOPBACK:
                refusal = JSONResponse({"error": "only programs on this machine may use this server"}, 403)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _name(host: str) -> str:
    """Return a Host header without its port.

    >>> _name("localhost:8000"), _name("[::1]:8000"), _name("[::1]")
    ('localhost', '[::1]', '[::1]')
    """
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
