"""Echo backend: repeats the last message, to try the bot without a model."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from types import TracebackType
from typing import Self

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
    Usage,
)
from bot.engine.base import Progress, silent
from bot.engine.serving.queue import FairQueue
from bot.errors import PromptTooLong

CONTEXT_LENGTH = 2048
TOKEN_LENGTH = 4  # characters, roughly an English token


def open_engine(options: EngineSection, progress: Progress = silent) -> "EchoEngine":
    """Create the engine; only the queue sizes of `options` are used."""
    return EchoEngine(max_batch_size=options.max_batch_size, max_waiting=options.max_waiting)


class EchoEngine:
    """Streams the last user message; a token is four characters, plus one per message."""

    def __init__(self, *, max_batch_size: int = 8, max_waiting: int = 64, context_length: int = CONTEXT_LENGTH) -> None:
        self._queue = FairQueue(max_batch_size, max_waiting)
        self._context_length = context_length

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("echo", "echo", "none", "none", "none", self._context_length, reads_names=False)

    @property
    def load(self) -> EngineLoad:
        return self._queue.load

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return sum(1 + len(list(_tokens(message.content))) for message in messages)

    def tokenize(self, text: str) -> None:
        """Return None: there is no vocabulary."""

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        prompt_tokens = self.count_tokens(request.messages)
        room = self._context_length - prompt_tokens
        if room <= 0:
            raise PromptTooLong(prompt_tokens, self._context_length)
        ticket = self._queue.enqueue(request, prompt_tokens)
        try:
            while (queued := await ticket.queued()) is not None:
                yield queued
            question = next((message.content for message in reversed(request.messages) if message.role == "user"), "")
            answer = list(_tokens(_before_stop(question, request.params.stop)))
            limit = min(request.params.max_tokens or room, room)
            for token in answer[:limit]:
                yield Delta(token)
                await asyncio.sleep(0)
            reason = FinishReason.STOP if len(answer) < limit else FinishReason.LENGTH
            yield Finished(reason, Usage(prompt_tokens, min(len(answer) + 1, limit)))
        finally:
            self._queue.release(ticket)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to free."""


def _tokens(text: str) -> Iterator[str]:
    return (text[start : start + TOKEN_LENGTH] for start in range(0, len(text), TOKEN_LENGTH))


def _before_stop(text: str, stop: Sequence[str]) -> str:
    ends = [end for word in stop if word and (end := text.find(word)) >= 0]
    return text[: min(ends, default=len(text))]
