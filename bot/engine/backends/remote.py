"""Remote backend: any server with an OpenAI-compatible API (Ollama, vLLM, llama-server, LM Studio, …)."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import httpx
import structlog

from bot.config.schema import EngineSection
from bot.domain import (
    ChatMessage,
    ChatRequest,
    Delta,
    EngineEvent,
    EngineInfo,
    EngineLoad,
    Finished,
    FinishReason,
    Queued,
    Usage,
)
from bot.engine.base import Progress, silent
from bot.engine.remote.endpoints import Endpoint, Endpoints
from bot.engine.remote.errors import ServerFailed, failure, read_refusal
from bot.engine.remote.stream import CompletionChunk, Thoughts, read_chunks
from bot.engine.serving.queue import FairQueue
from bot.errors import EngineFailed, EngineUnavailable, PromptTooLong
from bot.util.clock import Clock, MonotonicClock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Tokens, where neither the server nor engine.context_length tells: Ollama's default.
_DEFAULT_CONTEXT = 4096
# Bytes of an error or a list of models; more is not read.
_LONGEST_BODY = 2**20
# Seconds for the list of models at the start.
_LISTING_SECONDS = 5.0
# Seconds until a request that no server accepts is given up.
_GIVE_UP_SECONDS = 120.0

# What a server may not know: such a parameter is left out once it was refused.
_OPTIONAL = frozenset({"top_k", "seed", "top_p", "temperature", "stop", "stream_options"})
_ALTERNATIVES = {"max_tokens": "max_completion_tokens"}


def preflight(options: EngineSection) -> None:
    """Check the settings, without a connection: servers may start later than the bot.

    Raises:
        EngineUnavailable: `engine.urls` is empty, or the file of certificates cannot be read.
    """
    _require_urls(options)
    _certificates(options)


def open_engine(options: EngineSection, progress: Progress = silent) -> "RemoteEngine":
    """Create the engine; entering it asks the servers for their models."""
    _require_urls(options)
    return RemoteEngine(options, MonotonicClock())


class RemoteEngine:
    """Answers from the servers at `options.urls`, each with `options.max_batch_size` slots.

    Before its first text a request may move to another server, since nothing was shown.
    After it, a broken stream ends the answer: another one would not continue the same text.
    """

    def __init__(self, options: EngineSection, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._endpoints = Endpoints(options.urls, options.max_batch_size, clock)
        self._queue = FairQueue(self._endpoints.slots, options.max_waiting)
        self._model = "" if options.model == "demo" else options.model
        self._context_length = options.context_length or _DEFAULT_CONTEXT
        key = options.key.get_secret_value() if options.key is not None else ""
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            proxy=options.proxy.get_secret_value() or None,
            verify=_certificates(options),
            # A redirect could take the key and the conversation to another host.
            follow_redirects=False,
            timeout=httpx.Timeout(options.first_token_seconds, connect=options.connect_seconds),
            limits=httpx.Limits(max_connections=None),
        )

    @property
    def info(self) -> EngineInfo:
        hosts = ", ".join(each.host for each in self._endpoints.all)
        return EngineInfo(self._model or "unknown", "remote", "none", "none", hosts, self._context_length)

    @property
    def load(self) -> EngineLoad:
        return self._queue.load

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """Estimate the tokens: servers use many tokenizers, and few of them count."""
        return sum(estimate_tokens(message.content) for message in messages)

    def tokenize(self, text: str) -> None:
        """Return None: the servers have the tokenizer."""

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        prompt_tokens = self.count_tokens(request.messages)
        if prompt_tokens >= self._context_length:
            raise PromptTooLong(prompt_tokens, self._context_length)
        ticket = self._queue.enqueue(request, prompt_tokens)
        try:
            while (queued := await ticket.queued()) is not None:
                yield queued
            async with aclosing(self._answer(request, prompt_tokens)) as events:
                async for event in events:
                    yield event
        finally:
            self._queue.release(ticket)

    async def _answer(self, request: ChatRequest, prompt_tokens: int) -> AsyncGenerator[EngineEvent, None]:
        """Try the servers until one answers, or none has for `_GIVE_UP_SECONDS`."""
        give_up = self._clock.now() + _GIVE_UP_SECONDS
        while True:
            endpoint = self._endpoints.choose(request.channel)
            if endpoint is None:
                if self._clock.now() >= give_up:
                    raise EngineFailed("no model server answers")
                wait = self._endpoints.wait()
                yield Queued(1, wait)
                await self._clock.sleep(max(wait, 0.1))
                continue
            has_begun = False
            try:
                with endpoint.request():
                    async with aclosing(self._stream(endpoint, request, prompt_tokens)) as events:
                        async for event in events:
                            has_begun = True
                            yield event
            except (ServerFailed, httpx.HTTPError, TimeoutError) as error:
                self._report(endpoint, error)
                if has_begun:
                    raise EngineFailed("the model server broke its answer off") from error
                if isinstance(error, ServerFailed) and error.is_lasting and len(self._endpoints.all) == 1:
                    raise EngineFailed(f"the model server cannot be used: {error.why}") from error
            else:
                endpoint.succeed()
                return
            finally:
                self._queue.resize(self._endpoints.slots)

    async def _stream(
        self, endpoint: Endpoint, request: ChatRequest, prompt_tokens: int
    ) -> AsyncGenerator[EngineEvent, None]:
        """Yield one server's answer; it is complete if the last event is a Finished."""
        thoughts = Thoughts()
        usage: Usage | None = None
        reason: FinishReason | None = None
        deltas = 0
        response = await self._open(endpoint, request)
        try:
            async with aclosing(read_chunks(response)) as chunks:
                while (chunk := await self._next(chunks, bool(deltas))) is not None:
                    usage, reason = chunk.usage or usage, chunk.reason or reason
                    if text := thoughts.feed(chunk.text):
                        deltas += 1
                        yield Delta(text)
        finally:
            await response.aclose()
        if reason is None or reason is FinishReason.ERROR:
            raise ServerFailed("its stream ended before the answer")
        if text := thoughts.finish():
            yield Delta(text)
        yield Finished(reason, usage or Usage(prompt_tokens, deltas + 1))

    async def _next(self, chunks: AsyncGenerator[CompletionChunk, None], has_begun: bool) -> CompletionChunk | None:
        """Return the next chunk within its time; bytes that are no chunk do not prolong it."""
        options = self._options
        async with asyncio.timeout(options.next_token_seconds if has_begun else options.first_token_seconds):
            return await anext(chunks, None)

    async def _open(self, endpoint: Endpoint, request: ChatRequest) -> httpx.Response:
        """Return the response whose body is the stream, without the parameters that the server refuses."""
        while True:
            body = self._body(endpoint, request)
            async with asyncio.timeout(self._options.first_token_seconds):
                call = self._client.build_request("POST", f"{endpoint.url.rstrip('/')}/chat/completions", json=body)
                response = await self._client.send(call, stream=True)
            if response.status_code == httpx.codes.OK:
                return response
            try:
                async with asyncio.timeout(self._options.connect_seconds):
                    refusal = read_refusal(response, await _beginning(response))
            finally:
                await response.aclose()
            if refusal.is_too_long:
                self._context_length = min(refusal.limit or self._context_length, self._context_length)
                raise PromptTooLong(self.count_tokens(request.messages), self._context_length)
            blamed = refusal.blames([name for name in body if name in _OPTIONAL or name in _ALTERNATIVES])
            if not blamed - endpoint.refused:
                raise failure(response)
            log.info("a model server does not accept parameters", server=endpoint.host, parameters=sorted(blamed))
            endpoint.refused |= blamed

    def _body(self, endpoint: Endpoint, request: ChatRequest) -> dict[str, Any]:
        params = request.params
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "max_tokens": params.max_tokens,
            "stop": list(params.stop) or None,
            "seed": None if params.seed is None else params.seed % 2**31,  # many servers take no more bits
        }
        for name in endpoint.refused:
            value = body.pop(name, None)
            if name in _ALTERNATIVES:
                body[_ALTERNATIVES[name]] = value
        return {name: value for name, value in body.items() if value is not None}

    def _report(self, endpoint: Endpoint, error: Exception) -> None:
        seconds = error.seconds if isinstance(error, ServerFailed) else 0.0
        endpoint.fail(self._clock.now(), seconds)
        why = error.why if isinstance(error, ServerFailed) else type(error).__name__
        log.warning("a model server failed", server=endpoint.host, why=why, failures=endpoint.failures)

    async def __aenter__(self) -> Self:
        """Ask the servers for their models; they may also start later.

        Raises:
            EngineUnavailable: A server has several models, and engine.model names none.
        """
        for endpoint in self._endpoints.all:
            try:
                async with asyncio.timeout(_LISTING_SECONDS):
                    models = await self._models(endpoint)
            except (ServerFailed, httpx.HTTPError, TimeoutError) as error:
                self._report(endpoint, error)
                continue
            if not self._model and len(models) != 1:
                await self._client.aclose()
                known = ", ".join(sorted(models)[:20]) or "none"
                raise EngineUnavailable(f"set engine.model to one of the models at {endpoint.host}: {known}")
            self._model = self._model or next(iter(models))
            if not self._options.context_length and (length := models.get(self._model)):
                self._context_length = length
        return self

    async def _models(self, endpoint: Endpoint) -> Mapping[str, int | None]:
        """Return the models of a server, each with its context in tokens where it is told."""
        async with self._client.stream("GET", f"{endpoint.url.rstrip('/')}/models") as response:
            if response.status_code != httpx.codes.OK:
                raise failure(response)
            body = await _beginning(response)
        try:
            return {each["id"]: _context(each) for each in httpx.Response(200, content=body).json()["data"]}
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise ServerFailed("its list of models cannot be read") from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()


