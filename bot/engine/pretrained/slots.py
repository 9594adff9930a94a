"""Attention of the library's models over slots: their layers call it where they would call torch's.

A step's tokens stand end to end in one row, whatever sequences they belong to; only what is
here knows where each begins and ends.  So nothing is padded, and prompts and answers of
different lengths share a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from bot.engine.serving.base import Batch

# What a model's config calls this way to attend.
NAME = "slots"


class Scoring(NamedTuple):
    """How a layer wants its scores: what its configuration says beside the tensors."""

    scaling: float
    window: int | None  # tokens that a query sees, itself included; None is all before it
    softcap: float | None
    sinks: Tensor | None  # `[heads]`: a score for looking nowhere

    @property
    def is_plain(self) -> bool:
        """Whether torch's fused attention computes it."""
        return self.softcap is None and self.sinks is None


class Step(Protocol):
    """One step's way to attend, told to the network as `slots`."""

    windows: set[int]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Keep keys and values and mix; all are `[1, heads, tokens, head_dim]`, heads of keys may be fewer."""
        ...


class SlotCache:
    """Keys and values, `[slots, heads, capacity, head_dim]` a layer; each is made when its shape is seen."""

    def __init__(self, slots: int, capacity: int) -> None:
        self._slots = slots
        self._capacity = capacity
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._ends = [0] * slots

    def sized(self, slots: int, capacity: int) -> SlotCache:
        """Make an empty one of another size, with all of its room, for layers as this one has seen."""
        other = SlotCache(slots, capacity)
        for number, (keys, values) in self._layers.items():
            other.layer(number, keys, values)
        return other

    def bytes(self, slots: int, capacity: int) -> int:
        """How many a cache of this size would take."""
        held = (room.numel() * room.itemsize for layer in self._layers.values() for room in layer)
        return sum(held) * slots * capacity // (self._slots * self._capacity)

    def step(self, batch: Batch) -> Step:
        """Make the next step, of one row: the batch's tokens end to end; a decode's slots must ascend."""
        if not batch.is_prefill:
            for slot, start in zip(batch.slots, batch.starts, strict=True):
                self._ends[slot] = max(self._ends[slot], start + 1)
            return _Decode(self, batch.slots, batch.starts)
        prompts: list[_Prompt] = []
        sizes = [len(ids) for ids in batch.tokens]
        for slot, size, end in zip(batch.slots, sizes, accumulate(sizes), strict=True):
            prompts.append(_Prompt(slice(end - size, end), slot, size, self._ends[slot]))
            self._ends[slot] = size
        return _Prefill(self, prompts)

    def layer(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's keys and values, with room for such as these."""
        if number not in self._layers:
            self._layers[number] = (self._room(key), self._room(value))
        return self._layers[number]

    def _room(self, like: Tensor) -> Tensor:
        # Zeros, because a masked key may be anything but NaN.
        shape = (self._slots, like.shape[1], self._capacity, like.shape[3])
        if like.device.type != "cpu":
            return torch.zeros(shape, dtype=like.dtype, device=like.device)
        # torch.zeros writes to all of it at once; NumPy's take memory where they are used.
        size = torch.Size(shape).numel() * like.dtype.itemsize
        return torch.from_numpy(numpy.zeros(size, numpy.uint8)).view(like.dtype).view(shape)


class _Prompt(NamedTuple):
    """Where a prompt's tokens stand in the step's row, and how long its slot's last sequence was."""

    tokens: slice
    slot: int
    size: int
    old_end: int


class _Prefill:
    """Each prompt's tokens attend to those before them, and are kept in its slot."""

    def __init__(self, cache: SlotCache, prompts: Sequence[_Prompt]) -> None:
        self._cache = cache
        self._prompts = prompts
        self._hidden: dict[tuple[int, int | None, torch.device], Tensor] = {}
        self.windows: set[int] = set()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        keys, values = self._cache.layer(layer, key, value)
        mixed: list[Tensor] = []
        for tokens, slot, size, old_end in self._prompts:
            here = key[:, :, tokens], value[:, :, tokens]
            for room, new in zip((keys, values), here, strict=True):
                room[slot, :, :size] = new[0]
                # The last sequence may have died of NaN, and 0 * NaN is NaN.
                room[slot, :, size:old_end] = 0
            mixed.append(mix(query[:, :, tokens], *here, self._mask(size, key.device, scoring), scoring))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)

    def _mask(self, size: int, device: torch.device, scoring: Scoring) -> Tensor | None:
        window = scoring.window if scoring.window is not None and scoring.window < size else None
        if window is None and scoring.is_plain:
            return None
        if (size, window, device) not in self._hidden:
            index = torch.arange(size, device=device)
            hidden = index > index[:, None]
            if window is not None:
                hidden |= index <= index[:, None] - window
            self._hidden[size, window, device] = hidden[None, None]
        return self._hidden[size, window, device]


