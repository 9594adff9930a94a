"""Model runs for comparison: greedy, forced, sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.serving.base import Batch

Choose = Callable[[int, Tensor], list[int]]
"""Chooses each row's next token from the step and the logits `[rows, vocab]`."""


@dataclass(frozen=True, slots=True)
class ModelRun:
    logits: Tensor  # [steps, rows, vocab]
    tokens: Tensor  # [rows, steps]


def greedy(_: int, logits: Tensor) -> list[int]:
    chosen: list[int] = logits.argmax(-1).tolist()
    return chosen


def run(model: ChatGLMForServing, prompts: Sequence[Sequence[int]], steps: int, choose: Choose = greedy) -> ModelRun:
    """Prefill the prompts as one batch, then decode the chosen tokens."""
    slots = tuple(range(len(prompts)))
    starts = [len(prompt) for prompt in prompts]
    logits = [model.forward(Batch(slots, tuple(map(tuple, prompts)), (0,) * len(slots)))]
    tokens = [choose(0, logits[0])]
    for step in range(1, steps):
        logits.append(model.forward(Batch(slots, tuple((token,) for token in tokens[-1]), tuple(starts))))
        tokens.append(choose(step, logits[-1]))
        starts = [start + 1 for start in starts]
    return ModelRun(torch.stack(logits), torch.tensor(tokens).T)
