"""What the program asks of a model, whatever runs it: the Engine."""

from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from bot.domain import ChatMessage, ChatRequest, EngineEvent, EngineInfo, EngineLoad

Progress = Callable[[int, int], None]
"""Told while a model loads, from any thread: the bytes that are read, and the bytes there are."""


def silent(done: int, total: int) -> None:
    """Report nothing."""


class Engine(Protocol):
    """Answers chat requests; safe to call from many tasks at once.

    An async context manager: entering loads the model, leaving frees it.  Leaving returns
    when the memory is free, however long a step takes; who does not wait so long cancels it.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def load(self) -> EngineLoad: ...

    def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        """Stream the answer: `Queued`s, then `Delta`s, then one `Finished`.

        Whoever iterates it closes it to cancel: the request leaves the batch before
        the model's next step.

        Raises:
            EngineBusy: The queue is full.
            PromptTooLong: The messages do not fit the model's context.
            EngineFailed: This request died (out of memory, NaN); others live.
        """
        ...

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """Count the tokens of the prompt that these messages become."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
