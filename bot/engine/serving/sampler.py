"""The next token of every row: temperature, top-k, top-p, a seed each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from bot.domain import SamplingParams


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """How one sequence is sampled.

    Python's generator and not torch's: it draws the same numbers for a seed on every
    device, and costs nothing beside a kernel launch.
    """

    params: SamplingParams
    random: Random

    @classmethod
    def of(cls, params: SamplingParams) -> Row:
        return cls(params, Random(params.seed))


class Sampler:
    """Draws all rows of a step at once; a row's draw does not depend on its neighbours.

    Ids from `vocabulary` on have no text and are never drawn.
    """

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._cuts = _Cuts.of((), torch.device("cpu"))

    def draw(self, logits: Tensor, rows: Sequence[Row]) -> list[int | None]:
        """Draw one id per row of `logits` [rows, vocab]; None where a logit is NaN or inf.

        Each row takes exactly one number from its generator, greedy ones too, so an
        answer can be replayed from its seed alone.
        """
        logits = logits[:, : self._vocabulary].float()
        numbers = [row.random.random() for row in rows]
        if all(row.params.temperature == 0 for row in rows):
            ids = logits.argmax(-1)
        else:
            probabilities, candidates = self.distribution(logits, rows)
            ids = _search(probabilities, candidates, torch.tensor(numbers, device=logits.device))
        # A sum is finite only where every logit is.  One tensor carries both answers,
        # because reading a device's memory waits for the device.
        drawn: list[int] = torch.where(logits.sum(-1).isfinite(), ids, -1).tolist()
        return [token if token >= 0 else None for token in drawn]

    def distribution(self, logits: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Cut `logits` [rows, vocab] down to what may be drawn.

        In this order: temperature; the `top_k` likeliest; of those the smallest set
        whose probability reaches `top_p`, the id that crosses the border included and
        one id at least.

        Returns:
            Probabilities and their ids, both [rows, candidates], likeliest first;
            what was cut off has probability 0.
        """
        cuts = self._cuts = self._cuts if self._cuts.rows == tuple(rows) else _Cuts.of(rows, logits.device)
        width = min(cuts.widest or logits.shape[-1], logits.shape[-1])
        scores, ids = torch.topk(logits, width)
        # The largest score becomes 0 first: a tiny temperature then gives -inf, never inf - inf.
        scores = (scores - scores[:, :1]) / cuts.temperature
        scores = scores.masked_fill(torch.arange(width, device=logits.device) >= cuts.top_k, -torch.inf)
        probabilities = scores.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        kept = before < cuts.top_p
        kept[:, 0] = True
        probabilities = probabilities * kept
        return probabilities / probabilities.sum(-1, keepdim=True), ids


@dataclass(frozen=True, slots=True)
class _Cuts:
    """The rows' parameters as columns [rows, 1]; kept from step to step while the batch stays."""

    rows: tuple[Row, ...]
    widest: int  # candidates that the most generous row looks at; 0 is all
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> _Cuts:
        every = [row.params for row in rows]
        # Temperature 0 is the likeliest id alone; switched off is a cut beyond everything.
        top_k = [1 if params.temperature == 0 else params.top_k for params in every]
        top_p = [params.top_p if params.top_p < 1 else 2.0 for params in every]
        return cls(
            rows=tuple(rows),
            widest=0 if 0 in top_k else max(top_k, default=0),
            temperature=torch.tensor([params.temperature or 1.0 for params in every], device=device)[:, None],
            top_k=torch.tensor([k or torch.iinfo(torch.int64).max for k in top_k], device=device)[:, None],
            top_p=torch.tensor(top_p, device=device)[:, None],
        )


def _search(probabilities: Tensor, ids: Tensor, numbers: Tensor) -> Tensor:
    """Find the id at which the cumulative probability passes each number in [0, 1)."""
    reached = probabilities.cumsum(-1)
    places = (reached <= numbers[:, None] * reached[:, -1:]).sum(-1)
    # A number just below 1 may round up to it: the last candidate that may be drawn takes it.
    last = ((probabilities > 0).sum(-1) - 1).clamp(min=0)
    return ids.gather(-1, torch.minimum(places, last)[:, None])[:, 0]
