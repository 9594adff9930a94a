"""The routes of the HTTP server, and who may use them."""

import hashlib
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bot.config.http import ServerSection
from bot.server.chatglm import answer, api_error, glm_chat, glm_stream, tokenize
from bot.server.embeddings import embedding_model, glm_embedding, openai_embeddings
from bot.server.errors import ApiError, WriteError, bad_request
from bot.server.generation import Backend, Client
from bot.server.openai import chat_completions, completions, model_objects, openai_error, served_model
from bot.server.openapi import document
from bot.server.polling import Polling, polling_error
from bot.server.requests import read_object
from bot.util.aio import BackgroundTasks
from bot.util.clock import Clock
from bot.util.http_server import end_unread, serve_app

Handler = Callable[[Request, Mapping[str, Any], Backend], Awaitable[Response | None]]

# Connections, and seconds that each may take: an answer and the queue before it are minutes.
_LIMIT = 512
_SECONDS = 1800.0

# Names under which a browser reaches this machine only.
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
# The client has gone: nobody reads it.
_NO_ANSWER = Response(status_code=499)


def create_server(settings: ServerSection, backend: Backend, clock: Clock, tasks: BackgroundTasks) -> Starlette:
    """Create the application with all APIs; the answers of the polling API run as `tasks`."""
    polling = Polling(tasks, clock)
    # As browsers write them: they send no slash at the end.
    origins = [origin.rstrip("/").lower() for origin in settings.origins]

    def post(path: str, handler: Handler, write_error: WriteError = api_error) -> Route:
        async def handle(request: Request) -> Response:
            request.state.write_error = write_error
            return await handler(request, await read_object(request), backend) or _NO_ANSWER

        return Route(path, handle, methods=["POST"])

    async def chat(request: Request, body: Mapping[str, Any], backend: Backend) -> Response | None:
        """`POST /chat` is two APIs: `request_id` and `query` tell the polling API, `prompt` the GLM API."""
        if "request_id" in body or "query" in body:
            request.state.write_error = polling_error
            return await polling.start(request, body, backend)
        if "prompt" in body:
            return await glm_chat(request, body, backend)
        raise bad_request("the body has neither prompt nor request_id and query")

    async def described(request: Request) -> Response:
        return JSONResponse(document())

    async def models(request: Request) -> Response:
        # Without the embedding model: chat clients would offer it, and those that want the only one find two.
        return JSONResponse({"object": "list", "data": [*model_objects(backend).values()]})

    async def model(request: Request) -> Response:
        if backend.embedder is not None and request.path_params["id"] == backend.embedder.name:
            return JSONResponse(embedding_model(backend.embedder))
        id, _ = served_model(backend, request.path_params["id"])
        return JSONResponse(model_objects(backend)[id])

    routes = [
        post("/", answer),
        post("/chat", chat),
        post("/get_response", polling.read, polling_error),
        post("/chat-stream", glm_stream),
        post("/tokenize", tokenize),
        post("/embedding", glm_embedding),
        post("/v1/chat/completions", chat_completions, openai_error),
        post("/v1/completions", completions, openai_error),
        post("/v1/embeddings", openai_embeddings, openai_error),
        Route("/openapi.json", described),
        Route("/v1/models", models),
        Route("/v1/models/{id:path}", model),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            # Around the guard: a page of an allowed origin sends its preflight without a key, and reads refusals.
            Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]),
            Middleware(Guard, settings, backend, clock, frozenset(route.path for route in routes), frozenset(origins)),
        ],
        exception_handlers={
            ApiError: _refuse,
            HTTPException: _refuse,
            ClientDisconnect: end_unread,
            Exception: _refuse,
        },
    )


async def _refuse(request: Request, error: Exception) -> Response:
    """Write any error in the form of the API that the request belongs to."""
    match error:
        case ApiError():
            refusal = error
        case HTTPException():
            refusal = ApiError(error.status_code, error.detail, headers=error.headers)
        case _:
            refusal = ApiError(500, "the server failed on this request")
    write_error: WriteError = getattr(request.state, "write_error", api_error)
    return write_error(refusal)


