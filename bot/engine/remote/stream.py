"""Read the stream of an answer: server-sent events to text, finish reason and usage."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
from httpx_sse import EventSource, SSEError

from bot.domain import FinishReason, Usage
from bot.engine.remote.endpoints import Endpoint
from bot.engine.remote.errors import ServerFailed
from bot.engine.thoughts import TAGS, Thoughts, after_thoughts

# A stream of a hundred thousand tokens, each in its own event, is far smaller.
_LONGEST_STREAM = 64 * 2**20
# Tokens in a count that is believed; a database does not take any number, nor do its sums.
_MOST_TOKENS = 2**31 - 1

# Servers have more words for the end of an answer ("eos", "stop_sequence", …); these do not mean a whole one.
_REASONS = {
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,  # Mistral's API
    "abort": FinishReason.ERROR,  # vLLM, SGLang
    "error": FinishReason.ERROR,  # OpenRouter, vLLM
    "insufficient_system_resource": FinishReason.ERROR,  # DeepSeek
}


@dataclass(frozen=True, slots=True)
class CompletionChunk:
    """One event: more text, more reasoning, the end of the answer, or the usage."""

    text: str = ""
    reasoning: str = ""
    reason: FinishReason | None = None
    usage: Usage | None = None


async def read_chunks(response: httpx.Response) -> AsyncGenerator[CompletionChunk, None]:
    """Yield the chunks of a response until [DONE] or its end.

    Raises:
        ServerFailed: An error inside the stream, or no stream of a chat completion.
        httpx.HTTPError: The connection broke.
    """
    texts, reasonings = _WholeCharacters(), _WholeCharacters()
    assert isinstance(response.stream, httpx.AsyncByteStream), "an answer of an asynchronous client"
    response.stream = _Bounded(response.stream)
    try:
        async for event in EventSource(response).aiter_sse():
            if event.data == "[DONE]":
                return
            if event.data:
                chunk = _parse(event.data)
                is_last = chunk.reason is not None
                text, reasoning = (
                    texts.feed(chunk.text, is_last=is_last),
                    reasonings.feed(chunk.reasoning, is_last=is_last),
                )
                yield replace(chunk, text=text, reasoning=reasoning)
    except SSEError as error:
        raise ServerFailed("it answers with no event stream") from error


class _WholeCharacters:
    r"""Joins the halves of a character, which JSON can write in two events; a half without the other becomes U+FFFD.

    >>> whole = _WholeCharacters()
    >>> [whole.feed(text) for text in ("a\ud83d", "\udc4b\udc4b", "b")]
    ['a', '\U0001f44b\ufffd', 'b']
    """

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str, *, is_last: bool = False) -> str:
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" and not is_last else ""
        text = text.removesuffix(self._half)
        return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class WholeText:
    """The text of an answer from its beginning, apart from the reasoning.

    A model whose template writes the opening tag into the prompt sends the closing one only.  The first such answer has
    its reasoning in its text; then it is known of the endpoint, until an answer shows otherwise.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._thoughts = Thoughts(is_thinking=endpoint.begins_thinking)
        self._is_guess = endpoint.begins_thinking
        self._said: list[str] = []  # reasoning on a guess, else text

    def feed(self, chunk: CompletionChunk) -> tuple[str, str]:
        """Return the part of a chunk that is reasoning, and the part that belongs to the answer."""
        if chunk.reasoning and self._is_guess:  # the server tells them apart itself
            self._is_guess = self._endpoint.begins_thinking = False
            self._thoughts = Thoughts()
        thought, text = self._thoughts.feed(chunk.text)
        self._said.append(thought if self._is_guess else text)
        return chunk.reasoning + thought, text

    def finish(self, reason: FinishReason) -> str:
        """Return the text that was held back: all of an answer that was reasoning to its end."""
        said, unended = "".join(self._said), self._thoughts.unended
        if not self._is_guess and after_thoughts(said) != said:
            self._endpoint.begins_thinking = True
        if self._is_guess and unended is not None and reason is FinishReason.STOP:
            self._endpoint.begins_thinking = False
            return said + unended
        return self._thoughts.finish()


class ContinuedText:
    r"""The rest of an answer, without the space that was shown already: templates cut it off.

    >>> rest = ContinuedText("\n\n")
    >>> [rest.feed(CompletionChunk(text)) for text in ("\n", "\n", "\nNext", "\n")]
    [('', ''), ('', ''), ('', '\nNext'), ('', '\n')]
    """

    def __init__(self, space: str) -> None:
        self._space = space
        self._pending = ""  # space, and what may be the beginning of a tag
        self._has_begun = False

    def feed(self, chunk: CompletionChunk) -> tuple[str, str]:
        """Return the reasoning and the text of a chunk.

        Raises:
            ServerFailed: The server answers anew, with reasoning.
        """
        self._pending += chunk.text
        begun = self._pending.lstrip()
        if chunk.reasoning or (begun.startswith(TAGS[0]) and not self._has_begun):
            raise ServerFailed("it thinks instead of continuing", is_lasting=True)
        return "", "" if TAGS[0].startswith(begun) and not self._has_begun else self.finish(FinishReason.STOP)

    def finish(self, reason: FinishReason) -> str:
        """Return the text that was held back."""
        self._has_begun = True
        text, self._pending = self._pending, ""
        while self._space and text.startswith(self._space[0]):
            self._space, text = self._space[1:], text[1:]
        self._space = "" if text else self._space
        return text


def _parse(data: str) -> CompletionChunk:
    try:
        chunk = json.loads(data)
        if chunk.get("error"):
            raise ServerFailed("it reported an error in the middle of its answer")
        usage = _usage(chunk.get("usage"))
        if not chunk.get("choices"):
            return CompletionChunk(usage=usage)
        choice = chunk["choices"][0]
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        return CompletionChunk(
            _text(delta.get("content")), _text(reasoning), _reason(choice.get("finish_reason")), usage
        )
    except (AttributeError, KeyError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ServerFailed(f"an event of its stream cannot be read ({type(error).__name__})") from error


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("text is a string")
    return value


def _reason(value: object) -> FinishReason | None:
    return _REASONS.get(str(value).lower(), FinishReason.STOP) if value else None


def _usage(value: Mapping[str, Any] | None) -> Usage | None:
    """Return the usage; None if it is missing or cannot be parsed."""
    try:
        counts = [max(int(value.get(name) or 0), 0) for name in ("prompt_tokens", "completion_tokens")] if value else []
    except (AttributeError, OverflowError, TypeError, ValueError):
        return None
    return Usage(*counts) if counts and max(counts) <= _MOST_TOKENS else None


class _Bounded(httpx.AsyncByteStream):
    """Ends a stream that does not end by itself."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for data in self._stream:
            size += len(data)
            if size > _LONGEST_STREAM:
                raise ServerFailed(f"its answer is longer than {_LONGEST_STREAM // 2**20} MiB")
            yield data

    async def aclose(self) -> None:
        await self._stream.aclose()
