"""A fake engine with scripted answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from bot.domain import (
    ChatMessage,
    ChatRequest,
    Delta,
    EngineEvent,
    EngineInfo,
    EngineLoad,
    Finished,
    FinishReason,
    Tokens,
    Usage,
)
from bot.engine.serving.queue import FairQueue
from bot.errors import PromptTooLong

Item = str | EngineEvent | Exception | asyncio.Event
AnswerScript = str | Iterable[Item]
ScriptedAnswer = AnswerScript | Callable[[ChatRequest], AnswerScript]


class ScriptedEngine:
    """Uses one answer per request, in order, then `default` for all others.

    An answer is a text, a list of items, or a function of the request that returns one.
    Texts become `Delta`s, events are passed on, exceptions are raised, and an
    `asyncio.Event` is awaited.  A missing `Finished` is added.

    `requests` holds all requests, `closed` those closed before their end.  While `go_on` is
    cleared, every answer pauses before its next event.  A token is a character, and a picture is ten.  Tests set
    `most_pictures`, and `since_progress` and `down` of the load.
    """

    def __init__(
        self,
        *answers: ScriptedAnswer,
        default: ScriptedAnswer = "ok",
        context_length: int = 2048,
        max_batch_size: int = 8,
        max_waiting: int = 64,
        model: str = "scripted",
        reads_names: bool = True,
    ) -> None:
        self._info = EngineInfo(model, "scripted", "none", "none", "none", context_length, reads_names=reads_names)
        self.most_pictures = 0
        self.requests: list[ChatRequest] = []
        self.closed: list[ChatRequest] = []
        self.since_progress = 0.0
        self.down: str | None = None
        self._came = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._answers = list(answers)
        self._default = default
        self._context_length = context_length
        self._queue = FairQueue(max_batch_size, max_waiting)

    @property
    def info(self) -> EngineInfo:
        return replace(self._info, context_length=self._context_length, most_pictures=self.most_pictures)

    @property
    def load(self) -> EngineLoad:
        return replace(self._queue.load, since_progress=self.since_progress, down=self.down)

    def add(self, *answers: ScriptedAnswer) -> None:
        """Add answers for the next requests."""
        self._answers += answers

    async def asked(self, count: int) -> None:
        """Wait for the given number of requests."""
        while len(self.requests) < count:
            self._came.clear()
            await self._came.wait()

    async def left(self, count: int) -> None:
        """Wait until this many requests were closed before their end."""
        while len(self.closed) < count:
            self._came.clear()
            await self._came.wait()

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return sum(len(message.content) + 10 * len(message.pictures) for message in messages)

    def tokenize(self, text: str) -> Tokens:
        return Tokens(tuple(map(ord, text)), tuple(text), (0, 1))

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        prompt_tokens = self.count_tokens(request.messages)
        if prompt_tokens >= self._context_length:
            raise PromptTooLong(prompt_tokens, self._context_length)
        ticket = self._queue.enqueue(request, prompt_tokens)
        self.requests.append(request)
        self._came.set()
        answer = self._answers.pop(0) if self._answers else self._default
        is_finished = False
        completion_tokens = 0
        try:
            while (queued := await ticket.queued()) is not None:
                yield queued
            script = answer(request) if callable(answer) else answer
            for item in [script] if isinstance(script, str) else script:
                await self.go_on.wait()
                match item:
                    case asyncio.Event():
                        await item.wait()
                    case Exception():
                        is_finished = True
                        raise item
                    case str():
                        completion_tokens += len(item)
                        yield Delta(item)
                    case _:
                        is_finished = isinstance(item, Finished)
                        yield item
            if not is_finished:
                await self.go_on.wait()
                is_finished = True
                yield Finished(FinishReason.STOP, Usage(prompt_tokens, completion_tokens))
        finally:
            if not is_finished:
                self.closed.append(request)
                self._came.set()
            self._queue.release(ticket)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to free."""
