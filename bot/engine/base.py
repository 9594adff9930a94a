"""The seam between the bot and whatever runs a model: Engine."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from bot.domain import ChatMessage, ChatRequest, EngineEvent, EngineInfo, EngineLoad, Tokens

Progress = Callable[[int, int], None]
"""Called while a model loads, from any thread, with bytes read and total bytes."""

Memory = Mapping[str, int]
"""Bytes by device."""


def silent(done: int, total: int) -> None:
    """Ignore progress."""


# Characters of a prompt whose tokens are counted at once, and about those that a format writes around each message.
_LONG_PROMPT, _FORMAT = 16_000, 16


def is_long(messages: Sequence[ChatMessage]) -> bool:
    """Return whether the tokens of a prompt are counted in a thread, because those of a megabyte take seconds.

    >>> is_long([ChatMessage("user", "hello")]), is_long([ChatMessage("user", "")] * 2000)
    (False, True)
    """
    return sum(len(message.content) + _FORMAT for message in messages) > _LONG_PROMPT


class Engine(Protocol):
    """Answers chat requests; safe to call from many tasks at once.

    An async context manager: entering loads the model, leaving frees it.  Leaving returns
    once the memory is free, however long a step takes; cancel it to give up.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def load(self) -> EngineLoad: ...

    def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        """Stream the answer: `Queued`s, `Thought`s, then `Delta`s, then one `Finished`.

        A `Fallback` may come before the first `Delta`, from the router of several models.

        Close the generator to cancel: the request leaves the batch before the next step.

        Raises:
            EngineBusy: The queue is full.
            PromptTooLong: The messages do not fit the model's context.
            PicturesRefused: They have more pictures than `info.most_pictures`, or than its server takes after all.
            EngineFailed: This request failed (out of memory, NaN); others continue.
        """
        ...

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """Count the tokens of the prompt for these messages; safe to call from any thread."""
        ...

    def tokenize(self, text: str) -> Tokens | None:
        """Split a text, without a prompt's format; None if the tokenizer is elsewhere.  Safe to call from any thread."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
