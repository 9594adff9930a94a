"""What a refusal of a model server means: try again, try without a parameter, or give up."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from bot.util.retry import retry_after

# The server, or the proxy before it, fails for a while; the request was not answered.
_PASSING = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
        *range(500, 600),
    }
)
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|maximum context|too many (input )?tokens|exceed\w* .*(context|tokens)"
    r"|(prompt|input) is too long|tokens? count .*exceed|must be <= \d+\. Given|length of the messages",
    re.IGNORECASE | re.DOTALL,
)
# "maximum context length is 4096 tokens", "context size (900 tokens)", "n_ctx": 4096, "200001 tokens > 200000 maximum"
_LIMIT = re.compile(
    r"(?:maximum context length (?:is|of)|context (?:length|size|window)(?: is| of(?: only)?)?|n_ctx\W+|tokens >|must be <=)"
    r"[ :(]*(\d+)",
    re.IGNORECASE,
)
# llama-server: "Loading model"; others name the model.
_LOADING = re.compile(r"\bload(ing|s)\b|being loaded|not (yet )?(loaded|ready)|warming up", re.IGNORECASE)


class ContextExceeded(Exception):
    """The prompt does not fit; `limit` is the context in tokens where the server names it."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        super().__init__("the prompt does not fit the model's context")


class ServerFailed(Exception):
    """A server gave no usable answer; another attempt, or another server, may.

    `seconds` is what it asked to wait; `is_busy` that it was not asked to answer, or is full;
    `is_loading` that its model is not loaded yet; `is_lasting` that its operator has to change something.
    """

    def __init__(
        self,
        why: str,
        *,
        seconds: float = 0.0,
        is_busy: bool = False,
        is_loading: bool = False,
        is_lasting: bool = False,
        status: int = 0,
    ) -> None:
        self.why = why
        self.status = status
        self.seconds = seconds
        self.is_busy = is_busy
        self.is_loading = is_loading
        self.is_lasting = is_lasting
        super().__init__(why)


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """A refused request: `message` may quote the prompt, and is never logged or shown."""

    status: int
    message: str
    param: str

    @property
    def is_too_long(self) -> bool:
        return self.status in {400, 413, 422, 500} and bool(_TOO_LONG.search(self.message))

    @property
    def limit(self) -> int | None:
        """The context in tokens, where the message names it."""
        found = _LIMIT.search(self.message)
        return int(found[1]) if found else None

    def blames(self, names: Collection[str]) -> set[str]:
        """Return those of the parameters that the server says it does not accept."""
        if self.status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
            return set()
        return {name for name in names if name == self.param or re.search(rf"\b{name}\b", self.message)}


def read_refusal(response: httpx.Response, body: bytes) -> ErrorBody:
    """Return the parts of an error, whatever its form: OpenAI's, vLLM's, Ollama's, a proxy's HTML."""
    text = body.decode("utf-8", "replace")
    try:
        answer: Any = json.loads(text)
        error = answer.get("error", answer)
        error = error if isinstance(error, dict) else {"message": error}
        # FastAPI's own form: a list of places and messages.
        said = error.get("message") or error.get("detail") or text
        # llama-server: "type": "exceed_context_size_error", "n_ctx": 4096; OpenAI: "code": "context_length_exceeded".
        message = f"{said} {error.get('code')} {error.get('type')} n_ctx: {error.get('n_ctx')}"
        param = error.get("param")
    except (AttributeError, RecursionError, ValueError):
        message, param = text, None
    return ErrorBody(response.status_code, str(message), param if isinstance(param, str) else "")


def failure(response: httpx.Response, refusal: ErrorBody) -> ServerFailed:
    """Return the fault that a status stands for; nothing of the body, which may quote the prompt."""
    status = response.status_code
    seconds = retry_after(response.headers.get("Retry-After"), 0.0)
    if status == HTTPStatus.SERVICE_UNAVAILABLE and _LOADING.search(refusal.message):
        return ServerFailed("its model is still loading", seconds=seconds, is_busy=True, is_loading=True)
    if status in _PASSING:
        is_busy = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
        return ServerFailed(f"it answers {status}", seconds=seconds, is_busy=is_busy, status=status)
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            why = f"it refuses the key ({status}): set BOT_ENGINE__KEY or the secret file engine__key"
        case HTTPStatus.NOT_FOUND:
            why = "it does not know the model or the path (404): check engine.model, and that engine.urls end in /v1"
        case _ if 300 <= status < 400:
            why = f"it redirects ({status}), which is not followed: set engine.urls to the address that it names"
        case _:
            why = f"it refuses the request ({status})"
    return ServerFailed(why, is_lasting=True, status=status)
