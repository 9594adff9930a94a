"""Padded batches of rows, in an order that a seed reproduces at any step."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.layout import layout_of
from bot.engine.tuning.rows import Row

IGNORED = -100

# Batches among which rows are sorted by length: with more, padding shrinks little.
_BUCKET = 32


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows padded on the right to the longest.

    `ids` and `targets` are int64 `[rows, tokens]`, `positions` int64 `[rows, tokens, channels]`,
    `mask` bool `[rows, tokens, tokens]`, True where masked.  `targets` are the next ids from
    <sop> on, IGNORED elsewhere.  `tokens` counts the ids of the rows, without padding.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    tokens: int

    def to(self, device: torch.device) -> "RowBatch":
        ids, positions, mask, targets = (
            tensor.to(device) for tensor in (self.ids, self.positions, self.mask, self.targets)
        )
        return RowBatch(ids, positions, mask, targets, self.tokens)


def pad(rows: Sequence[Row], config: ChatGLMConfig, tokens: int = 0) -> RowBatch:
    """Pad rows to the longest, or to `tokens`; pads come last, so no real token attends to them."""
    # The last id is a target only.
    width = max(tokens, *map(len, rows)) - 1
    ids = torch.full((len(rows), width), config.pad_token_id)
    targets = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        whole = torch.tensor(row.ids)
        ids[i, : len(row) - 1] = whole[:-1]
        # [gMASK] predicts <sop>, as in the published training.
        targets[i, row.start - 1 : len(row) - 1] = whole[row.start :]
    layouts = [layout_of(row.ids, config) for row in rows]
    positions = torch.stack([layout.positions(width) for layout in layouts])
    mask = torch.stack([layout.mask(width) for layout in layouts])
    return RowBatch(ids, positions, mask, targets, sum(map(len, rows)))


def seed_of(*parts: object) -> int:
    """Derive a seed of 63 bits, so that no generator's state needs to be saved.

    >>> seed_of(42, "dropout", 1) == seed_of(42, "dropout", 1) != seed_of(42, "dropout", 2)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def epoch_order(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return an epoch's micro-batches, as indices of rows; each row is in one of them.

    Rows are shuffled, then sorted by length within buckets, so that little is padded.
    """
    rng = Random(seed_of(seed, "order", epoch))
    order = list(range(len(lengths)))
    rng.shuffle(order)
    groups: list[list[int]] = []
    for first in range(0, len(order), _BUCKET * size):
        bucket = sorted(order[first : first + _BUCKET * size], key=lengths.__getitem__)
        groups += [bucket[at : at + size] for at in range(0, len(bucket), size)]
    rng.shuffle(groups)
    return groups


def micro_batches(lengths: Sequence[int], size: int, seed: int, skip: int) -> Iterator[list[int]]:
    """Yield micro-batches, epoch after epoch without end, after the first `skip`."""
    epoch, skip = divmod(skip, -(-len(lengths) // size))
    while True:
        yield from epoch_order(lengths, size, seed, epoch)[skip:]
        epoch, skip = epoch + 1, 0
