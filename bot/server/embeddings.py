"""Embeddings: `POST /embedding` of the GLM API, and OpenAI's `POST /v1/embeddings`.

Fields and errors follow https://platform.openai.com/docs/api-reference/embeddings.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from bot.domain import Usage
from bot.engine.embeddings import Embedder, Embeddings
from bot.errors import EngineError
from bot.server.errors import ApiError, bad_request, of_engine
from bot.server.generation import Backend, Client, unless_disconnected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Texts of one request, as OpenAI has it; the body's limit bounds their length.
MOST_TEXTS = 2048


async def glm_embedding(request: Request, body: Mapping[str, Any], backend: Backend) -> Response | None:
    """`POST /embedding`: a list of vectors for a list of texts, one flat vector for one text."""
    embedder = _embedder(request, backend)
    prompt = body.get("prompt")
    texts = _texts("prompt", [] if prompt is None else prompt)
    found = await _embed(request, backend, embedder, texts, None)
    if found is None:
        return None
    rest = {"model": embedder.name, "object": "embedding"}
    if isinstance(prompt, str):
        return JSONResponse({"data": _floats(found.vectors[0]), **rest})
    return _streamed({"data": []}, found, rest, lambda index, vector: _floats(vector))


async def openai_embeddings(request: Request, body: Mapping[str, Any], backend: Backend) -> Response | None:
    """`POST /v1/embeddings`, as numbers or as little-endian float32 in base64."""
    embedder = _embedder(request, backend)
    _check_model(embedder, body.get("model"))
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise bad_request("encoding_format is float or base64", "encoding_format")
    dimensions = body.get("dimensions")
    if dimensions is not None and dimensions != embedder.dimensions:
        raise bad_request(f"{embedder.name} has {embedder.dimensions} dimensions and no others", "dimensions")
    texts = _texts("input", body.get("input"))
    if not texts or not all(texts):
        raise bad_request("input is empty, or has an empty string", "input")
    found = await _embed(request, backend, embedder, texts, True)
    if found is None:
        return None
    write = _base64 if encoding == "base64" else _floats
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return _streamed(
        {"object": "list", "data": []},
        found,
        {"model": embedder.name, "usage": usage},
        lambda index, vector: {"object": "embedding", "index": index, "embedding": write(vector)},
    )


def embedding_model(embedder: Embedder) -> dict[str, Any]:
    """Return what `/v1/models/NAME` tells of it."""
    return {"id": embedder.name, "object": "model", "created": 0, "owned_by": "embeddings"}


def _embedder(request: Request, backend: Backend) -> Embedder:
    if backend.embedder is None:
        raise ApiError(501, "this server has no embedding model: its operator can name one in [embeddings]")
    backend.admit(request.state.client, backend.embedder.name)
    return backend.embedder


def _check_model(embedder: Embedder, asked: object) -> None:
    if asked is not None and asked != embedder.name:
        raise ApiError(
            404,
            f"the embedding model {asked!r} is not served here; {embedder.name!r} is",
            code="model_not_found",
            param="model",
        )


def _texts(field: str, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and len(texts) > MOST_TEXTS:
        raise bad_request(f"{field} has {len(texts)} texts; the limit is {MOST_TEXTS}", field)
    if isinstance(texts, list) and any(isinstance(text, int | list) for text in texts):
        raise bad_request(
            f"{field} is token ids, which are those of another model's tokenizer: send text (LangChain: "
            "check_embedding_ctx_length=False)",
            field,
        )
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise bad_request(f"{field} is neither a string nor a list of strings", field)
    return texts


async def _embed(
    request: Request, backend: Backend, embedder: Embedder, texts: Sequence[str], normalize: bool | None
) -> Embeddings | None:
    client: Client = request.state.client
    backend.count(client)
    try:
        found = await unless_disconnected(request, embedder.embed(texts, normalize=normalize))
    except EngineError as error:
        raise of_engine(error) from error
    if found is not None:
        backend.access.spend_tokens(client.user, Usage(found.tokens))
        backend.metrics.embedded_texts.inc(len(texts))
        backend.metrics.embedded_tokens.inc(found.tokens)
    return found


def _floats(vector: "NDArray[np.float32]") -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _base64(vector: "NDArray[np.float32]") -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _streamed(
    head: Mapping[str, Any],
    found: Embeddings,
    rest: Mapping[str, Any],
    write: "Callable[[int, NDArray[np.float32]], Any]",
) -> Response:
    """Return a JSON object whose last value in `head` is the list of vectors, written one at a time.

    As a whole it takes 40 MB for 2048 vectors of 1024 numbers, and the event loop 1 s.
    """

    async def parts() -> AsyncIterator[bytes]:
        yield json.dumps(head).encode().removesuffix(b"]}")
        for index, vector in enumerate(found.vectors):
            yield (b", " if index else b"") + json.dumps(write(index, vector)).encode()
            await asyncio.sleep(0)
        yield b"], " + json.dumps(rest).encode().removeprefix(b"{")

    return StreamingResponse(parts(), media_type="application/json")