class _Run(NamedTuple):
    """Rows whose slots lie side by side: read in one piece, without a copy."""

    rows: slice
    slots: slice
    at: list[int]


class _Decode:
    """Each row's one token joins its slot and attends to what is there."""

    def __init__(self, cache: SlotCache, slots: Sequence[int], at: Sequence[int]) -> None:
        self._cache = cache
        self._slots, self._at = slots, at
        self._hidden: dict[tuple[int, int | None, torch.device], Tensor] = {}
        self._index: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.windows: set[int] = set()
        self._runs: list[_Run] = []
        first = 0
        for row in range(1, len(slots) + 1):
            if row < len(slots) and slots[row] == slots[row - 1] + 1:
                continue
            run = slice(slots[first], slots[row - 1] + 1)
            self._runs.append(_Run(slice(first, row), run, list(at[first:row])))
            first = row

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        keys, values = self._cache.layer(layer, key, value)
        if key.device not in self._index:
            self._index[key.device] = (
                torch.tensor(self._slots, device=key.device),
                torch.tensor(self._at, device=key.device),
            )
        slots, at = self._index[key.device]
        keys[slots, :, at] = key[0].transpose(0, 1)
        values[slots, :, at] = value[0].transpose(0, 1)
        # The queries of the heads that share a key stand beside each other, as if they were tokens.
        queries = query[0].transpose(0, 1).reshape(query.shape[2], key.shape[1], -1, query.shape[3])
        mixed = [
            mix(
                queries[run.rows],
                keys[run.slots, :, : max(run.at) + 1],
                values[run.slots, :, : max(run.at) + 1],
                self._mask(run, scoring.window, key.device),
                scoring,
            )
            for run in self._runs
        ]
        rows = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
        return rows.flatten(1, 2).transpose(0, 1)[None]

    def _mask(self, run: _Run, window: int | None, device: torch.device) -> Tensor:
        found = self._hidden.get((run.rows.start, window, device))
        if found is None:
            index = torch.arange(max(run.at) + 1, device=device)
            at = torch.tensor(run.at, device=device)[:, None]
            found = index > at
            if window is not None:
                found |= index <= at - window
            found = self._hidden[run.rows.start, window, device] = found[:, None, None]
        return found


def mix(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scoring: Scoring) -> Tensor:
    """Mix the values for each query; `hidden` `[rows or 1, 1, queries or 1, keys]` is True where it must not look.

    `query` is `[rows, heads, queries, head_dim]`, and `key` and `value` have its heads or fewer.
    Without `hidden`, which only plain scores can do without, each query sees the keys up to its own.
    """
    shared = query.shape[1] // key.shape[1]
    if hidden is None or scoring.is_plain:
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if hidden is None else ~hidden,
            is_causal=hidden is None,
            scale=scoring.scaling,
            enable_gqa=shared > 1,
        )
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = (query @ key.transpose(2, 3) * scoring.scaling).float()
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    scores = scores.masked_fill(hidden, -torch.inf)
    if scoring.sinks is not None:
        # In a decode the heads are spread over two axes; their order is the same.
        nowhere = scoring.sinks.float().view(1, scores.shape[1], -1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, nowhere], dim=-1)
    return scores.softmax(-1)[..., : key.shape[2]].to(value.dtype) @ value


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    slots: Step,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    if sliding_window is not None:
        slots.windows.add(sliding_window)
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    layer = module.layer_idx
    assert isinstance(layer, int)
    return slots.attend(layer, query, key, value, scoring).transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
