"""What a refusal of a model server means: try again, try without a parameter, or give up."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from bot.config.schema import EngineSection
from bot.util.retry import retry_after

# Among the parameters that a server may refuse: messages of the system, which then become part of the first question.
SYSTEM = "system messages"

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
# Of the request, or of a part of it.
_REFUSING = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY})
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|maximum context|too many (input )?tokens|exceed\w* .*(context|tokens)"
    r"|(prompt|input) is too long|tokens? count .*exceed|must be <= \d+\. Given|length of the messages",
    re.IGNORECASE | re.DOTALL,
)
# "maximum context length is 4096 tokens", "context size (900 tokens)", "n_ctx": 4096, "200001 tokens > 200000 maximum"
_LIMIT = re.compile(
    r"(?:maximum context length (?:is|of)|context (?:length|size|window)(?: is| of)?(?: only)?|n_ctx\W+|tokens >|\+ \d+ >|must be <=)"
    r"[ :(]*(\d+)",
    re.IGNORECASE,
)
# Tokens of the prompt beside those that the answer may have: "30 input tokens", "30 in the messages", "30 tokens from the
# input messages", "30 `inputs` tokens", "30 + 4091 > 4096".
_OF_PROMPT = re.compile(
    r"(\d+)(?: input tokens| in the messages| in your prompt| tokens from the input| `inputs` tokens| \+ \d+ > \d)"
)
# llama-server: "Loading model"; others name the model.
_LOADING = re.compile(r"\bload(ing|s)\b|being loaded|not (yet )?(loaded|ready)|warming up", re.IGNORECASE)
# What models without eyes are said to lack: "is not a multimodal model", "image input is not supported", "does not support
# image", "image_url is only supported by certain models", "unknown variant `image_url`", "missing data required for image".
_OF_PICTURES = re.compile(r"image|vision|multi-?modal|mmproj", re.IGNORECASE)
_LACKING = re.compile(
    r"n[o']t (currently )?(supported|support|a\b|enabled|available|capable)|unsupported|only supported|unknown variant"
    r"|missing data|mmproj|no endpoints|text only|only text",
    re.IGNORECASE,
)
_ONLY_TEXT = re.compile(r"(valid|be a|expected an?|type) str(ing)?\b|content must be (a )?string", re.IGNORECASE)
# vLLM: "At most 1 image(s) may be provided in one prompt."
_MOST_PICTURES = re.compile(r"at most (\d+) (image|picture)", re.IGNORECASE)
# Of a refusal: more of it is a quotation, or a page.
_LONGEST_MESSAGE = 8192
# Tokens; a smaller number is no context of a model.
_LEAST_CONTEXT = 256
_WORD = re.compile(r"\w+")
# A value that is out of bounds says nothing of others.
_OF_BOUNDS = re.compile(
    r"(less|greater|more) than|between|\brange\b|at (most|least)|too (large|high|small|low)|[<>]=?|must be in",
    re.IGNORECASE,
)
_FILTERED = "its filter does not accept the text"
_FORBIDDEN = ": a firewall may not let its text pass, or the key may not use the model"
# OpenAI: a key may be good for some calls only.
_OF_SCOPE = re.compile(r"missing scope|insufficient permission", re.IGNORECASE)
_ADDRESS = re.compile(r"https?://\S+")
# What a message tells beyond its status, in our words: it may quote the prompt, and is not shown itself.
_REASONS = tuple(
    (re.compile(words, re.IGNORECASE), reason)
    for words, reason in (
        (r"more system memory|out of memory|insufficient system resources", "it has too little memory for the model"),
        (r"no models? (are |is )?loaded", "no model is loaded there"),
        (
            r"insufficient[ _](quota|balance|credits)|exceeded your current quota|budget|out of credits",
            "the account of the key has no budget left",
        ),
        (r"not support chat|chat template", "the model is not made for chats: set engine.model to one that is"),
        (r"process has terminated|EngineCore|engine .*dead", "its model has crashed, and its log says why"),
        (r"moderation|content[ _](filter|policy|management)|flagged", _FILTERED),
        (r"system role|roles must alternate", "the model's template does not accept the order of the roles"),
    )
)
# Templates without a system role say either, those of Gemma 2 and of Mistral 7B.
_NO_SYSTEM = re.compile(r"system role|roles must alternate", re.IGNORECASE)


class ContextExceeded(Exception):
    """The prompt does not fit; `limit` is the context in tokens where the server names it."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        super().__init__("the prompt does not fit the model's context")