def with_pages(apis: ASGIApp, pages: ASGIApp) -> ASGIApp:
    """Return an application that serves `pages` at /web/, at /admin and where a browser opens /."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        is_page = path == "/admin" or path.startswith(("/web/", "/admin/"))
        is_page = is_page or (path == "/" and scope["method"] in ("GET", "HEAD"))
        await (pages if is_page else apis)(scope, receive, send)

    return serve


@asynccontextmanager
async def serve_apis(
    settings: ServerSection, backend: Backend, clock: Clock, pages: ASGIApp | None = None
) -> AsyncIterator[int]:
    """Serve all APIs, and `pages` beside them, inside the block; yield the port.

    Raises:
        AddressUnavailable: The port is in use.
    """
    async with BackgroundTasks() as tasks:
        apis = create_server(settings, backend, clock, tasks)
        app = apis if pages is None else with_pages(apis, pages)
        async with serve_app(app, "server", settings.host, settings.port, limit=_LIMIT, seconds=_SECONDS) as port:
            yield port


def own_limits(settings: ServerSection) -> dict[str, dict[str, int]]:
    """Return the limits of keys that have their own, by their user's name."""
    return {Client(name).user: key.limits for name, key in (settings.keys or {}).items()}


class Guard:
    """Refuses requests without a key, and those that a web page made a browser send; counts all.

    With keys, a request names one as `Authorization: Bearer KEY`; the key's name is then the
    client.  In any case the Host header is one of the server's names, and an Origin one of
    the allowed pages: otherwise any page could use a server without keys, by DNS rebinding too.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSection,
        backend: Backend,
        clock: Clock,
        paths: frozenset[str],
        origins: frozenset[str],
    ) -> None:
        self._app = app
        self._backend = backend
        self._clock = clock
        self._paths = paths
        self._hosts = _LOOPBACK | set(map(_name, settings.hosts))
        self._origins = origins
        self._keys = {name: key for name, key in (settings.keys or {}).items() if key.secret is not None}
        self._digests = {
            name: _configured(key.secret.get_secret_value())
            for name, key in self._keys.items()
            if key.secret is not None
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = Client(scope["client"][0] if scope.get("client") else "")
        write_error: WriteError = openai_error if scope["path"].startswith("/v1/") else api_error
        scope["state"] = {"client": client, "write_error": write_error}
        began, status = self._clock.now(), 499

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._admit(Headers(scope=scope), client)
            await self._app(scope, receive, observe)
        except ApiError as error:
            await write_error(error)(scope, receive, observe)
        finally:
            self._backend.release(client)
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._backend.metrics.api_requests.labels(path, str(status)).inc()
            self._backend.metrics.api_seconds.labels(path).observe(self._clock.now() - began)

    def _admit(self, headers: Headers, client: Client) -> None:
        """Name the client by its key; raise ApiError if it may not use the server."""
        origin = headers.get("Origin")
        if _name(headers.get("Host", "")) not in self._hosts:
            raise ApiError(403, "this host name is not the server's: see server.hosts")
        if origin is not None and origin not in self._origins:
            raise ApiError(403, "web pages of this origin may not use the server: see server.origins")
        if not self._digests:
            return
        # Always hashed: the `sha256:` of a setting is no key.
        sent = _digest(_bearer(headers.get("Authorization", "")))
        names = [name for name, digest in self._digests.items() if hmac.compare_digest(digest, sent)]
        if not names:
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        client.name, client.models = names[0], self._keys[names[0]].models


def _configured(secret: str) -> bytes:
    """Return the SHA-256 of a key as settings have it: as text, or as `sha256:` and the digest in hexadecimal."""
    kind, colon, digest = secret.partition(":")
    if kind == "sha256" and colon and re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        return bytes.fromhex(digest)
    return _digest(secret)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _bearer(header: str) -> str:
    """Return the key of an Authorization header, empty if it names another scheme.

    >>> _bearer("Bearer a key"), _bearer("bearer  k"), _bearer("k"), _bearer("Basic k")
    ('a key', 'k', '', '')
    """
    scheme, _, key = header.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _name(host: str) -> str:
    """Return a Host header without its port, in lower case.

    >>> _name("Localhost:8000"), _name("[::1]:8000"), _name("[::1]")
    ('localhost', '[::1]', '[::1]')
    """
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()
