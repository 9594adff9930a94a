"""Sampling with temperature, top-k, top-p and a seed per row."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from bot.domain import SamplingParams
from bot.engine.serving.h2d import to_device_async


@dataclass(frozen=True, eq=False, slots=True)
class SamplerState:
    """Sampling parameters and random generator of one sequence.

    Python's generator, unlike torch's, returns the same numbers for a seed on every device,
    and costs less than a kernel launch.
    """

    params: SamplingParams
    random: Random
    ahead: deque[float] = field(default_factory=deque)  # numbers drawn for drafts that were wrong

    @classmethod
    def of(cls, params: SamplingParams) -> "SamplerState":
        return cls(params, Random(params.seed))

    def draw(self) -> float:
        """Return the next number, at least 0 and below 1."""
        return self.ahead.popleft() if self.ahead else min(self.random.random(), BELOW_ONE)

    def put_back(self, numbers: Sequence[float]) -> None:
        """Return the last numbers drawn: the next ones drawn are these."""
        self.ahead.extendleft(reversed(numbers))


# The largest float32 below 1: multiplied by a sum it stays below the sum.
BELOW_ONE = 1 - 2**-24

# Lower temperatures equal argmax, and would overflow.
MIN_TEMPERATURE = 1e-6

# The likeliest id has no probability before it, so it always passes.
MIN_TOP_P = 1e-9

# Ids beyond a cut that are compared too: 16-bit logits are often equal, those at a cut a few times.
_SPARE = 64


class Sampler:
    """Samples all rows of a step at once; rows are independent of each other.

    Ids from `vocabulary` on have no text and are never sampled.
    """

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._cuts = _Cuts.of((), torch.device("cpu"))

    def sample(self, logits: Tensor, rows: Sequence[SamplerState]) -> list[int | None]:
        """Sample one id per row of `logits` [rows, vocab]; None where a logit is NaN or inf.

        Each row uses exactly one random number, greedy rows too, so that a seed alone
        reproduces an answer.
        """
        return self._sample(logits, rows)[0]

    def verify(
        self, logits: Tensor, rows: Sequence[SamplerState], drafts: Sequence[Sequence[int]]
    ) -> list[list[int | None]]:
        """Sample each row after its last token and after each token of its draft, while the draft is right.

        `logits` is `[rows and drafted tokens, vocab]`.  A drafted token is right if the row samples
        it, with the number that it would use without a draft: drafts change no token.
        Returns one more id per row than drafted tokens were right.
        """
        counts = [len(draft) + 1 for draft in drafts]
        every = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
        ids, numbers = self._sample(logits, every)
        found: list[list[int | None]] = []
        end = 0
        for row, draft, count in zip(rows, drafts, counts, strict=True):
            first, end = end, end + count
            right = 0
            while right < len(draft) and ids[first + right] == draft[right]:
                right += 1
            found.append(ids[first : first + right + 1])
            row.put_back(numbers[first + right + 1 : end])
        return found

    def _sample(self, logits: Tensor, rows: Sequence[SamplerState]) -> tuple[list[int | None], list[float]]:
        """Return the ids and the random numbers that were used."""
        logits = logits[:, : self._vocabulary].float()
        if all(row.params.temperature == 0 for row in rows):
            ids = logits.argmax(-1)
            numbers = _random_numbers(rows)
        else:
            candidates, cumulative, kept = self.candidates(logits, rows)
            total = (cumulative * kept).amax(-1, keepdim=True)
            numbers = _random_numbers(rows)
            threshold = to_device_async(logits.device, numbers)[:, None] * total
            indices = ((cumulative <= threshold) & kept).sum(-1, keepdim=True)
            ids = candidates.gather(-1, indices)[:, 0]
        # The sum is finite only if every logit is.  -1 marks the others in the same tensor:
        # each read from a device synchronises with it.
        sampled: list[int] = torch.where(logits.sum(-1).isfinite(), ids, -1).tolist()
        return [token if token >= 0 else None for token in sampled], numbers

    def candidates(self, logits: Tensor, rows: Sequence[SamplerState]) -> tuple[Tensor, Tensor, Tensor]:
        """Apply temperature, then top-k, then top-p to `logits` [rows, vocab].

        Top-p keeps the smallest set that reaches it, including the id that crosses it, and
        at least one id.

        Returns:
            Ids, likeliest first; cumulative probabilities; and a mask of the ids kept: all
            [rows, candidates].
        """
        cuts = self._cuts = self._cuts if self._cuts.rows == tuple(rows) else _Cuts.of(rows, logits.device)
        width = min(cuts.widest or logits.shape[-1], logits.shape[-1])
        scores, ids = _likeliest(logits, width)
        scores = scores / cuts.temperature
        if cuts.top_k is not None:
            scores = scores.masked_fill(torch.arange(width, device=logits.device) >= cuts.top_k, -torch.inf)
        probabilities = scores.softmax(-1)
        cumulative = probabilities.cumsum(-1)
        return ids, cumulative, cumulative - probabilities < cuts.top_p


def _likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the highest logits of each row and their ids; of equal ones the lowest ids come first.

    The order of topk depends on its width, thus on the other rows' top_k.
    """
    if count + _SPARE >= logits.shape[-1]:
        scores, ids = logits.sort(descending=True, stable=True)
    else:
        found = logits.topk(count + _SPARE, sorted=False).indices.sort().values
        scores, order = logits.gather(-1, found).sort(descending=True, stable=True)
        ids = found.gather(-1, order)
    return scores[:, :count], ids[:, :count]


def _random_numbers(rows: Sequence[SamplerState]) -> list[float]:
    # Called after everything that can run out of memory: a failed step is retried with the same numbers.
    return [row.draw() for row in rows]


@dataclass(frozen=True, slots=True)
class _Cuts:
    """The rows' parameters as columns [rows, 1], cached while the batch does not change."""

    rows: tuple[SamplerState, ...]
    widest: int  # the largest top_k; 0 is the whole vocabulary
    temperature: Tensor
    top_k: Tensor | None  # None if all rows have the same
    top_p: Tensor

    @classmethod
    def of(cls, rows: Sequence[SamplerState], device: torch.device) -> "_Cuts":
        def column(values: list[float] | list[int]) -> Tensor:
            return to_device_async(device, values)[:, None]

        every = [row.params for row in rows]
        # Temperature 0 is top_k = 1; a top_p of 2 is never reached.
        top_k = [1 if params.temperature == 0 else params.top_k for params in every]
        top_p = [max(params.top_p, MIN_TOP_P) if params.top_p < 1 else 2.0 for params in every]
        return cls(
            rows=tuple(rows),
            widest=0 if 0 in top_k else max(top_k, default=0),
            temperature=column([max(params.temperature, MIN_TEMPERATURE) for params in every]),
            top_k=column([k or torch.iinfo(torch.int64).max for k in top_k]) if len(set(top_k)) > 1 else None,
            top_p=column(top_p),
        )
