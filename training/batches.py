"""Padded training batches, and logits of their answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.layout import Layout, layout_of
from bot.engine.chatglm.model import ChatGLM
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from training.examples import Example

BATCH_TOKENS = 3072
IGNORED = -100


class EagerAttention:
    """Eager attention: on a CPU its backward pass takes a third of the fused one's time."""

    def __init__(self, mask: Tensor) -> None:
        self._bias = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(mask, -1e4)[:, None]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query @ key.transpose(2, 3)
        weights = torch.add(self._bias.to(scores.dtype), scores, alpha=query.shape[-1] ** -0.5).softmax(-1)
        return weights @ value


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """A conversation as ids: the prompt, then the answer and <eop>."""

    dialogue: int
    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """`ids` and `targets` `[rows, tokens]`, `positions` `[rows, tokens, 2]`, `mask` `[rows, tokens, tokens]`."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor  # the next id within answers, IGNORED elsewhere


def tokenize_example(example: Example, tokenizer: ChatGLMTokenizer) -> TokenizedExample:
    return TokenizedExample(
        example.dialogue, tokenizer.prompt(example.messages), [*tokenizer.encode(example.answer), *tokenizer.stop_ids]
    )


def batch_of(rows: Sequence[TokenizedExample], config: ChatGLMConfig) -> TrainingBatch:
    """Pad rows on the right, which no real token attends to."""
    tokens = max(map(len, rows)) - 1
    ids = torch.full((len(rows), tokens), config.pad_token_id)
    targets = torch.full((len(rows), tokens), IGNORED)
    layouts: list[Layout] = []
    for i, row in enumerate(rows):
        whole = torch.tensor(row.prompt + row.answer)
        ids[i, : len(row) - 1] = whole[:-1]
        targets[i, len(row.prompt) - 1 : len(row) - 1] = whole[len(row.prompt) :]
        layouts.append(layout_of(row.prompt, config))
    positions = torch.stack([layout.positions(tokens) for layout in layouts])
    mask = torch.stack([layout.mask(tokens) for layout in layouts])
    return TrainingBatch(ids, positions, mask, targets)


def batches(
    rows: Sequence[TokenizedExample], config: ChatGLMConfig, rng: Random, budget: int = BATCH_TOKENS
) -> Iterator[tuple[TrainingBatch, list[TokenizedExample]]]:
    """Group rows of similar length, at most `budget` tokens including padding."""
    groups: list[list[TokenizedExample]] = []
    for start in range(0, len(rows), 512):
        group: list[TokenizedExample] = []
        for row in sorted(rows[start : start + 512], key=len):
            if group and (len(group) + 1) * len(row) > budget:
                groups.append(group)
                group = []
            group.append(row)
        groups.append(group)
    rng.shuffle(groups)
    for group in groups:
        yield batch_of(group, config), group


def answer_logits(network: ChatGLM, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
    """Return logits `[answer tokens, vocab]` and their targets."""
    hidden = network.hidden(batch.ids, batch.positions, EagerAttention(batch.mask))
    wanted = batch.targets != IGNORED
    return network.logits(hidden[wanted]), batch.targets[wanted]
