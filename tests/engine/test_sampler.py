"""The sampler: published distributions, seeds, and independent rows."""

import math
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from bot.domain import SamplingParams
from bot.engine.serving.sampler import Sampler, SamplerState

GOLDENS = Path(__file__).parents[1] / "data" / "golden" / "goldens.safetensors"
DEFAULTS = SamplingParams()
GREEDY = SamplingParams(temperature=0)


def golden(name: str) -> Tensor:
    with safe_open(GOLDENS, "pt") as file:
        tensor: Tensor = file.get_tensor(f"sampling.{name}")
    return tensor


def probabilities(logits: Tensor, *params: SamplingParams) -> Tensor:
    """Return the distribution over the vocabulary, one row for each of `params`."""
    logits = logits.expand(len(params), -1)
    ids, cumulative, kept = Sampler(logits.shape[-1]).candidates(logits, [SamplerState.of(each) for each in params])
    found = cumulative.diff(prepend=torch.zeros(len(params), 1)) * kept
    return torch.zeros(logits.shape).scatter(1, ids, found / found.sum(-1, keepdim=True))


def defined(logits: list[float], params: SamplingParams) -> list[float]:
    """Reference implementation: one row, plain Python."""
    if params.temperature == 0:
        return [float(i == logits.index(max(logits))) for i in range(len(logits))]
    scores = [(logit - max(logits)) / params.temperature for logit in logits]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: params.top_k or None]
    weights = {i: math.exp(scores[i]) for i in order}
    total = math.fsum(weights.values())
    kept: list[int] = []
    reached = 0.0
    for i in order:
        if kept and params.top_p < 1 and reached >= params.top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    total = math.fsum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(scores))]


@pytest.mark.parametrize("name", ["raw", "flat"])
def test_the_chat_defaults_give_the_published_distribution(name: str) -> None:
    torch.testing.assert_close(
        probabilities(golden(f"{name}.logits_in"), DEFAULTS)[0], golden(f"{name}.probs"), rtol=1e-4, atol=1e-6
    )


def test_a_flat_distribution_is_truncated_like_the_published_one() -> None:
    logits = golden("raw.logits_in") * 0.05
    found = probabilities(logits, DEFAULTS, SamplingParams(temperature=1, top_p=1, top_k=50))
    torch.testing.assert_close(found[0], golden("very_flat.probs"), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1], golden("very_flat_top_p1.probs"), rtol=1e-4, atol=1e-6)


many_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 1e-4, 0.3, 0.95, 2.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.0, 0.013, 0.31, 0.737, 0.97, 1.0]),
)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.lists(many_params, min_size=1, max_size=6))
def test_each_row_uses_its_own_parameters(seed: int, params: list[SamplingParams]) -> None:
    logits = torch.randn(len(params), 9, generator=torch.Generator().manual_seed(seed)) * 3
    for row, scores, each in zip(probabilities(logits, *params), logits.tolist(), params, strict=True):
        torch.testing.assert_close(row, torch.tensor(defined(scores, each)), rtol=1e-4, atol=1e-6)


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -9.0]]).expand(20_000, -1)
    params = SamplingParams(temperature=1.5, top_k=4, top_p=0.95)
    rows = [SamplerState.of(SamplingParams(1.5, 4, 0.95, seed=seed)) for seed in range(20_000)]
    drawn = torch.tensor(Sampler(5).sample(logits, rows))
    shares = torch.bincount(drawn, minlength=5) / len(rows)
    torch.testing.assert_close(shares, torch.tensor(defined(logits[0].tolist(), params)), rtol=0, atol=0.015)


def test_temperature_zero_is_greedy_beside_sampled_rows() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    hot = SamplingParams(temperature=2, top_k=0, top_p=1)
    best = logits.argmax(-1).tolist()
    assert Sampler(50).sample(logits, [SamplerState.of(GREEDY)] * 3) == best
    for _ in range(20):
        drawn = Sampler(50).sample(logits, [SamplerState.of(GREEDY), SamplerState.of(hot), SamplerState.of(GREEDY)])
        assert (drawn[0], drawn[2]) == (best[0], best[2])


