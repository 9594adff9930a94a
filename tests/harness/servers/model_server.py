"""A model server with an OpenAI-compatible API on loopback that can fail in any way."""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from aiohttp.test_utils import TestServer

from bot.engine.backends.remote import estimate_tokens

MODEL = "scripted"
STOPPED = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

Behaviour = Callable[["ModelServer", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class ModelServer:
    """An async context manager; `url` is its base address.

    Each request takes the next of `script`, or is answered with `text`.  While `go_on` is
    cleared, streams stop before their first event.
    """

    def __init__(self, text: Sequence[str] = ("a ", "scripted ", "answer"), context_length: int | None = None) -> None:
        self.text = list(text)
        self.script: deque[Behaviour] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models = [{"id": MODEL, "object": "model", "max_model_len": context_length}]
        self.running = 0
        self.closed_early = 0  # streams that the client has left
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.changed = asyncio.Condition()
        app = web.Application()
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._complete)
        self._server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self._server.make_url("/v1"))

    def then(self, *behaviours: Behaviour) -> None:
        """Let the next requests meet these behaviours."""
        self.script.extend(behaviours)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def stream(self, request: web.Request, *, content_type: str = "text/event-stream") -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        return response

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.models})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        behaviour = self.script.popleft() if self.script else say()
        self.running += 1
        await self._notify()
        try:
            return await behaviour(self, request, body)
        except (ConnectionError, asyncio.CancelledError):
            self.closed_early += 1
            raise
        finally:
            self.running -= 1
            with suppress(asyncio.CancelledError):
                await self._notify()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def __aenter__(self) -> Self:
        await self._server.start_server()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_on.set()
        await self._server.close()


def event(value: object) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def delta(text: str, field: str = "content") -> bytes:
    return event({"choices": [{"index": 0, "delta": {field: text}, "finish_reason": None}]})


def say(*pieces: str, reason: str = "stop") -> Behaviour:
    """Answer with these pieces of text, or the server's own."""

    async def behave(server: ModelServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await server.stream(request)
        await server.go_on.wait()
        texts = list(pieces or server.text)
        for text in texts:
            await response.write(delta(text))
        await response.write(event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
        prompt = sum(estimate_tokens(message["content"]) for message in body["messages"])
        usage = {"prompt_tokens": prompt, "completion_tokens": len(texts) + 1}
        if body.get("stream_options"):
            await response.write(event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response

    return behave


def send(*data: bytes, abort: bool = False) -> Behaviour:
    """Send these bytes as the body of the stream, then end it, or reset the connection."""

    async def behave(server: ModelServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await server.stream(request)
        for each in data:
            await response.write(each)
        if abort and request.transport is not None:
            request.transport.abort()
        return response

    return behave


def refuse(status: int, body: object = None, **headers: str) -> Behaviour:
    """Refuse the request; underscores of a header's name are hyphens."""

    async def behave(server: ModelServer, request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(
            status=status, text=text, headers={name.replace("_", "-"): each for name, each in headers.items()}
        )

    return behave


def hang(*data: bytes) -> Behaviour:
    """Send these bytes and then nothing, until the client leaves."""

    async def behave(server: ModelServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await server.stream(request)
        for each in data:
            await response.write(each)
        await asyncio.Event().wait()
        return response

    return behave
