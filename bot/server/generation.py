"""Run requests on the engine, and free their slots as soon as the client is gone."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar, assert_never

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bot.chat.access import Access
from bot.chat.settings import ChatSettings
from bot.config.schema import DEFAULT_MODEL
from bot.domain import (
    ChatMessage,
    ChatRequest,
    Delta,
    EngineEvent,
    EngineInfo,
    Fallback,
    Finished,
    FinishReason,
    ModelStatus,
    Queued,
    QueueDepth,
    SamplingParams,
    Thought,
    Tokens,
    Usage,
)
from bot.engine.base import Engine, is_long
from bot.engine.embeddings import Embedder
from bot.errors import EngineError, PromptTooLong
from bot.observability.metrics import Metrics
from bot.server.errors import ApiError, of_engine
from bot.util.aio import race

T = TypeVar("T")

# Seconds between comments while a stream has nothing to say: proxies cut silent connections after 60 s.
_PING_SECONDS = 10.0
# Seconds until the first one, which brings the headers: a refusal comes at once, and has a status of its own.
_FIRST_PING_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    reason: FinishReason
    usage: Usage
    fallback: str | None = None  # the model that answered, if it was another


@dataclass(slots=True)
class Client:
    """The sender of a request: a key by its name, or an address.

    `models` are those that it may use, all if empty; `open` counts its answers in progress.
    """

    name: str
    models: tuple[str, ...] = ()
    open: int = 0

    @property
    def user(self) -> str:
        """Its name for the queue and the limits."""
        return f"api:{self.name}"


@dataclass(frozen=True, slots=True)
class Backend:
    """What all APIs share: the engine with the bot's settings, limits and /pause."""

    engine: Engine
    settings: ChatSettings
    access: Access
    max_waiting: int
    metrics: Metrics
    embedder: Embedder | None = None
    models: Callable[[], Sequence[ModelStatus]] = tuple  # if there are several
    aliases: tuple[str, ...] = ()  # other names of the default one
    _open: Counter[str] = field(default_factory=Counter)  # answers in progress by user
    # One thread: several that hold the interpreter lock in turn would delay the event loop.
    _tokenizing: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "tokenizer"))

    @property
    def context_length(self) -> int:
        return self.engine.info.context_length

    def info_of(self, model: str | None) -> EngineInfo | None:
        """Return what is known of a model, None for the default one; None if it is not loaded."""
        infos = [status.info for status in self.models() if status.name == model] or [self.engine.info]
        return infos[0]

    async def accept(
        self,
        client: Client,
        messages: tuple[ChatMessage, ...],
        params: SamplingParams,
        name: str | None = None,
        max_length: int | None = None,
    ) -> ChatRequest:
        """Return the request for the engine, or its model `name`, counted against the client's limits until `release`.

        `max_length` bounds prompt and answer together.

        Raises:
            ApiError: Paused, too much, or the prompt is beyond the context.
        """
        self.admit(client, name or self.engine.info.model)
        counts_in_thread = is_long(messages)
        if counts_in_thread:  # its tokens are counted for seconds, even if it is refused then
            self.count(client)
        if name is None:
            tokens = await self._tokens(messages, in_thread=counts_in_thread)
            if max_length is not None:
                params = replace(params, max_tokens=self._room(tokens, max_length))
            elif tokens >= self.context_length:
                raise of_engine(PromptTooLong(tokens, self.context_length))
        if not counts_in_thread:
            self.count(client)
        user, models = client.user, self._models_of(client)
        return ChatRequest(messages, params, channel=user, user=user, model=name, is_whole=True, models=models)

    def id_of(self, model: str) -> str:
        """Return the name under which the APIs list a model of the engine."""
        return self.engine.info.model if model == DEFAULT_MODEL else model

    def count(self, client: Client) -> None:
        """Count a request of the client as open until `release`; to [limits] a client is a user.

        Raises:
            ApiError: It is one too many.
        """
        refusal = self.access.too_much(client.user, None, str, standing=QueueDepth(author=self._open[client.user]))
        if refusal is not None:
            headers = {"Retry-After": str(math.ceil(refusal.seconds))}
            raise ApiError(429, refusal.text, code="rate_limit_exceeded", headers=headers)
        self._open[client.user] += 1
        client.open += 1

    def admit(self, client: Client, model: str) -> None:
        """Check that the client may use the model now.

        Raises:
            ApiError: Its key names other models, or an admin has paused the bot.
        """
        if client.models and model not in self._models_of(client):
            raise ApiError(403, f"this key may not use the model {model!r}", code="model_not_found", param="model")
        if self.access.is_paused:
            raise ApiError(503, "paused by an admin, please try again later", headers={"Retry-After": "60"})

    def _models_of(self, client: Client) -> tuple[str, ...]:
        """Return the models that the client may use, all if empty; one of the aliases means the default one."""
        has_alias = not set(self.aliases).isdisjoint(client.models)
        return (*client.models, self.engine.info.model) if has_alias else client.models

    def release(self, client: Client) -> None:
        """Count the requests of a client as answered."""
        self._open[client.user] -= client.open
        client.open = 0
        if not self._open[client.user]:
            del self._open[client.user]

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        """Stream the answer, as an engine does, and count its tokens against the client's limit.

        It is cut off `limits.answer_seconds` after its first text.

        Raises:
            ApiError: The engine refused the request, or failed.
        """
        usage, tokens = None, 0
        try:
            async with aclosing(self._until_cut_off(request)) as events:
                async for event in events:
                    tokens += isinstance(event, Delta | Thought)
                    usage = event.usage if isinstance(event, Finished) else None
                    yield event
        except EngineError as error:
            raise of_engine(error) from error
        finally:
            if usage is None and tokens:  # the client has gone
                usage = Usage(self.engine.count_tokens(request.messages), tokens)
            if usage is not None:
                self.access.spend_tokens(request.user, usage)

    async def _until_cut_off(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        now, end, tokens = asyncio.get_running_loop().time, None, 0
        async with aclosing(self.engine.generate(request)) as events:
            while True:
                try:
                    # One for each event: a stream of several answers takes each in a task of its own.
                    async with asyncio.timeout_at(end):
                        event = await anext(events, None)
                except TimeoutError:
                    yield Finished(FinishReason.LENGTH, Usage(self.engine.count_tokens(request.messages), tokens))
                    return
                if event is None:
                    return
                if isinstance(event, Delta | Thought):
                    end = now() + self.settings.answer_seconds if end is None else end
                    tokens += 1
                yield event

    def _room(self, prompt: int, max_length: int) -> int:
        """Return the tokens left for the answer where `max_length` counts prompt and answer together.

        Raises:
            ApiError: The prompt leaves none.
        """
        limit = min(max_length, self.context_length)
        if prompt >= limit:
            raise ApiError(
                400,
                f"the prompt takes {prompt} tokens, and max_length and the model's context leave {limit} for prompt and answer",
                code="context_length_exceeded",
                param="max_length",
            )
        return limit - prompt

    async def tokenize(self, text: str) -> Tokens | None:
        """Split a text, without stopping the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, self.engine.tokenize, text)

    async def _tokens(self, messages: tuple[ChatMessage, ...], *, in_thread: bool) -> int:
        if not in_thread:
            return self.engine.count_tokens(messages)
        count = self.engine.count_tokens
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, count, messages)


async def complete(backend: Backend, request: ChatRequest) -> Completion:
    """Return the whole answer.

    Raises:
        ApiError: The engine refused the request, or failed.
    """
    texts: list[str] = []
    fallback: str | None = None
    async with aclosing(backend.generate(request)) as events:
        async for event in events:
            match event:
                case Delta(text):
                    texts.append(text)
                case Finished(reason, usage):
                    return Completion("".join(texts), reason, usage, fallback)
                case Fallback(model):
                    fallback = backend.id_of(model)
                case Queued() | Thought():
                    pass
                case _:
                    assert_never(event)
    raise AssertionError("the events of an engine end with Finished")


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T | None:
    """Await `work`; cancel it and return None if the client goes away first."""
    task = asyncio.ensure_future(work)
    try:
        await race(asyncio.wait([task]), _disconnected(request.receive))
        return task.result() if task.done() else None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class EventStream(Response):
    """Server-sent events that end at once when the client goes away.

    An ApiError before the first event is raised, and becomes the response; later it is the last event, as
    `error_event` writes it.  The headers are sent with the first event, and after `_FIRST_PING_SECONDS` at the latest.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], error_event: Callable[[ApiError], bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._events = events
        self._error_event = error_event
        self._sending = asyncio.Lock()
        self._has_begun = False
        self._is_refused = False  # with a response of its own
        self._is_silent = True  # since the last look

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        pinging = asyncio.ensure_future(self._ping(send))
        try:
            await race(asyncio.wait([sending]), _disconnected(receive))
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            pinging.cancel()
            await asyncio.gather(sending, pinging, return_exceptions=True)
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        last = b""
        try:
            async for data in self._events:
                self._is_silent = False
                await self._write(send, data)
        except ApiError as error:
            if not self._has_begun:
                self._is_refused = True
                raise
            last = self._error_event(error)
        await self._write(send, last, more=False)

    async def _ping(self, send: Send) -> None:
        """Send a comment whenever there was no event for a while."""
        await asyncio.sleep(_FIRST_PING_SECONDS)
        while True:
            if self._is_silent and not self._is_refused:
                await self._write(send, b": waiting\n\n")
            self._is_silent = True
            await asyncio.sleep(_PING_SECONDS)

    async def _write(self, send: Send, data: bytes, *, more: bool = True) -> None:
        async with self._sending:
            if not self._has_begun:
                self._has_begun = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": data, "more_body": more})


async def _disconnected(receive: Callable[[], Awaitable[object]]) -> None:
    while True:
        message = await receive()
        if isinstance(message, dict) and message["type"] == "http.disconnect":
            return
