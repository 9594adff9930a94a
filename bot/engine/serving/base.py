"""What the serving loop asks of a model: CausalLM, Tokenizer, Detokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bot.domain import ChatMessage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step feeds the model, a row per sequence.

    `slots[i]` is where row i keeps its keys and values, `tokens[i]` what it is fed,
    `starts[i]` how many tokens its slot holds already.  A step is either a prefill
    (each start is 0 and each row is a whole prompt) or a decode (one token a row).
    """

    slots: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def is_prefill(self) -> bool:
        return self.starts[0] == 0


class CausalLM(Protocol):
    """A model that lives on one device and keeps its own key-value cache."""

    @property
    def context_length(self) -> int:
        """Tokens that fit one slot: prompt and answer together."""
        ...

    @property
    def slots(self) -> int:
        """Sequences that can be in the cache at once."""
        ...

    def forward(self, batch: Batch) -> Tensor:
        """Run one step; return the next token's logits, float32 `[len(batch), vocab]`.

        A prefill forgets whatever its slots held before.
        """
        ...


class Detokenizer(Protocol):
    """One answer's ids to text; what it has returned never changes.

    The texts returned by `push` and `finish`, joined, are the whole answer.
    """

    def push(self, token: int) -> str:
        """Take the next id; return the text that no later id can change, often ''."""
        ...

    def finish(self) -> str:
        """Return what was held back."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back, and the prompt a model was trained on."""

    @property
    def vocabulary(self) -> int:
        """Ids from here on have no text and are never sampled."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer; they are not part of its text."""
        ...

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Turn a chat into the ids the model is fed."""
        ...

    def detokenizer(self) -> Detokenizer: ...
