"""OpenAI's chat completions, completions and list of models.

Fields and errors follow https://platform.openai.com/docs/api-reference/chat; `top_k` is vLLM's extension.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bot.domain import (
    ChatMessage,
    ChatRequest,
    Delta,
    EngineEvent,
    Fallback,
    Finished,
    FinishReason,
    ModelStatus,
    Role,
    SamplingParams,
    Usage,
)
from bot.server.content import read_content
from bot.server.errors import ApiError, bad_request
from bot.server.generation import Backend, Completion, EventStream, complete, unless_disconnected
from bot.server.requests import MOST_MESSAGES, boolean, integer, number, text

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_LONGEST_STOP = 4
_MOST_CHOICES = 8
# Tokens of a completion that names no limit, as in OpenAI's reference.
_SHORT_ANSWER = 16


@dataclass(frozen=True, slots=True)
class _Form:
    """What differs between the two endpoints: names of objects, and how a choice holds its text."""

    prefix: str
    object: str
    chunk_object: str
    whole: Callable[[str], dict[str, Any]]
    piece: Callable[[str], dict[str, Any]]
    first: dict[str, Any] | None  # the part of a choice before the first text
    last: dict[str, Any]


_CHAT = _Form(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    whole=lambda said: {"message": {"role": "assistant", "content": said}},
    piece=lambda said: {"delta": {"content": said}},
    first={"delta": {"role": "assistant", "content": ""}},
    last={"delta": {}},
)
_TEXT = _Form(
    "cmpl",
    "text_completion",
    "text_completion",
    whole=lambda said: {"text": said},
    piece=lambda said: {"text": said},
    first=None,
    last={"text": ""},
)


async def chat_completions(request: Request, body: Mapping[str, Any], backend: Backend) -> Response | None:
    """`POST /v1/chat/completions`, streamed or whole."""
    model, name = served_model(backend, body.get("model"))
    info = backend.info_of(name)
    messages = _messages(
        body, reads_names=info is None or info.reads_names, most_pictures=info.most_pictures if info else 0
    )
    return await _completions(request, body, backend, _CHAT, model, name, messages, _params(body, backend))


async def completions(request: Request, body: Mapping[str, Any], backend: Backend) -> Response | None:
    """`POST /v1/completions`, streamed or whole: the prompt is a single question, without a history."""
    model, name = served_model(backend, body.get("model"))
    for field in ("suffix", "echo"):
        if body.get(field):
            raise bad_request(f"{field} is not supported", field)
    if (integer(body, "best_of", 1, lowest=1) or 1) > 1:
        raise bad_request("best_of is 1 only", "best_of")
    params = _params(body, backend)
    if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
        params = replace(params, max_tokens=_SHORT_ANSWER)
    messages = (ChatMessage("user", text(body, "prompt")),)
    return await _completions(request, body, backend, _TEXT, model, name, messages, params)


async def _completions(
    request: Request,
    body: Mapping[str, Any],
    backend: Backend,
    form: _Form,
    model: str,
    name: str | None,
    messages: tuple[ChatMessage, ...],
    params: SamplingParams,
) -> Response | None:
    _refuse_unsupported(body)
    choices = integer(body, "n", 1, lowest=1) or 1
    is_stream, options = boolean(body, "stream"), body.get("stream_options")
    if choices > _MOST_CHOICES:
        raise bad_request(f"n is at most {_MOST_CHOICES}", "n")
    if options is not None and not (is_stream and isinstance(options, dict)):
        raise bad_request("stream_options is an object, and needs stream = true", "stream_options")
    includes_usage = boolean(options or {}, "include_usage")
    call = await backend.accept(request.state.client, messages, params, name)
    calls = [_numbered(call, number) for number in range(choices)]
    head: dict[str, Any] = {
        "id": f"{form.prefix}-{uuid4().hex}",
        "object": form.chunk_object if is_stream else form.object,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": None,
    }
    if is_stream:
        chunks = _chunks(backend, calls, form, head, includes_usage)
        return EventStream(chunks, lambda error: _event(_error_object(error)))
    found = await unless_disconnected(request, _all(backend, calls))
    if found is None:
        return None
    whole = [_choice(index, form.whole(each.text), each.reason) for index, each in enumerate(found)]
    head["model"] = next((each.fallback for each in found if each.fallback), model)
    return JSONResponse({**head, "choices": whole, "usage": _usage([each.usage for each in found])})


def served_model(backend: Backend, asked: object) -> tuple[str, str | None]:
    """Return the model's id and its name for the engine, None for the default one.

    Raises:
        ApiError: There is no such model.
    """
    default = backend.engine.info.model
    names = [status.name for status in backend.models()[1:]]
    if asked in names:
        return str(asked), str(asked)
    if asked is None or asked == default:
        return default, None
    if asked in backend.aliases:
        return str(asked), None
    known = ", ".join(map(repr, [default, *names, *backend.aliases]))
    raise ApiError(404, f"the model {asked!r} is not served here; use {known}", code="model_not_found", param="model")


def model_objects(backend: Backend) -> dict[str, dict[str, Any]]:
    """Describe the models by id, the default one first; one that is not loaded has no context."""
    info = backend.engine.info
    aliases = [ModelStatus(name, info) for name in backend.aliases]
    statuses = [ModelStatus(info.model, info), *backend.models()[1:], *aliases]
    return {status.name: _model_object(status) for status in statuses}


def _model_object(status: ModelStatus) -> dict[str, Any]:
    info = status.info
    about = (
        {"owned_by": "unknown"} if info is None else {"owned_by": info.backend, "max_model_len": info.context_length}
    )
    return {"id": status.name, "object": "model", "created": 0, **about}


def openai_error(error: ApiError) -> Response:
    """Write a refusal in OpenAI's form."""
    return JSONResponse(_error_object(error), error.status, error.headers)