class ServerFailed(Exception):
    """A server gave no usable answer; another attempt, or another server, may.

    `seconds` is what it asked to wait; `is_busy` that it was not asked to answer, or is full;
    `is_loading` that its model is not loaded yet; `is_lasting` that its operator has to change something;
    `is_refusal` that it does not accept this request, and may accept others.
    """

    def __init__(
        self,
        why: str,
        *,
        seconds: float = 0.0,
        is_busy: bool = False,
        is_loading: bool = False,
        is_lasting: bool = False,
        is_refusal: bool = False,
        status: int = 0,
    ) -> None:
        self.why = why
        self.status = status
        self.seconds = seconds
        self.is_busy = is_busy
        self.is_loading = is_loading
        self.is_lasting = is_lasting
        self.is_refusal = is_refusal
        super().__init__(why)


def may_pass(error: Exception) -> bool:
    """Return whether a failed call may succeed later, without anybody changing something."""
    if isinstance(error, ServerFailed):
        return error.is_loading or error.status in _PASSING
    return isinstance(error, (httpx.HTTPError, TimeoutError))


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """A refused request: `message` may quote the prompt, and is never logged or shown."""

    status: int
    message: str
    param: str
    code: str

    @property
    def is_too_long(self) -> bool:
        return self.status in {400, 413, 422, 500} and bool(_TOO_LONG.search(self.message))

    @property
    def limit(self) -> int | None:
        """The context in tokens, where the message names it."""
        found = _LIMIT.search(self.message)
        return int(found[1]) if found and int(found[1]) >= _LEAST_CONTEXT else None

    def room(self, context_length: int | None) -> int | None:
        """Return the tokens that the prompt leaves for the answer, where the message tells how many it has."""
        found, limit = _OF_PROMPT.search(self.message), self.limit or context_length
        # One less: some servers want the sum to be below the context.
        return limit - int(found[1]) - 1 if found and limit else None

    @property
    def is_of_model(self) -> bool:
        """Whether the name of the model is what the server does not accept."""
        return self.param == "model" or self.code == "model_not_found"

    @property
    def reason(self) -> str:
        """Return what the message tells, after a colon; empty if it is of no known kind."""
        # A refusal for its rate may name a page about billing.
        told = f"{self.code} {_ADDRESS.sub('', self.message)}"
        return next((f": {reason}" for words, reason in _REASONS if words.search(told)), "")

    def refuses_pictures(self) -> bool:
        """Return whether pictures may be what the server does not accept, so that it may take the rest."""
        if self.takes_pictures() is not None or (self.status >= 500 and _OF_PICTURES.search(self.message)):
            return True
        return self.status in _REFUSING and not (self.reason or self.is_of_model)

    def takes_pictures(self) -> int | None:
        """Return how many pictures the server takes with a prompt, if it says so: 0 for a model that sees none."""
        if self.status not in {*_REFUSING, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.NOT_IMPLEMENTED}:
            return None
        if found := _MOST_PICTURES.search(self.message):
            return int(found[1])
        is_lacking = _OF_PICTURES.search(self.message) and _LACKING.search(self.message)
        return 0 if is_lacking or _ONLY_TEXT.search(self.message) else None

    @property
    def is_of_bounds(self) -> bool:
        """Return whether a value is what the server does not accept, rather than a parameter."""
        return bool(_OF_BOUNDS.search(self.message))

    def blames(self, names: Collection[str]) -> set[str]:
        """Return those of the parameters that the server says it does not accept."""
        if self.status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
            return set()
        blamed = {name for name in names if name == self.param or re.search(rf"\b{name}\b", self.message)}
        return blamed | ({SYSTEM} if SYSTEM in names and _NO_SYSTEM.search(self.message) else set())


def read_refusal(response: httpx.Response, body: bytes, prompt: Iterable[str] = ()) -> ErrorBody:
    """Return the parts of an error, whatever its form: OpenAI's, vLLM's, Ollama's, a proxy's HTML.

    What the message quotes of the texts of the `prompt` is left out: these are not the server's words.
    """
    text = body.decode("utf-8", "replace")
    try:
        answer: Any = json.loads(text)
        error = answer.get("error", answer)
        error = error if isinstance(error, dict) else {"message": error}
        said = error.get("message") or error.get("detail") or text
        # FastAPI's own form: a list of places and messages, each with the value, which may be the whole body.
        if isinstance(said, list):
            said = [(each.get("loc"), each.get("msg")) for each in said]
        # llama-server: "type": "exceed_context_size_error", "n_ctx": 4096; OpenAI: "code": "context_length_exceeded".
        told = f" {error.get('code')} {error.get('type')} n_ctx: {error.get('n_ctx')}"
        param, code = error.get("param"), error.get("code")
    except (AttributeError, RecursionError, ValueError):
        said, told, param, code = text, "", None, None
    message = _without_quotes(str(said)[:_LONGEST_MESSAGE], prompt) + told
    return ErrorBody(response.status_code, message, _word(param), _word(code))


