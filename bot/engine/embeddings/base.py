"""The seams of embeddings: `Embedder` for callers, `Encoder` for a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors, float32 `[texts, dimensions]`, and the number of tokens that were read."""

    vectors: "NDArray[np.float32]"
    tokens: int


class Embedder(Protocol):
    """Turns texts into vectors; safe to call from many tasks at once."""

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    async def embed(self, texts: Sequence[str], *, normalize: bool | None = None) -> Embeddings:
        """Return the vectors in the order of the texts; those of a cancelled call are not computed.

        A text is cut at the model's limit.  `normalize` makes every vector's length 1; None is
        the default of the settings.

        Raises:
            EngineBusy: The queue is full.
            EngineFailed: The model failed on these texts.
        """
        ...


class Encoder(Protocol):
    """A model in one thread: token ids to vectors."""

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    @property
    def normalizes(self) -> bool:
        """Return whether the model is defined with vectors of length 1."""
        ...

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text with its special tokens, cut at the model's limit."""
        ...

    def encode(self, batch: Sequence[Sequence[int]]) -> "NDArray[np.float32]":
        """Return float32 `[texts, dimensions]`."""
        ...
