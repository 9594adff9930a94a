"""The next token of every row: temperature, top-k, top-p, a seed each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from bot.domain import SamplingParams
from bot.engine.serving.h2d import to_device_async


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


# float32's last number before 1: times a sum it stays below that sum.
BELOW_ONE = 1 - 2**-24

# Colder is argmax already, and would overflow.
COLDEST = 1e-6

# Nothing at all is before the likeliest id, so it is always kept.
LEAST = 1e-9


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
        if all(row.params.temperature == 0 for row in rows):
            ids = logits.argmax(-1)
            _numbers(rows)
        else:
            candidates, cumulative, kept = self.candidates(logits, rows)
            total = (cumulative * kept).amax(-1, keepdim=True)
            sought = to_device_async(logits.device, _numbers(rows))[:, None] * total
            places = ((cumulative <= sought) & kept).sum(-1, keepdim=True)
            ids = candidates.gather(-1, places)[:, 0]
        # A sum is finite only where every logit is.  One tensor carries both answers,
        # because reading a device's memory waits for the device.
        drawn: list[int] = torch.where(logits.sum(-1).isfinite(), ids, -1).tolist()
        return [token if token >= 0 else None for token in drawn]

    def candidates(self, logits: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Cut `logits` [rows, vocab] down to what may be drawn.

        In this order: temperature; the `top_k` likeliest; of those the smallest set
        whose probability reaches `top_p`, the id that crosses the border included and
        one id at least.

        Returns:
            Ids, likeliest first; the probability of each and all before it; and which
            are left after the cuts: all [rows, candidates].
        """
        cuts = self._cuts = self._cuts if self._cuts.rows == tuple(rows) else _Cuts.of(rows, logits.device)
        width = min(cuts.widest or logits.shape[-1], logits.shape[-1])
        scores, ids = torch.topk(logits, width)
        scores = scores / cuts.temperature
        if cuts.top_k is not None:
            scores = scores.masked_fill(torch.arange(width, device=logits.device) >= cuts.top_k, -torch.inf)
        probabilities = scores.softmax(-1)
        cumulative = probabilities.cumsum(-1)
        return ids, cumulative, cumulative - probabilities < cuts.top_p


def _numbers(rows: Sequence[Row]) -> list[float]:
    """Draw a number for each row; after all that may run out of memory, for a step that failed is run again."""
    return [min(row.random.random(), BELOW_ONE) for row in rows]


@dataclass(frozen=True, slots=True)
class _Cuts:
    """The rows' parameters as columns [rows, 1]; kept from step to step while the batch stays."""

    rows: tuple[Row, ...]
    widest: int  # candidates that the most generous row looks at; 0 is all
    temperature: Tensor
    top_k: Tensor | None  # None where `widest` is every row's
    top_p: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> _Cuts:
        def column(values: list[float] | list[int]) -> Tensor:
            return to_device_async(device, values)[:, None]

        every = [row.params for row in rows]
        # Temperature 0 is the likeliest id alone; a cut that is switched off lies beyond everything.
        top_k = [1 if params.temperature == 0 else params.top_k for params in every]
        top_p = [max(params.top_p, LEAST) if params.top_p < 1 else 2.0 for params in every]
        return cls(
            rows=tuple(rows),
            widest=0 if 0 in top_k else max(top_k, default=0),
            temperature=column([max(params.temperature, COLDEST) for params in every]),
            top_k=column([k or torch.iinfo(torch.int64).max for k in top_k]) if len(set(top_k)) > 1 else None,
            top_p=column(top_p),
        )
