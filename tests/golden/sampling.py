"""Golden items of sampling: distributions, and runs sampled with torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bot.domain import SamplingParams
from bot.engine.serving.sampler import Sampler, SamplerState
from tests.golden.report import Golden
from tests.golden.runs import Choose, run

CHAT = SamplingParams(temperature=0.95, top_k=50, top_p=0.7)
# The set does not define "hot": these reproduce the published tokens of the first set.
_HOT = tuple(
    SamplingParams(temperature=temperature, top_k=50, top_p=top_p)
    for temperature, top_p in ((3.0, 1.0), (3.0, 0.95), (3.5, 0.95), (4.0, 0.95), (4.0, 0.9))
)
_NOT_OURS = {
    "sampling.beam4_tokens": "chat does not use beam search, and neither do we",
    "sampling.greedy_reppen1.3_tokens": "chat has no repetition penalty, and neither do we",
    "sampling.nan_batch.probs": "deliberate: a row with NaN ends with an error, other rows are not affected",
    "sampling.nan_batch.scores_out": "deliberate: see sampling.nan_batch.probs",
}


def check_all(golden: Golden) -> None:
    golden.run("sampling", partial(_distributions, golden))
    golden.run("sampling, drawn", partial(_draws, golden))
    for name in golden.numbers:
        if name in _NOT_OURS:
            golden.note(name, _NOT_OURS[name])


def distribution(logits: Tensor, params: SamplingParams) -> Tensor:
    """Return the probabilities of all ids, `[rows, vocab]`."""
    ids, cumulative, kept = Sampler(logits.shape[1]).candidates(logits, [SamplerState.of(params) for _ in logits])
    each = cumulative.diff(dim=1, prepend=torch.zeros(len(logits), 1)) * kept
    return torch.zeros_like(logits).scatter(1, ids, each / each.sum(1, keepdim=True))


def _distributions(golden: Golden) -> None:
    for name in ("raw", "flat"):
        if f"sampling.{name}.probs" in golden.numbers:
            logits = golden.need(f"sampling.{name}.logits_in")
            golden.note(f"sampling.{name}.logits_in", "input")
            golden.close(f"sampling.{name}.probs", partial(_of, logits, CHAT), 1e-5)
    if any(name.startswith("sampling.very_flat") for name in golden.numbers):
        # By the set's README: the same logits, times 0.05.
        logits = golden.need("sampling.raw.logits_in") * 0.05
        only_top_k = SamplingParams(temperature=1.0, top_k=50, top_p=1.0)
        golden.close("sampling.very_flat.probs", partial(_of, logits, CHAT), 1e-5)
        golden.close("sampling.very_flat_top_p1.probs", partial(_of, logits, only_top_k), 1e-5)


def _of(logits: Tensor, params: SamplingParams) -> Tensor:
    return distribution(logits[None], params)[0]


def sampled_by_torch(params: SamplingParams, seed: int) -> Choose:
    """Sample like the reference, from our distribution."""
    torch.manual_seed(seed)

    def choose(_: int, logits: Tensor) -> list[int]:
        tokens: list[int] = torch.multinomial(distribution(logits, params), 1)[:, 0].tolist()
        return tokens

    return choose


def _draws(golden: Golden) -> None:
    ids = golden.prompt("p0")
    for found in golden.names(r"sampling\.seed(\d+)(_hot)?_tokens"):
        name, wanted = found[0], golden.numbers[found[0]].flatten()
        for params in _HOT if found[2] else (CHAT,):
            tokens = run(golden.model, [ids], len(wanted), sampled_by_torch(params, int(found[1]))).tokens[0]
            if not found[2] or torch.equal(tokens, wanted):
                golden.equal(name, tokens.clone)
                break
        else:
            golden.note(name, "the set does not name its temperature, and none that was tried gives these tokens")