def estimate_tokens(text: str) -> int:
    """Estimate, rather too high, the tokens of a message: one per CJK character, else one per three.

    Each message has a few more for its role.
    """
    wide = sum(character > "\u2e7f" for character in text)
    return 4 + wide + (len(text) - wide + 2) // 3


def _context(model: Mapping[str, Any]) -> int | None:
    """Return the context that a list of models tells: vLLM's and SGLang's, LiteLLM's, llama-server's field."""
    places = model.get("max_model_len"), model.get("context_length"), (model.get("meta") or {}).get("n_ctx_train")
    return next((place for place in places if isinstance(place, int) and place > 0), None)


async def _beginning(response: httpx.Response) -> bytes:
    body = b""
    async for data in response.aiter_bytes():
        body += data
        if len(body) > _LONGEST_BODY:
            break
    return body[:_LONGEST_BODY]


def _require_urls(options: EngineSection) -> None:
    if not options.urls:
        raise EngineUnavailable(
            'engine.backend = "remote" needs the address of a server: set engine.urls, '
            'as in urls = ["http://localhost:11434/v1"]'
        )


def _certificates(options: EngineSection) -> ssl.SSLContext | bool:
    if not options.ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=options.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise EngineUnavailable(f"engine.ca_file = {options.ca_file!r} cannot be read: {error}") from error
