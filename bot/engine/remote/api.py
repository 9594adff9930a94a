"""Calls to a model server: its models, the tokens of a prompt, and the stream of an answer."""

import asyncio
import json
import math
import ssl
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
import structlog

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest
from bot.engine.remote.endpoints import Endpoint, Server
from bot.engine.remote.errors import SYSTEM, ContextExceeded, ErrorBody, ServerFailed, failure, may_pass, read_refusal
from bot.engine.remote.stream import CompletionChunk, read_chunks
from bot.engine.thoughts import after_thoughts
from bot.errors import EngineMisconfigured, PicturesRefused

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Bytes of any answer but a stream; more is not read.
_LONGEST_BODY = 2**20
# Bytes of a prompt's tokens: 7 for each.
_LONGEST_COUNT = 2**24
# Seconds for the list of models, for counting tokens, and for the usage after an answer.
_SHORT_CALL = 5.0
# Seconds without a count after a failure that may pass: each would delay a long prompt.
_COUNT_AGAIN = 60.0

# What a server may not know: such a parameter is left out once it was refused.
_OPTIONAL = frozenset({"top_k", "seed", "top_p", "temperature", "stop", "stream_options"})
_ALTERNATIVES = {"max_tokens": "max_completion_tokens"}
# `owned_by` in a list of models; these have calls of their own.
_SERVERS: Mapping[str, Server] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama-server"}


