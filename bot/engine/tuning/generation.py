"""Answers to many prompts, in batches."""

from collections import deque
from collections.abc import Callable, Sequence

import torch

from bot.domain import SamplingParams
from bot.engine.serving.base import Batch, CausalLM
from bot.engine.serving.sampler import Sampler, SamplerState
from bot.engine.tuning.batches import seed_of
from bot.engine.tuning.rows import Notice


@torch.inference_mode()
def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    vocabulary: int,
    stop_ids: frozenset[int],
    max_tokens: int,
    sampling: SamplingParams,
    seed: int,
    notice: Notice = lambda done, total: None,
) -> list[list[int]]:
    """Return the ids of each answer, without the stop id.

    Each row has its own seed, so an answer does not depend on the batch.  A finished row's slot is
    taken by the next prompt.  A row ends early at the model's context length, or at logits that are
    no numbers.
    """
    sampler = Sampler(vocabulary)
    states = [SamplerState.of(_seeded(sampling, seed_of(seed, row))) for row in range(len(prompts))]
    answers: list[list[int]] = [[] for _ in prompts]
    waiting, free = deque(range(len(prompts))), list(range(model.slots))
    running: dict[int, int] = {}  # the slot of each row

    def step(rows: Sequence[int], tokens: Callable[[int], Sequence[int]], start: Callable[[int], int]) -> None:
        batch = Batch(
            tuple(running[row] for row in rows),
            tuple(tuple(tokens(row)) for row in rows),
            tuple(start(row) for row in rows),
        )
        sampled = sampler.sample(model.forward(batch), [states[row] for row in rows])
        for row, token in zip(rows, sampled, strict=True):
            if token is not None and token not in stop_ids:
                answers[row].append(token)
                if len(answers[row]) < max_tokens and len(prompts[row]) + len(answers[row]) < model.context_length:
                    continue
            free.append(running.pop(row))

    while waiting or running:
        if waiting and free:
            new = [waiting.popleft() for _ in range(min(len(waiting), len(free)))]
            running.update((row, free.pop()) for row in new)
            step(new, prompts.__getitem__, lambda row: 0)
        elif running:
            step(list(running), lambda row: answers[row][-1:], lambda row: len(prompts[row]) + len(answers[row]) - 1)
        notice(len(prompts) - len(waiting) - len(running), len(prompts))
    return answers


def _seeded(params: SamplingParams, seed: int) -> SamplingParams:
    return SamplingParams(params.temperature, params.top_k, params.top_p, seed=seed)
