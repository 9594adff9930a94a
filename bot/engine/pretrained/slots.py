"""Slot attention for transformers models, registered as an attention implementation.

A step concatenates the tokens of all its sequences in one row; only attention separates them.
Nothing is padded, and sequences of different lengths share a step.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from bot.engine.serving.base import Batch
from bot.engine.serving.cache import adjacent_runs, zeros

NAME = "slots"  # of the attention implementation in a model's config


class Scoring(NamedTuple):
    """A layer's attention parameters."""

    scaling: float
    window: int | None  # tokens a query attends to, itself included; None: all
    softcap: float | None
    sinks: Tensor | None  # `[heads]`: attention sink logits

    @property
    def is_fusable(self) -> bool:
        """True if torch's fused attention supports it."""
        return self.softcap is None and self.sinks is None


class StepAttention(Protocol):
    """Attention of one step, passed to the network as `slots`."""

    windows: set[int]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        """Append to the cache and attend; all are `[1, heads, tokens, head_dim]`, keys may have fewer heads (GQA)."""
        ...


class SlotCache:
    """KV cache `[slots, heads, capacity, head_dim]` per layer, allocated on a layer's first call."""

    def __init__(self, slots: int, capacity: int) -> None:
        self._slots = slots
        self._capacity = capacity
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._ends = [0] * slots

    def resized(self, slots: int, capacity: int) -> "SlotCache":
        """Allocate an empty cache of another size with the same layers."""
        other = SlotCache(slots, capacity)
        for number, (keys, values) in self._layers.items():
            other.layer(number, keys, values)
        return other

    def bytes(self, slots: int, capacity: int) -> int:
        """Return the bytes of a cache of this size."""
        held = (tensor.nbytes for layer in self._layers.values() for tensor in layer)
        return sum(held) * slots * capacity // (self._slots * self._capacity)

    def step(self, batch: Batch) -> StepAttention:
        """Begin a step on the batch's concatenated tokens; a decode's slots must ascend."""
        if not batch.is_prefill:
            for slot, start in zip(batch.slots, batch.starts, strict=True):
                self._ends[slot] = max(self._ends[slot], start + 1)
            return _SlotDecode(self, batch.slots, batch.starts)
        prompts: list[_PromptRange] = []
        sizes = [len(ids) for ids in batch.tokens]
        for slot, size, end in zip(batch.slots, sizes, accumulate(sizes), strict=True):
            prompts.append(_PromptRange(slice(end - size, end), slot, size, self._ends[slot]))
            self._ends[slot] = size
        return _SlotPrefill(self, prompts)

    def layer(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's cached keys and values, allocating them for tensors like these."""
        if number not in self._layers:
            self._layers[number] = (self._allocate(key), self._allocate(value))
        return self._layers[number]

    def _allocate(self, like: Tensor) -> Tensor:
        return zeros((self._slots, like.shape[1], self._capacity, like.shape[3]), like.dtype, like.device)


class _PromptRange(NamedTuple):
    """A prompt's tokens in the step's row, and the length of its slot's previous sequence."""

    tokens: slice
    slot: int
    size: int
    old_end: int


class _SlotPrefill:
    """Causal attention within each prompt; appends keys and values to the cache."""

    def __init__(self, cache: SlotCache, prompts: Sequence[_PromptRange]) -> None:
        self._cache = cache
        self._prompts = prompts
        self._hidden: dict[tuple[int, int | None, torch.device], Tensor] = {}
        self.windows: set[int] = set()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        keys, values = self._cache.layer(layer, key, value)
        mixed: list[Tensor] = []
        for tokens, slot, size, old_end in self._prompts:
            here = key[:, :, tokens], value[:, :, tokens]
            for cached, new in zip((keys, values), here, strict=True):
                cached[slot, :, :size] = new[0]
                # The previous sequence may have left NaN, and 0 * NaN is NaN.
                cached[slot, :, size:old_end] = 0
            mixed.append(mix(query[:, :, tokens], *here, self._mask(size, key.device, scoring), scoring))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)

    def _mask(self, size: int, device: torch.device, scoring: Scoring) -> Tensor | None:
        window = scoring.window if scoring.window is not None and scoring.window < size else None
        if window is None and scoring.is_fusable:
            return None
        if (size, window, device) not in self._hidden:
            index = torch.arange(size, device=device)
            hidden = index > index[:, None]
            if window is not None:
                hidden |= index <= index[:, None] - window
            self._hidden[size, window, device] = hidden[None, None]
        return self._hidden[size, window, device]


class _SlotRange(NamedTuple):
    """Rows with adjacent slots."""

    rows: slice
    slots: slice
    at: Sequence[int]


class _SlotDecode:
    """Append one token per row, and attend to its slot."""

    def __init__(self, cache: SlotCache, slots: Sequence[int], at: Sequence[int]) -> None:
        self._cache = cache
        self._slots, self._at = slots, at
        self._hidden: dict[tuple[int, int | None, torch.device], Tensor] = {}
        self._index: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.windows: set[int] = set()
        self._runs = [
            _SlotRange(rows, slice(slots[rows.start], slots[rows.stop - 1] + 1), at[rows])
            for rows in adjacent_runs(slots)
        ]

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
        # GQA: query heads that share a key head become its tokens.
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

    def _mask(self, run: _SlotRange, window: int | None, device: torch.device) -> Tensor:
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
    """Attend; `hidden` `[rows or 1, 1, queries or 1, keys]` is True where masked, None is causal.

    `query` is `[rows, heads, queries, head_dim]`; `key` and `value` may have fewer heads (GQA).
    Only fusable scoring supports `hidden` None.
    """
    shared = query.shape[1] // key.shape[1]
    if hidden is None or scoring.is_fusable:
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
        # A decode splits the heads over two axes; their order is the same.
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
    slots: StepAttention,
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