class ServerApi:
    """The HTTP client of all servers of an engine."""

    def __init__(self, options: EngineSection) -> None:
        self._options = options
        key = options.key.get_secret_value() if options.key is not None else ""
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            proxy=options.proxy.get_secret_value() or None,
            verify=certificates(options),
            # A redirect could take the key and the conversation to another host.
            follow_redirects=False,
            timeout=httpx.Timeout(options.first_token_seconds, connect=options.connect_seconds),
            limits=httpx.Limits(max_connections=None),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def models(self, endpoint: Endpoint) -> Mapping[str, int | None]:
        """Return the models of a server, each with its context in tokens where it is told.

        Raises:
            ServerFailed: It gives no list.
            httpx.HTTPError: It cannot be connected to.
            TimeoutError: It does not answer.
        """
        listed = await self._call("GET", f"{endpoint.url.rstrip('/')}/models")
        try:
            models = {str(each["id"]): _context(each) for each in listed["data"]}
            owner = str(listed["data"][0].get("owned_by")) if listed["data"] else ""
        except (AttributeError, LookupError, TypeError) as error:
            why = "its list of models cannot be read" + ("" if endpoint.has_version else ": do engine.urls end in /v1?")
            raise ServerFailed(why) from error
        endpoint.server = _SERVERS.get(owner, "other") if self._options.server == "auto" else self._options.server
        if endpoint.server == "llama-server" and len(models) == 1:
            # The list has the context that the model was trained with; --ctx-size may be smaller.
            try:
                props = await self._call("GET", f"{endpoint.base}/props")
                models = dict.fromkeys(models, int(props["default_generation_settings"]["n_ctx"]))
            except (ServerFailed, httpx.HTTPError, LookupError, TimeoutError, TypeError, ValueError):
                log.info("a model server does not tell its context", server=endpoint.host)
        return models

    async def count(self, endpoint: Endpoint, model: str, messages: Sequence[ChatMessage], now: float) -> int | None:
        """Return the tokens of the prompt's texts as the server counts them; None if it does not.

        After a failure it is not asked again, or, if that may pass, for a minute.
        """
        chat = _chat([replace(message, pictures=()) for message in messages])
        try:
            match endpoint.server:
                case "vllm":
                    call = {"model": model, "messages": chat, "add_generation_prompt": True}
                    counted = (await self._call("POST", f"{endpoint.base}/tokenize", call, _LONGEST_COUNT))["count"]
                case "llama-server":
                    call = {"content": await self._prompt(endpoint, chat), "add_special": True, "parse_special": True}
                    tokens = await self._call("POST", f"{endpoint.base}/tokenize", call, _LONGEST_COUNT)
                    counted = len(tokens["tokens"])
                case _:
                    return None
            return int(counted)
        except (ServerFailed, httpx.HTTPError, LookupError, TimeoutError, TypeError, ValueError) as error:
            endpoint.counts_from = now + _COUNT_AGAIN if may_pass(error) else math.inf
            log.info("a model server does not count tokens", server=endpoint.host, error=type(error).__name__)
            return None

    async def can_continue(self, endpoint: Endpoint, request: ChatRequest, shown: str) -> bool:
        """Return whether the server goes on with a text that was shown, instead of a new answer."""
        match endpoint.server:
            case "vllm" | "sglang":
                return "continue_final_message" not in endpoint.refused
            case "llama-server":
                # Not with --no-prefill-assistant, nor with a template that changes the text.
                chat = [*_chat(request.messages), {"role": "assistant", "content": shown}]
                try:
                    return (await self._prompt(endpoint, chat)).endswith(shown)
                except (ServerFailed, httpx.HTTPError, LookupError, TimeoutError, TypeError):
                    return False
            case "other":
                return False

    async def _prompt(self, endpoint: Endpoint, chat: Sequence[Mapping[str, object]]) -> str:
        applied = await self._call("POST", f"{endpoint.base}/apply-template", {"messages": chat}, _LONGEST_COUNT)
        prompt: str = applied["prompt"]
        return prompt

    async def answer(
        self, endpoint: Endpoint, model: str, request: ChatRequest, shown: str, seconds: float
    ) -> AsyncGenerator[CompletionChunk, None]:
        """Yield the chunks of an answer, or of its rest after the text that was `shown`; the first within so many seconds.

        After a finish reason only the usage can be missing: a failure is then the end.

        Raises:
            ContextExceeded: The prompt is too long.
            PicturesRefused: The server may take the prompt without its pictures, or with fewer.
            ServerFailed: The server refused, or its stream cannot be read.
            httpx.HTTPError: The connection broke.
            TimeoutError: The next token did not come in time.
        """
        response = await self._open(endpoint, model, request, shown, seconds)
        is_complete = False
        try:
            async with aclosing(read_chunks(response)) as chunks:
                while True:
                    try:
                        # Bytes that are no chunk do not prolong it.
                        async with asyncio.timeout(seconds):
                            chunk = await anext(chunks, None)
                    except (ServerFailed, httpx.HTTPError, TimeoutError):
                        if not is_complete:
                            raise
                        return
                    if chunk is None:
                        return
                    if chunk.text or chunk.reasoning:
                        seconds = self._options.next_token_seconds
                    if chunk.reason is not None:
                        seconds, is_complete = min(_SHORT_CALL, self._options.next_token_seconds), True
                    yield chunk
        finally:
            await response.aclose()

    async def _open(
        self, endpoint: Endpoint, model: str, request: ChatRequest, shown: str, seconds: float
    ) -> httpx.Response:
        """Return the response whose body is the stream, without the parameters that the server refuses.

        A refused parameter is remembered once the request is accepted without it.
        """
        pictures = sum(len(message.pictures) for message in request.messages)
        left_out: dict[str, bool] = {}  # here, and whether from now on
        while True:
            body = _body(endpoint, model, request, shown, left_out)
            async with asyncio.timeout(seconds):
                call = self._client.build_request("POST", f"{endpoint.url.rstrip('/')}/chat/completions", json=body)
                response = await self._client.send(call, stream=True)
            if response.status_code == httpx.codes.OK:
                endpoint.refused |= {name for name, is_lasting in left_out.items() if is_lasting}
                return response
            refusal = await self._refusal(response, request)
            if refusal.is_too_long:
                if (shorter := _shorter(endpoint, request, refusal)) is None:
                    raise ContextExceeded(refusal.limit)
                request = shorter
                continue
            blamed = set() if shown else refusal.blames(_refusable(body)) - left_out.keys()
            if not blamed:
                if pictures and not shown and refusal.refuses_pictures():
                    raise _without_pictures(endpoint, refusal, pictures)
                raise failure(response, refusal, endpoint.models, accepts_key=endpoint.accepts_key)
            log.info("a model server does not accept parameters", server=endpoint.host, parameters=sorted(blamed))
            left_out |= dict.fromkeys(blamed, not refusal.is_of_bounds)

    async def _refusal(self, response: httpx.Response, request: ChatRequest) -> ErrorBody:
        try:
            async with asyncio.timeout(self._options.connect_seconds):
                body = await _beginning(response, _LONGEST_BODY)
        finally:
            await response.aclose()
        # In a thread: all words of the prompt are compared with those of the refusal.
        texts = [message.content for message in request.messages]
        return await asyncio.to_thread(read_refusal, response, body, texts)

    async def _call(self, method: str, url: str, body: object = None, longest: int = _LONGEST_BODY) -> Any:
        # Servers on uvicorn close the connection after an unexpected error, shortly after their answer: a list of
        # models that fails must not leave its connection to the question that follows.
        headers = {"Connection": "close"} if method == "GET" else {}
        async with (
            asyncio.timeout(_SHORT_CALL),
            self._client.stream(method, url, json=body, headers=headers) as response,
        ):
            data = await _beginning(response, longest)
            if response.status_code != httpx.codes.OK:
                raise failure(response, read_refusal(response, data))
        try:
            return json.loads(data)
        except (RecursionError, ValueError) as error:
            raise ServerFailed("its answer is no JSON") from error


