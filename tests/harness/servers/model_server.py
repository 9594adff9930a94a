"""A model server with an OpenAI-compatible API on loopback that can fail in any way."""

import asyncio
import binascii
import io
import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from bot.engine.remote.tokens import estimate_tokens

MODEL = "scripted"
LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
STOPPED = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

Behaviour = Callable[["ModelServer", web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class ModelServer:
    """An async context manager; `url` is its base address.

    Each request takes the next of `script`, or is answered with `text`, which may depend on the
    question.  While `go_on` is cleared, streams stop before their first event.

    `owner` "vllm" or "llamacpp" has that server's calls for tokens, each word of a prompt being `tokens_per_word`,
    and continues an answer that it is given.  Contents with pictures must be as OpenAI's reference says.
    """

    def __init__(
        self,
        text: Sequence[str] | Callable[[str], Sequence[str]] = ("a ", "scripted ", "answer"),
        context_length: int | None = None,
        owner: str = "tests",
        port: int | None = None,
    ) -> None:
        self.text = text if callable(text) else list(text)
        self.owner = owner
        self.tokens_per_word = 1
        self.prefills = True
        self.counted = 0
        self.count_refusal: int | None = None  # status
        self.script: deque[Behaviour] = deque()
        self.default: Behaviour = say()
        self.bodies: list[dict[str, Any]] = []
        self.pictures: list[list[bytes]] = []  # of each body
        self.headers: list[dict[str, str]] = []
        self.models: list[dict[str, Any]] = [
            {"id": MODEL, "object": "model", "owned_by": owner, "max_model_len": context_length}
        ]
        self.is_loading = False
        self.has_list = True
        self.list_refusal: tuple[int, object] | None = None
        self.is_frozen = False  # it accepts connections, and answers nothing
        self.closes_after_list = False  # when the connection is used again, as uvicorn after an unexpected error
        self._closing: set[asyncio.Transport | None] = set()
        self.running = 0
        self.closed_early = 0  # streams that the client has left
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.changed = asyncio.Condition()
        app = web.Application()
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/apply-template", self._apply_template)
        app.router.add_get("/props", self._props)
        self._server = TestServer(app, port=port)

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
        if self.is_loading:
            return web.json_response(LOADING, status=503)
        if self.closes_after_list:
            self._closing.add(request.transport)
            return web.json_response({"detail": "Internal Server Error"}, status=500)
        if self.is_frozen:
            await asyncio.Event().wait()
        if self.list_refusal is not None:
            return web.json_response(self.list_refusal[1], status=self.list_refusal[0])
        if not self.has_list:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response({"object": "list", "data": self.models})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.counted += 1
        if self.count_refusal is not None:
            return web.json_response({"detail": "not now"}, status=self.count_refusal)
        if self.owner == "vllm" and "messages" in body:
            words = " ".join(text_of(message["content"]) for message in body["messages"]).split()
        elif self.owner == "llamacpp" and "content" in body:
            words = body["content"].split()
        else:
            return web.json_response({"detail": "Not Found"}, status=404)
        tokens = list(range(len(words) * self.tokens_per_word))
        return web.json_response({"tokens": tokens} | ({"count": len(tokens)} if self.owner == "vllm" else {}))

    async def _apply_template(self, request: web.Request) -> web.Response:
        if self.owner != "llamacpp":
            return web.json_response({"detail": "Not Found"}, status=404)
        messages = (await request.json())["messages"]
        prompt = "".join(f"<{message['role']}>{message['content']}</>" for message in messages)
        if self.prefills and messages[-1]["role"] == "assistant":
            prompt = prompt.removesuffix("</>")
        return web.json_response({"prompt": prompt})

    async def _props(self, request: web.Request) -> web.Response:
        if self.owner != "llamacpp":
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.json_response({"default_generation_settings": {"n_ctx": 777}})

    def answer_to(self, body: dict[str, Any]) -> list[str]:
        """Return the pieces of the text for these messages, of its rest if they end with its beginning."""
        *messages, last = body["messages"]
        is_rest = last["role"] == "assistant"
        question = text_of((messages[-1] if is_rest else last)["content"])
        pieces = list(self.text(question) if callable(self.text) else self.text)
        if not is_rest:
            return pieces
        assert self.owner == "llamacpp" or body.get("continue_final_message"), "no server continues unasked"
        whole = "".join(pieces)
        assert whole.startswith(last["content"]), "the beginning is not the answer's"
        return [whole[len(last["content"]) :]]

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None and request.transport in self._closing:
            request.transport.abort()
            raise ConnectionResetError
        body = await request.json()
        self.bodies.append(body)
        self.pictures.append([picture for message in body["messages"] for picture in pictures_of(message)])
        self.headers.append(dict(request.headers))
        if self.is_loading:
            return web.json_response(LOADING, status=503)
        if self.is_frozen:
            await asyncio.Event().wait()
        behaviour = self.script.popleft() if self.script else self.default
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

    async def kill(self) -> None:
        """Stop listening and break all streams, as a killed process does."""
        runner = self._server.runner
        assert runner is not None
        assert runner.server is not None
        for site in list(runner.sites):
            await site.stop()
        for connection in list(runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()

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


def text_of(content: str | list[dict[str, Any]]) -> str:
    """Return the text of a message's content, which may have parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    assert parts, "a content without parts"
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def pictures_of(message: dict[str, Any]) -> list[bytes]:
    """Return the files of the pictures in a message, each of the type that its data URL says."""
    pictures = []
    for part in [] if isinstance(message["content"], str) else message["content"]:
        if part["type"] == "text":
            assert set(part) == {"type", "text"}
            assert part["text"], "an empty text"
            continue
        assert set(part) == {"type", "image_url"}, part
        assert set(part["image_url"]) <= {"url", "detail"}
        assert message["role"] == "user", "only people show pictures"
        found = re.fullmatch(r"data:image/(png|jpeg|webp|gif);base64,([A-Za-z0-9+/]+={0,2})", part["image_url"]["url"])
        assert found, "no data URL of a picture"
        pictures.append(binascii.a2b_base64(found[2], strict_mode=True))
        with Image.open(io.BytesIO(pictures[-1]), formats=[found[1].upper()]) as picture:
            picture.load()
    return pictures


def event(value: object) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def delta(text: str, field: str = "content") -> bytes:
    return event({"choices": [{"index": 0, "delta": {field: text}, "finish_reason": None}]})


def say(*pieces: str, reason: str = "stop") -> Behaviour:
    """Answer with these pieces of text, or the server's own."""

    async def behave(server: ModelServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await server.stream(request)
        await server.go_on.wait()
        texts = list(pieces or server.answer_to(body))
        for text in texts:
            await response.write(delta(text))
        await response.write(event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}))
        prompt = sum(estimate_tokens(text_of(message["content"])) for message in body["messages"])
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
