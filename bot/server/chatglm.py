"""The APIs of ChatGLM-6B's servers: `POST /`, and the GLM API's /chat, /chat-stream and /tokenize.

Their requests and responses are those of api.py in THUDM/ChatGLM-6B and of uniai-lab/GLM-API, both of 2023.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bot.domain import ChatRequest, Delta, Fallback, Finished, SamplingParams
from bot.server.errors import ApiError, bad_request
from bot.server.generation import Backend, EventStream, complete, unless_disconnected
from bot.server.requests import boolean, chat_of, history, integer, number, text

# The limit of prompt and answer together for clients that name none.
_API_LENGTH = 2048
_GLM_LENGTH = 4096
# Tokens that are written as JSON at once.
_PART = 4096


async def answer(request: Request, body: Mapping[str, Any], backend: Backend) -> Response | None:
    """`POST /`: the whole answer, with the history that the next request sends; with `stream`, events of all so far."""
    prompt, turns, is_stream = text(body, "prompt"), history(body), boolean(body, "stream")
    # In the original, 0 is the default too.
    max_length = integer(body, "max_length", None, lowest=0) or _API_LENGTH
    call = await _request(request, body, backend, prompt, max_length)
    if is_stream:
        return _so_far(backend, call, lambda said, _, fallback: _api_object(turns, prompt, said, fallback))
    completion = await unless_disconnected(request, complete(backend, call))
    if completion is None:
        return None
    return JSONResponse(_api_object(turns, prompt, completion.text, completion.fallback))


async def glm_chat(request: Request, body: Mapping[str, Any], backend: Backend) -> Response | None:
    """`POST /chat` of the GLM API."""
    prompt = text(body, "prompt", "")
    call = await _request(request, body, backend, prompt, _glm_length(body))
    completion = await unless_disconnected(request, complete(backend, call))
    if completion is None:
        return None
    prompt_tokens = await _pieces(backend, prompt, completion.usage.prompt_tokens)
    model = completion.fallback or backend.engine.info.model
    return JSONResponse(_glm_object(model, completion.text, prompt_tokens, completion.usage.completion_tokens))


async def glm_stream(request: Request, body: Mapping[str, Any], backend: Backend) -> Response:
    """`POST /chat-stream` of the GLM API: each event has all text so far, and the stream just ends."""
    prompt = text(body, "prompt", "")
    call = await _request(request, body, backend, prompt, _glm_length(body))
    prompt_tokens = await _pieces(backend, prompt, backend.engine.count_tokens(call.messages))
    own = backend.engine.info.model
    return _so_far(backend, call, lambda said, tokens, model: _glm_object(model or own, said, prompt_tokens, tokens))


async def tokenize(request: Request, body: Mapping[str, Any], backend: Backend) -> Response | None:
    """`POST /tokenize` of the GLM API: ids as the model gets them, and the pieces of the whole prompt."""
    prompt = text(body, "prompt", "")
    max_length = _glm_length(body)
    backend.admit(request.state.client, backend.engine.info.model)
    backend.count(request.state.client)
    written = await unless_disconnected(request, _tokens_object(backend, prompt, max_length))
    return None if written is None else Response(written, media_type="application/json")


async def _tokens_object(backend: Backend, prompt: str, max_length: int) -> str:
    tokens = await backend.tokenize(prompt)
    if tokens is None:
        raise ApiError(501, "this model's tokenizer is not on this server")
    room = max_length - len(tokens.end)
    if room < 1:
        raise bad_request(f"max_length is less than {len(tokens.end) + 1}", "max_length")
    ids, pieces = await _json_list([*tokens.ids[:room], *tokens.end]), await _json_list(tokens.pieces)
    return f'{{"tokenIds":{ids},"tokens":{pieces}}}'


async def _json_list(values: Sequence[object]) -> str:
    """Write a list a part at a time: as a whole that of a long text would stop the event loop."""
    parts = []
    for start in range(0, len(values), _PART):
        parts.append(json.dumps(values[start : start + _PART], ensure_ascii=False)[1:-1])
        await asyncio.sleep(0)
    return f"[{', '.join(parts)}]"


def api_error(error: ApiError) -> Response:
    """Write a refusal of these APIs; their clients read no particular form."""
    return JSONResponse({"error": error.message, "status": error.status}, error.status, error.headers)


async def _pieces(backend: Backend, prompt: str, otherwise: int) -> int:
    """Count the pieces of the prompt alone, as the GLM API does: without history and the ids around it."""
    tokens = await backend.tokenize(prompt)
    return otherwise if tokens is None else len(tokens.pieces)


def _glm_length(body: Mapping[str, Any]) -> int:
    length = integer(body, "max_length", None)
    return _GLM_LENGTH if length is None else length


def _so_far(backend: Backend, call: ChatRequest, write: Callable[[str, int, str | None], object]) -> EventStream:
    """Stream an object for all text so far, which `write` makes of the text, the number of its tokens and a fallback."""

    async def lines() -> AsyncGenerator[bytes, None]:
        said, deltas, fallback = "", 0, None
        async with aclosing(backend.generate(call)) as events:
            async for event in events:
                if isinstance(event, Fallback):
                    fallback = backend.id_of(event.model)
                elif isinstance(event, Delta):
                    said, deltas = said + event.text, deltas + 1
                    yield _event(write(said, deltas, fallback))
                elif isinstance(event, Finished):
                    yield _event(write(said, event.usage.completion_tokens, fallback))

    return EventStream(lines(), lambda error: b"event: error\r\n" + _event({"error": error.message}))


async def _request(
    request: Request, body: Mapping[str, Any], backend: Backend, prompt: str, max_length: int
) -> ChatRequest:
    messages = chat_of(history(body), prompt)
    params = SamplingParams(
        temperature=number(body, "temperature", 0.95, 0, 2),
        top_p=number(body, "top_p", 0.7, 0, 1) or 1.0,
        top_k=backend.settings.params.top_k,
    )
    if body.get("top_p") == 0:
        params = replace(params, temperature=0.0)  # a sum of 0 leaves the likeliest token only
    return await backend.accept(request.state.client, messages, params, max_length=max_length)


def _api_object(turns: Sequence[tuple[str, str]], prompt: str, said: str, fallback: str | None) -> dict[str, Any]:
    """Return the original's object, and the model that answered if it was another than the default one."""
    whole = {
        "response": said,
        "history": [*map(list, turns), [prompt, said]],
        "status": 200,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    return whole | ({"model": fallback} if fallback else {})


def _glm_object(model: str, content: str, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "content": content,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "model": model,
        "object": "chat.completion",
    }


def _event(value: object) -> bytes:
    return f"data: {json.dumps(value)}\r\n\r\n".encode()
