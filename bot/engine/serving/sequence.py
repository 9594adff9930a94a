"""One request on its way through the model: its prompt, its answer so far, its end."""

from __future__ import annotations

from dataclasses import dataclass

from bot.domain import ChatRequest, FinishReason, Usage
from bot.engine.serving.base import Tokenizer
from bot.engine.serving.detokenizer import StopStrings
from bot.engine.serving.sampler import Row


@dataclass(eq=False, slots=True)
class Sequence:
    """What the worker knows of a request.

    `limit` is how many tokens the answer may have; `position`, `asked` and `started` are
    the loop's notes: the place in the queue that was told last, when the request came, and
    when the prefill began.
    """

    user: str
    channel: str
    prompt: tuple[int, ...]
    limit: int
    row: Row
    text: StopStrings
    stop_ids: frozenset[int]
    tokens: int = 0  # sampled so far, a stop id included
    last: int = -1
    reason: FinishReason | None = None
    position: int = 0
    asked: float = 0.0
    started: float | None = None

    @classmethod
    def of(cls, request: ChatRequest, prompt: tuple[int, ...], tokenizer: Tokenizer, context: int) -> Sequence:
        """Build it from a request whose prompt is shorter than the context."""
        params, room = request.params, context - len(prompt)
        return cls(
            user=request.user,
            channel=request.channel,
            prompt=prompt,
            limit=room if params.max_tokens is None else min(params.max_tokens, room),
            row=Row.of(params),
            text=StopStrings(tokenizer.detokenizer(), params.stop),
            stop_ids=tokenizer.stop_ids,
        )

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def cached(self) -> int:
        """How many tokens its slot holds: all but the last, which is fed next."""
        return len(self.prompt) + self.tokens - 1 if self.tokens else 0

    @property
    def next_input(self) -> tuple[int, ...]:
        return (self.last,) if self.tokens else self.prompt

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=len(self.prompt), completion_tokens=self.tokens)

    def take(self, token: int) -> str:
        """Add a sampled token; return the text that it completes, often ''.

        Sets `reason` when the answer ends with it.
        """
        self.tokens += 1
        self.last = token
        if token in self.stop_ids:
            self.reason = FinishReason.STOP
            return self.text.finish()
        is_full = self.tokens >= self.limit
        text = self.text.push(token)
        if is_full:
            text += self.text.finish()
        if self.text.stopped:
            self.reason = FinishReason.STOP
        elif is_full:
            self.reason = FinishReason.LENGTH
        return text
