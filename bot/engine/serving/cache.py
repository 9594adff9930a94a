"""Keys and values of past tokens, a slot per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from mmap import mmap
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bot.engine.kernels.attention import attention, attention_of_one, mask_bias

# Products of a size that is new cost a CPU 0.2 ms each, to make code for it; a sequence
# grows by one with every step, and what it reads by so many at once.
_STRIDE = 64


class KeyValueCache:
    """The cache of one model; what `prefill` and `decode` return is how a step's layers attend.

    `keys` and `values` are `[layers, slots, heads, capacity, head_dim]`.  `prefix`
    stands before every sequence and is seen by all its tokens: `[layers, 2, heads,
    prefix, head_dim]`, keys and values.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        context: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        prefix: Tensor | None = None,
    ) -> None:
        self.slots = slots
        self._before = 0 if prefix is None else prefix.shape[3]
        shape = (layers, slots, heads, self._before + context, head_dim)
        # Zeros, because a masked key may be anything but NaN.
        self.keys = _zeros(shape, dtype, device)
        self.values = _zeros(shape, dtype, device)
        self._ends = [self._before] * slots
        if prefix is not None:
            keys, values = prefix.to(self.keys).unsqueeze(2).unbind(1)
            self.keys[..., : self._before, :] = keys
            self.values[..., : self._before, :] = values

    def prefill(self, slots: Sequence[int], masks: Sequence[Tensor]) -> Prefill:
        """Forget what the slots held; the next step, of one row, fills them with a prompt each.

        Each mask is bool `[tokens, tokens]`, query by key: True is hidden.
        """
        prompts: list[_Prompt] = []
        first = 0
        for slot, mask in zip(slots, masks, strict=True):
            prompts.append(self._prompt(slot, mask, slice(first, first + len(mask))))
            first += len(mask)
        return Prefill(prompts, self._before)

    def _prompt(self, slot: int, mask: Tensor, tokens: slice) -> _Prompt:
        end, old_end = self._before + len(mask), self._ends[slot]
        if end < old_end:
            # The last sequence may have died of NaN, and 0 * NaN is NaN.
            self.keys[:, slot, :, end:old_end] = 0
            self.values[:, slot, :, end:old_end] = 0
        self._ends[slot] = end
        mask = functional.pad(mask, (self._before, 0), value=False).to(self.keys.device)
        part = (slice(None), slot, slice(None), slice(end))
        return _Prompt(tokens, self.keys[part], self.values[part], mask_bias(mask, self.keys.dtype))

    def decode(self, slots: Sequence[int], starts: Sequence[int]) -> Decode:
        """The next step appends one token to each slot, at `starts`.

        It is fastest where `slots` ascend without gaps.
        """
        return Decode(self.keys, self.values, slots, self.places(slots, starts))

    def places(self, slots: Sequence[int], starts: Sequence[int]) -> list[int]:
        """Note that one token is appended to each slot, at `starts`; say at which index of `keys` it belongs."""
        at = [self._before + start for start in starts]
        for slot, index in zip(slots, at, strict=True):
            self._ends[slot] = max(self._ends[slot], index + 1)
        return at


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros writes to all of it at once; what is mapped takes memory where it is used.
    memory = mmap(-1, torch.Size(shape).numel() * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class _Prompt(NamedTuple):
    """Where a prompt's tokens stand in the step's one row, and its slot up to its end."""

    tokens: slice
    keys: Tensor  # [layers, heads, tokens, head_dim], like values
    values: Tensor
    bias: Tensor


class Prefill:
    """Each prompt's tokens attend to each other, and are kept in its slot."""

    def __init__(self, prompts: Sequence[_Prompt], before: int) -> None:
        self._prompts = prompts
        self._before = before

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed: list[Tensor] = []
        for prompt in self._prompts:
            keys, values = prompt.keys[layer], prompt.values[layer]
            keys[:, self._before :] = key[0, :, prompt.tokens]
            values[:, self._before :] = value[0, :, prompt.tokens]
            mixed.append(attention(query[:, :, prompt.tokens], keys[None], values[None], prompt.bias))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)


class _Run(NamedTuple):
    """Rows of a batch whose slots lie side by side: read in one piece, without a copy."""

    rows: slice
    keys: Tensor  # [layers, slots * heads, tokens, head_dim], like values
    values: Tensor
    bias: Tensor


class Decode:
    """Each row's one token joins its slot and attends to all that is there."""

    def __init__(self, keys: Tensor, values: Tensor, slots: Sequence[int], at: Sequence[int]) -> None:
        self._keys, self._values = keys, values
        heads, capacity = keys.shape[2], keys.shape[3]
        # Where each row's heads are written, in a layer laid out as [slots * heads * capacity, head_dim].
        lines = torch.tensor(slots, device=keys.device)[:, None] * heads + torch.arange(heads, device=keys.device)
        self._places = (lines * capacity + torch.tensor(at, device=keys.device)[:, None]).flatten()
        self._runs: list[_Run] = []
        first = 0
        for row in range(1, len(slots) + 1):
            if row < len(slots) and slots[row] == slots[row - 1] + 1:
                continue
            self._runs.append(self._run(slots[first], at[first:row], slice(first, row)))
            first = row

    def _run(self, slot: int, at: Sequence[int], rows: slice) -> _Run:
        heads, capacity = self._keys.shape[2], self._keys.shape[3]
        tokens = min(-(-(max(at) + 1) // _STRIDE) * _STRIDE, capacity)
        part = slice(slot, slot + len(at))
        keys, values = (everything[:, part].flatten(1, 2)[:, :, :tokens] for everything in (self._keys, self._values))
        index = torch.arange(tokens, device=keys.device)
        hidden = index > torch.tensor(at, device=keys.device)[:, None]
        bias = mask_bias(hidden, keys.dtype).repeat_interleave(heads, 0)[..., None]
        return _Run(rows, keys, values, bias)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for kept, new in ((self._keys, key), (self._values, value)):
            kept[layer].flatten(0, 2).index_copy_(0, self._places, new.flatten(0, 2))
        mixed = [
            attention_of_one(query[run.rows].flatten(0, 1), run.keys[layer], run.values[layer], run.bias)
            for run in self._runs
        ]
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).view_as(query)