def _error_object(error: ApiError) -> dict[str, Any]:
    kind = "requests" if error.status == 429 else "server_error" if error.status >= 500 else "invalid_request_error"
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


async def _all(backend: Backend, calls: list[ChatRequest]) -> list[Completion]:
    """Return all answers; one that fails ends the others.

    Raises:
        ApiError: The engine refused one, or failed.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(complete(backend, call)) for call in calls]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _params(body: Mapping[str, Any], backend: Backend) -> SamplingParams:
    own = backend.settings.params
    longest = integer(body, "max_tokens", None, lowest=1)
    longest = integer(body, "max_completion_tokens", longest, lowest=1)
    limits = [each for each in (longest, own.max_tokens) if each]
    top_p = number(body, "top_p", own.top_p, 0, 1)
    top_k = integer(body, "top_k", own.top_k, lowest=-1) or 0
    return SamplingParams(
        # A sum of 0 leaves the likeliest token only.
        temperature=number(body, "temperature", own.temperature, 0, 2) if top_p else 0.0,
        top_p=top_p or 1.0,
        top_k=max(top_k, 0),  # vLLM's -1 is all tokens, too
        max_tokens=min(limits, default=None),
        stop=_stop(body.get("stop")),
        seed=integer(body, "seed", None),
    )


def _numbered(call: ChatRequest, number: int) -> ChatRequest:
    """Return the call of one of several answers: the seed is its own, and it waits for no other of them."""
    seed = call.params.seed
    params = call.params if seed is None else replace(call.params, seed=seed + number)
    return replace(call, params=params, channel=f"{call.channel}:{number}")


def _stop(value: object) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value or []
    if (
        not isinstance(words, list)
        or len(words) > _LONGEST_STOP
        or not all(isinstance(word, str) and word for word in words)
    ):
        raise bad_request(f"stop is a string or up to {_LONGEST_STOP} strings, none of them empty", "stop")
    return tuple(words)


def _messages(body: Mapping[str, Any], *, reads_names: bool, most_pictures: int) -> tuple[ChatMessage, ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages is missing or empty", "messages")
    if len(messages) > MOST_MESSAGES:
        raise bad_request(f"messages has {len(messages)}; the limit is {MOST_MESSAGES}", "messages")
    read = tuple(
        _message(message, f"messages[{index}]", reads_names=reads_names, most_pictures=most_pictures)
        for index, message in enumerate(messages)
    )
    if sum(len(message.pictures) for message in read) > most_pictures:
        raise bad_request(f"messages has at most {most_pictures} pictures", "messages")
    return read


def _message(message: object, place: str, *, reads_names: bool, most_pictures: int) -> ChatMessage:
    if not isinstance(message, dict):
        raise bad_request(f"{place} is not an object", "messages")
    role = _ROLES.get(text(message, "role", ""))
    if role is None:
        raise bad_request(f"{place}.role is not one of {', '.join(_ROLES)}", "messages")
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""
    said, pictures = read_content(content, f"{place}.content", most_pictures if role == "user" else 0)
    if (speaker := message.get("name")) is not None and not isinstance(speaker, str):
        raise bad_request(f"{place}.name is not a string", "messages")
    if role == "user" and speaker and reads_names:
        said = f"{speaker}: {said}"  # as in the prompts of group conversations
    return ChatMessage(role, said, pictures)


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Refuse what would silently change the answer if it were ignored."""
    has_tools = (body.get("tools") or body.get("functions")) and "none" not in (
        body.get("tool_choice"),
        body.get("function_call"),
    )
    if has_tools:
        raise bad_request("this model does not support tools", "tools")
    if body.get("logprobs") or body.get("top_logprobs"):
        raise bad_request("log probabilities are not available", "logprobs")
    form = body.get("response_format") or {}
    if not isinstance(form, dict) or form.get("type", "text") != "text":
        raise bad_request("response_format is text only", "response_format")
    for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
        if body.get(name):
            raise bad_request(f"{name} is not supported", name)
    if number(body, "repetition_penalty", 1, 0, 100) != 1:
        raise bad_request("repetition_penalty is 1 only", "repetition_penalty")