def _without_quotes(message: str, prompt: Iterable[str]) -> str:
    """Return the message without the words that follow each other in the prompt too, three or more.

    >>> _without_quotes('Flagged: "ignore the maximum context", try again', ["Please ignore the maximum context!"])
    'Flagged: "   ", try again'
    """
    words = _WORD.findall(message)
    threes = list(zip(words, words[1:], words[2:], strict=False))
    wanted, quoted = set(threes), set()
    for text in prompt if wanted else ():
        first = second = ""
        # One at a time: a list of all words of a long prompt would keep other threads waiting.
        for word in _WORD.finditer(text):
            three = first, second, word[0]
            if three in wanted:
                quoted.add(three)
            first, second = second, word[0]
    is_quoted = [any(three in quoted for three in threes[max(index - 2, 0) : index + 1]) for index in range(len(words))]
    own = iter(is_quoted)
    return _WORD.sub(lambda word: "" if next(own) else word[0], message)


def failure(
    response: httpx.Response, refusal: ErrorBody, known: Sequence[str] = (), *, accepts_key: bool = False
) -> ServerFailed:
    """Return the fault that a status stands for; nothing of the body, which may quote the prompt.

    `known` are the models that the server lists.  With `accepts_key` it has accepted the key before, so that a 403 is
    about this request.
    """
    status = response.status_code
    if status == HTTPStatus.UNAUTHORIZED and _OF_SCOPE.search(refusal.message):
        status = int(HTTPStatus.FORBIDDEN)
    seconds = retry_after(response.headers.get("Retry-After"), 0.0)
    if status == HTTPStatus.SERVICE_UNAVAILABLE and _LOADING.search(refusal.message):
        return ServerFailed("its model is still loading", seconds=seconds, is_busy=True, is_loading=True)
    if status in _PASSING:
        is_busy = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
        return ServerFailed(f"it answers {status}{refusal.reason}", seconds=seconds, is_busy=is_busy, status=status)
    is_of_request = _FILTERED in refusal.reason or (status == HTTPStatus.FORBIDDEN and accepts_key)
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN if not is_of_request:
            why = f"it refuses the key ({status}): set BOT_ENGINE__KEY or the secret file engine__key"
        case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED if not known:
            why = f"it does not know the model or the path ({status}): check engine.model, and that engine.urls end in /v1"
        case _ if 300 <= status < 400:
            why = f"it redirects ({status}), which is not followed: set engine.urls to the address that it names"
        case HTTPStatus.PAYMENT_REQUIRED:
            why = f"it refuses the request ({status}): the account of the key has no budget left"
        case _ if status == HTTPStatus.NOT_FOUND or refusal.is_of_model:
            names = ", ".join(known[:20])
            why = f"it does not know the model ({status}){refusal.reason}: set engine.model to one of {names or 'its models'}"
        case _:
            hint = "" if refusal.reason or status != HTTPStatus.FORBIDDEN else _FORBIDDEN
            return ServerFailed(
                f"it refuses the request ({status}){refusal.reason}{hint}", is_refusal=True, status=status
            )
    return ServerFailed(why, is_lasting=True, status=status)


def describe(error: Exception, options: EngineSection) -> str:
    """Return a sentence about a call that got no response."""
    match error:
        case httpx.ConnectTimeout():
            return f"no connection within {options.connect_seconds:g} s (engine.connect_seconds)"
        case httpx.ConnectError() if "CERTIFICATE" in str(error):
            return "its certificate is not accepted: set engine.ca_file to that of its authority"
        case httpx.ConnectError():
            return (
                "no connection (ConnectError): is the server running? In a container, localhost is the container itself"
            )
        case TimeoutError() | httpx.TimeoutException():
            return (
                f"no answer in time: engine.first_token_seconds = {options.first_token_seconds:g}, "
                f"engine.next_token_seconds = {options.next_token_seconds:g}"
            )
        case _:
            return f"the connection broke ({type(error).__name__})"


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""
