"""The engine as a library: chat and stream_chat, without an event loop of the caller's."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import aclosing
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, SamplingParams
from bot.engine.base import Engine
from bot.errors import EngineFailed

History = list[tuple[str, str]]

_DEFAULTS = SamplingParams()

_CLOSED = "the model was closed"


class ChatModel:
    """A loaded model; calls from several threads are batched.

    `model` and the options are those of `[engine]` in config.toml.  Close it to free its memory.

    Raises:
        CheckpointError: The model cannot be used.
        EngineUnavailable: A package, a device or memory is missing.
        ValidationError: pydantic's, for an option that does not exist.
    """

    def __init__(self, model: str = "demo", **options: Any) -> None:
        from bot.engine import open_engine  # which imports this module

        self._engine: Engine = open_engine(EngineSection.model_validate({"model": model} | options))
        # The engine runs in a thread of its own, and its queue on this loop.
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._is_closed = False  # no answer begins after it, with the lock held
        self._thread = threading.Thread(target=self._loop.run_forever, name="chat model", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._engine.__aenter__(), self._loop).result()
        except BaseException:
            self._stop()
            raise

    def chat(
        self, query: str, history: Sequence[tuple[str, str]] = (), params: SamplingParams = _DEFAULTS
    ) -> tuple[str, History]:
        """Return the answer, and the history with this turn for the next call.

        Raises:
            PromptTooLong: History and query do not fit the model's context.
            EngineBusy: Too many other threads wait.
            EngineFailed: Out of memory, NaN, or the model is closed.
        """
        response, turns = "", [*history, (query, "")]
        for response, turns in self.stream_chat(query, history, params):  # noqa: B007  # the last one is the answer
            pass
        return response, turns

    def stream_chat(
        self, query: str, history: Sequence[tuple[str, str]] = (), params: SamplingParams = _DEFAULTS
    ) -> Iterator[tuple[str, History]]:
        """Yield the answer so far and the history with it, whenever there is more; leave the loop to stop it.

        Raises:
            As `chat`.
        """
        turns: list[ChatMessage] = []
        for asked, answered in history:
            turns += ChatMessage("user", asked), ChatMessage("assistant", answered)
        request = ChatRequest((*turns, ChatMessage("user", query)), params)
        texts: SimpleQueue[str | None] = SimpleQueue()
        with self._lock:
            if self._is_closed:
                raise EngineFailed(_CLOSED)
            answer = asyncio.run_coroutine_threadsafe(self._answer(request, texts), self._loop)
        answer.add_done_callback(lambda _: texts.put(None))
        response = ""
        try:
            while (text := texts.get()) is not None:
                response += text
                yield response, [*history, (query, response)]
            answer.result()
        except CancelledError:
            raise EngineFailed(_CLOSED) from None
        finally:
            answer.cancel()

    def close(self) -> None:
        """End running answers and free the memory; a second call does nothing."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if not was_closed:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _answer(self, request: ChatRequest, texts: SimpleQueue[str | None]) -> None:
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    texts.put(event.text)

    async def _end(self) -> None:
        await self._engine.__aexit__(None, None, None)
        # Not every engine ends the answers that run: their readers would wait for ever.
        answers = asyncio.all_tasks() - {asyncio.current_task()}
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