async def _chunks(
    backend: Backend, calls: Sequence[ChatRequest], form: _Form, head: Mapping[str, Any], includes_usage: bool
) -> AsyncGenerator[bytes, None]:
    rest = {"usage": None} if includes_usage else {}
    begun: set[int] = set()
    usages: list[Usage] = []
    fallbacks: dict[int, str] = {}  # that answer, by the number of the answer

    def chunk(index: int, part: Mapping[str, Any], reason: FinishReason | None = None) -> bytes:
        model = fallbacks.get(index, head["model"])
        return _event({**head, "model": model, "choices": [_choice(index, part, reason)], **rest})

    async with aclosing(_events(backend, calls)) as events:
        async for index, event in events:
            if isinstance(event, Fallback):
                fallbacks[index] = backend.id_of(event.model)
            if not isinstance(event, Delta | Finished):
                continue  # a refusal may still follow, which is the status of the response before the first chunk
            if index not in begun and form.first is not None:
                begun.add(index)
                yield chunk(index, form.first)
            if isinstance(event, Delta):
                yield chunk(index, form.piece(event.text))
            else:
                usages.append(event.usage)
                yield chunk(index, form.last, event.reason)
    if includes_usage:
        model = next(iter(fallbacks.values()), head["model"])
        yield _event({**head, "model": model, "choices": [], "usage": _usage(usages)})
    yield b"data: [DONE]\n\n"


async def _events(backend: Backend, calls: Sequence[ChatRequest]) -> AsyncGenerator[tuple[int, EngineEvent], None]:
    """Yield the events of several answers as they come, each with the answer's number."""
    streams = [backend.generate(call) for call in calls]
    if len(streams) == 1:  # without a task for each event
        async with aclosing(streams[0]) as events:
            async for event in events:
                yield 0, event
        return
    following = {asyncio.ensure_future(anext(stream, None)): index for index, stream in enumerate(streams)}
    try:
        while following:
            done, _ = await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
            # A refusal first, which is the status of the response only before any event of the others.
            for task in sorted(done, key=lambda each: each.exception() is None):
                found, index = task.result(), following.pop(task)
                if found is not None:
                    following[asyncio.ensure_future(anext(streams[index], None))] = index
                    yield index, found
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


def _choice(index: int, part: Mapping[str, Any], reason: FinishReason | None) -> dict[str, Any]:
    written = None if reason is None else "length" if reason is FinishReason.LENGTH else "stop"
    return {"index": index, **part, "logprobs": None, "finish_reason": written}


def _event(value: object) -> bytes:
    # In ASCII: some clients take U+2028 and U+0085 for line ends.
    return f"data: {json.dumps(value)}\n\n".encode()


def _usage(usages: Sequence[Usage]) -> dict[str, int]:
    """Write the usage of the answers to one prompt, which counts once."""
    prompt, answers = usages[0].prompt_tokens, sum(each.completion_tokens for each in usages)
    return {"prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers}
