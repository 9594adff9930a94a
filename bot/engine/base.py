"""What the program asks of a model, whatever runs it: the Engine."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from bot.domain import ChatMessage, ChatRequest, EngineEvent

Progress = Callable[[int, int], None]
"""Told while a model loads, from any thread: the bytes that are read, and the bytes there are."""


def silent(done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was loaded; known once the engine is entered."""

    model: str
    backend: str
    quantization: str
    dtype: str
    device: str
    context_length: int  # tokens, prompt and answer together


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is now, and whether it goes on.

    `since_progress` is the age in seconds of the last step's end, or of the work after an
    idle time; 0 while there is nothing to do.  `down` says why it will never answer again.
    """

    running: int
    waiting: int
    tokens_per_second: float | None = None  # measured lately, all requests together
    since_progress: float = 0.0
    down: str | None = None
    is_changing: bool = False  # another model takes this one's place, and who asks waits for it
    slots: int = 0  # requests that run at once at most
    wait: float | None = None  # seconds until those who wait now will have been served, from measured speed
    device_bytes: int = 0  # held on devices that are not the processor, lately

    # Since it was entered:
    tokens: int = 0  # made, all requests together
    steps: int = 0
    started: int = 0  # requests that left the queue
    waited: float = 0.0  # seconds that those spent there, all together


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
