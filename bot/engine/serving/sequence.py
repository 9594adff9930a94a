"""State of one request in the serving loop."""

from dataclasses import dataclass

from bot.domain import ChatRequest, FinishReason, Usage
from bot.engine.serving.base import Tokenizer
from bot.engine.serving.detokenizer import StopStrings
from bot.engine.serving.lookup import PromptLookup
from bot.engine.serving.sampler import SamplerState


@dataclass(eq=False, slots=True)
class Sequence:
    """Prompt, answer and sampler of a request.

    `position`, `enqueued_at` and `prefill_started_at` belong to the serving loop: the queue
    position last reported, and times of its clock.  `lookup` is the runner's, None without drafts.
    """

    user: str
    channel: str
    prompt: tuple[int, ...]
    limit: int  # tokens of the answer
    sampler: SamplerState
    text: StopStrings
    stop_ids: frozenset[int]
    prefix: str = ""
    tokens: int = 0  # sampled so far, a stop id included
    last: int = -1
    reason: FinishReason | None = None
    position: int = 0
    enqueued_at: float = 0.0
    prefill_started_at: float | None = None
    lookup: PromptLookup | None = None

    @classmethod
    def of(cls, request: ChatRequest, prompt: tuple[int, ...], tokenizer: Tokenizer, context: int) -> "Sequence":
        """Create it from a request whose prompt is shorter than the context."""
        params, room = request.params, context - len(prompt)
        return cls(
            user=request.user,
            channel=request.channel,
            prompt=prompt,
            limit=room if params.max_tokens is None else min(params.max_tokens, room),
            sampler=SamplerState.of(params),
            text=StopStrings(tokenizer.detokenizer(), params.stop),
            stop_ids=tokenizer.stop_ids,
            prefix=request.prefix,
        )

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def num_cached(self) -> int:
        """Tokens in the slot: all but the last, which is the next input."""
        return len(self.prompt) + self.tokens - 1 if self.tokens else 0

    @property
    def next_input(self) -> tuple[int, ...]:
        return (self.last,) if self.tokens else self.prompt

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=len(self.prompt), completion_tokens=self.tokens)

    def append_token(self, token: int) -> str:
        """Append a sampled token; return the text it completes, often ''.

        Sets `reason` if the token ends the answer.
        """
        self.tokens += 1
        self.last = token
        if self.lookup is not None:
            self.lookup.append(token)
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