def test_a_seed_gives_the_same_answer_in_any_batch() -> None:
    steps = torch.randn(30, 1, 40, generator=torch.Generator().manual_seed(2))
    params = SamplingParams(seed=7, top_k=0, top_p=1)

    row, sampler = SamplerState.of(params), Sampler(40)
    alone = [sampler.sample(logits, [row])[0] for logits in steps]

    row, sampler, neighbours = SamplerState.of(params), Sampler(40), Random(3)
    beside = []
    for logits in steps:
        others = [SamplerState.of(neighbours.choice([DEFAULTS, GREEDY])) for _ in range(neighbours.randrange(4))]
        noise = torch.randn(len(others), 40)
        beside.append(sampler.sample(torch.cat([noise, logits]), [*others, row])[-1])
    assert alone == beside


@pytest.mark.parametrize("vocabulary", [90, 3000, 130_344])
def test_equal_logits_are_ordered_alike_beside_any_parameters(vocabulary: int) -> None:
    exact = torch.randn(8, vocabulary, generator=torch.Generator().manual_seed(5)) * 3
    logits = exact.bfloat16().float()  # rounding makes some equal
    logits[:, 60:70] = 20.0
    for each in GREEDY, SamplingParams(top_k=1), SamplingParams(top_k=7, top_p=1), DEFAULTS:
        params = SamplingParams(each.temperature, each.top_k, each.top_p, seed=11)
        alone = Sampler(vocabulary).sample(logits, [SamplerState.of(params) for _ in logits])
        if each.top_k == 1 or each is GREEDY:
            assert alone == [60] * len(logits)
        for other in GREEDY, SamplingParams(top_k=23), SamplingParams(top_k=0, top_p=1):
            rows = [row for _ in logits for row in (SamplerState.of(params), SamplerState.of(other))]
            beside = Sampler(vocabulary).sample(logits.repeat_interleave(2, 0), rows)
            assert beside[::2] == alone


def test_different_seeds_give_different_answers() -> None:
    logits = torch.zeros(1, 1000)
    flat = [SamplerState.of(SamplingParams(top_k=0, top_p=1, seed=seed)) for seed in range(10)]
    assert len({Sampler(1000).sample(logits, [row])[0] for row in flat}) > 5
    assert SamplerState.of(DEFAULTS).random.random() != SamplerState.of(DEFAULTS).random.random()


@pytest.mark.parametrize("params", [DEFAULTS, GREEDY, SamplingParams(top_k=0, top_p=1, temperature=2)])
def test_ids_without_text_are_never_sampled(params: SamplingParams) -> None:
    logits = torch.zeros(64, 20)
    logits[:, 16:] = 100.0
    drawn = Sampler(16).sample(logits, [SamplerState.of(params)] * 64)
    assert all(token is not None and token < 16 for token in drawn)


@pytest.mark.parametrize("params", [DEFAULTS, GREEDY])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_with_nan_or_inf_gives_none_and_does_not_affect_others(params: SamplingParams, bad: float) -> None:
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(4))
    logits[:, 5] += 50
    broken = logits.clone()
    broken[1, 7] = bad
    assert Sampler(30).sample(broken, [SamplerState.of(params)] * 3) == [5, None, 5]
    broken[1] = bad
    assert Sampler(30).sample(broken, [SamplerState.of(params)] * 3) == [5, None, 5]


def test_the_largest_random_number_still_samples_a_kept_id() -> None:
    class Highest(Random):
        def random(self) -> float:
            return 1 - 2**-53

    logits = torch.tensor([[0.0, 5.0, 4.9, -3.0]])
    row = SamplerState(SamplingParams(temperature=1, top_k=0, top_p=0.8), Highest())
    assert Sampler(4).sample(logits, [row]) == [2]


def test_half_precision_logits_are_sampled_in_float32() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.bfloat16)
    assert Sampler(3).sample(logits, [SamplerState.of(GREEDY)]) == [1]
    assert Sampler(3).sample(logits, [SamplerState.of(SamplingParams(top_p=0.1))]) == [1]
