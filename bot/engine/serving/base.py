"""Protocols between the serving loop and a model: CausalLM, Tokenizer, Detokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bot.domain import ChatMessage, Tokens

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Input of one step, one row per sequence.

    `slots[i]` is row i's slot in the KV cache, `tokens[i]` its input ids, `starts[i]` the
    number of tokens already cached.  A step is either a prefill (all starts are 0, each
    row is a whole prompt) or a decode (one token per row, and after it a draft of the next
    ones where the model takes drafts).  `prefixes[i]` is the name of row i's P-Tuning prefix;
    it applies from the prefill on, and empty all rows have the model's.
    """

    slots: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    prefixes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def is_prefill(self) -> bool:
        return self.starts[0] == 0


class CausalLM(Protocol):
    """A language model with its own KV cache."""

    @property
    def context_length(self) -> int:
        """Tokens per slot, prompt and answer together."""
        ...

    @property
    def slots(self) -> int:
        """Number of sequences the cache holds."""
        ...

    def forward(self, batch: Batch) -> "Tensor":
        """Run one step; return the next token's logits, float32 `[len(batch), vocab]`.

        A prefill overwrites its slots.  A decode has logits for each token of a row with a
        draft, `[tokens of all rows, vocab]`, and tokens cached from `starts[i]` on are replaced.
        """
        ...


class Detokenizer(Protocol):
    """Incremental detokenizer of one answer; returned text is final.

    The texts returned by `push` and `finish`, joined, are the whole answer.
    """

    def push(self, token: int) -> str:
        """Add an id; return the text that no later id can change, often ''."""
        ...

    def finish(self) -> str:
        """Return the text held back so far."""
        ...


class Tokenizer(Protocol):
    """Prompt format, encoding and decoding of a model."""

    @property
    def vocabulary(self) -> int:
        """Number of ids; higher ids in the logits are never sampled."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer; they are not part of its text."""
        ...

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the prompt ids of a chat."""
        ...

    def tokenize(self, text: str) -> Tokens:
        """Split any text; the ids contain no control id."""
        ...

    def detokenizer(self) -> Detokenizer: ...