def certificates(options: EngineSection) -> ssl.SSLContext | bool:
    """Return the authorities whose certificates are accepted.

    Raises:
        EngineMisconfigured: The file of certificates cannot be read.
    """
    if not options.ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=options.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise EngineMisconfigured(f"engine.ca_file = {options.ca_file!r} cannot be read: {error}") from error


def _shorter(endpoint: Endpoint, request: ChatRequest, refusal: ErrorBody) -> ChatRequest | None:
    """Return the request for an answer that fits beside its prompt; None if the prompt itself does not fit."""
    asked, room = request.params.max_tokens, refusal.room(endpoint.context_length)
    if asked is None or room is None or not 0 < room < asked:
        return None
    return replace(request, params=replace(request.params, max_tokens=room))


def _without_pictures(endpoint: Endpoint, refusal: ErrorBody, sent: int) -> PicturesRefused:
    """Remember what a server says of pictures; of another refusal they may be the cause, once."""
    most = refusal.takes_pictures()
    if most is not None:
        endpoint.most_pictures = min(most, sent - 1)
    log.info("a model server does not accept pictures", server=endpoint.host, most=most)
    return PicturesRefused(min(most or 0, sent - 1))


def _chat(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": _content(message)} for message in messages]


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    """Return the text, or parts where there are pictures: these come first, as files do."""
    if message.role == "assistant":
        return after_thoughts(message.content)
    if not message.pictures:
        return message.content
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": picture.url}} for picture in message.pictures
    ]
    return [*parts, {"type": "text", "text": message.content}] if message.content else parts


def _without_system(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the messages with the instructions of the system before the first question."""
    system = [message.content for message in messages if message.role == "system"]
    chat = [message for message in messages if message.role != "system"]
    if chat and chat[0].role == "user":
        return [replace(chat[0], content="\n\n".join([*system, chat[0].content])), *chat[1:]]
    return [ChatMessage("user", "\n\n".join(system)), *chat]


def _refusable(body: Mapping[str, Any]) -> set[str]:
    """Return what a server may refuse of a request, and take the rest."""
    names = {name for name in body if name in _OPTIONAL or name in {*_ALTERNATIVES, *_ALTERNATIVES.values()}}
    return names | ({SYSTEM} if any(message["role"] == "system" for message in body["messages"]) else set())


def _body(
    endpoint: Endpoint, model: str, request: ChatRequest, shown: str, left_out: Collection[str] = ()
) -> dict[str, Any]:
    params, refused = request.params, endpoint.refused.union(left_out)
    body: dict[str, Any] = {
        "model": model,
        "messages": _chat(request.messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "max_tokens": params.max_tokens,
        "stop": list(params.stop) or None,
        "seed": None if params.seed is None else params.seed % 2**31,  # many servers take no more bits
    }
    if SYSTEM in refused:
        body["messages"] = _chat(_without_system(request.messages))
    for name in refused:
        value = body.pop(name, None)
        if (other := _ALTERNATIVES.get(name)) and other not in refused:
            body[other] = value
    if shown:
        body["messages"].append({"role": "assistant", "content": shown})
        if endpoint.server != "llama-server":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
    return {name: value for name, value in body.items() if value is not None}


def _context(model: Mapping[str, Any]) -> int | None:
    """Return the context that a list of models tells: vLLM's and SGLang's, LiteLLM's, llama-server's fields."""
    meta = model.get("meta") or {}
    places = model.get("max_model_len"), model.get("context_length"), meta.get("n_ctx"), meta.get("n_ctx_train")
    return next((place for place in places if isinstance(place, int) and place > 0), None)


async def _beginning(response: httpx.Response, longest: int) -> bytes:
    parts, size = [], 0
    async for data in response.aiter_bytes():
        parts.append(data)
        size += len(data)
        if size > longest:
            break
    return b"".join(parts)[:longest]
