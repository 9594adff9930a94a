"""KV cache with one slot per sequence."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from mmap import mmap
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bot.engine.kernels.attention import attention, attention_of_one, mask_bias
from bot.engine.serving.runner import is_out_of_memory
from bot.errors import EngineUnavailable

# oneDNN compiles a matmul for each new shape, 0.2 ms on a CPU: the read length grows in strides.
_STRIDE = 64


class KeyValueCache:
    """KV cache of one model; `prefill` and `decode` return the attention of a step.

    `keys` and `values` are `[layers, slots, heads, capacity, head_dim]`.  `prefixes` holds, by
    name, keys and values that precede a sequence, `[layers, 2, heads, prefix, head_dim]`; ""
    is the default one.  Sequences with different prefixes can share a step: a slot holds the
    prefix of its sequence in front of it, so that only the indices of its tokens differ.
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
        prefixes: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.slots = slots
        none = torch.empty(layers, 2, heads, 0, head_dim)
        self._prefixes = {name: prefix.to(device, dtype) for name, prefix in {"": none, **prefixes}.items()}
        longest = max(prefix.shape[3] for prefix in self._prefixes.values())
        shape = (layers, slots, heads, longest + context, head_dim)
        self.keys = zeros(shape, dtype, device)
        self.values = zeros(shape, dtype, device)
        self._held: list[str | None] = [None] * slots  # the name of each slot's prefix
        self._begins = [0] * slots  # the index of each slot's first token, after the prefix
        self._ends = [0] * slots

    def prefill(self, slots: Sequence[int], masks: Sequence[Tensor], prefixes: Sequence[str] = ()) -> "Prefill":
        """Reset the slots; the next step fills them from one row of concatenated prompts.

        Each mask is bool `[tokens, tokens]`, query by key; True is masked.  `prefixes` are the
        names of the rows' prefixes, by default "".
        """
        prompts: list[_PromptView] = []
        first = 0
        for slot, mask, name in zip(slots, masks, prefixes or [""] * len(slots), strict=True):
            self._put_prefix(slot, name)
            prompts.append(self._prompt(slot, mask, slice(first, first + len(mask))))
            first += len(mask)
        return Prefill(prompts)

    def _put_prefix(self, slot: int, name: str) -> None:
        if self._held[slot] == name:
            return
        prefix = self._prefixes[name]
        length = prefix.shape[3]
        self.keys[:, slot, :, :length], self.values[:, slot, :, :length] = prefix.unbind(1)
        self._held[slot], self._begins[slot] = name, length

    def _prompt(self, slot: int, mask: Tensor, tokens: slice) -> "_PromptView":
        begin, old_end = self._begins[slot], self._ends[slot]
        end = begin + len(mask)
        if end < old_end:
            # The previous sequence may have left NaN, and 0 * NaN is NaN.
            self.keys[:, slot, :, end:old_end] = 0
            self.values[:, slot, :, end:old_end] = 0
        self._ends[slot] = end
        mask = functional.pad(mask, (begin, 0), value=False).to(self.keys.device)
        part = (slice(None), slot, slice(None), slice(end))
        return _PromptView(tokens, begin, self.keys[part], self.values[part], mask_bias(mask, self.keys.dtype))

    def decode(self, slots: Sequence[int], starts: Sequence[int]) -> "Decode":
        """Append tokens to the slots at `starts`; fastest where `slots` ascend without gaps.

        A slot may occur more often, with starts that ascend by one; what was cached behind them is deleted.
        """
        held = {slot: self._ends[slot] for slot in slots}
        at = self.reserve(slots, starts)
        for slot, end in {slot: index + 1 for slot, index in zip(slots, at, strict=True)}.items():
            if end < held[slot]:
                # A wrong draft may have left NaN, and 0 * NaN is NaN.
                self.keys[:, slot, :, end : held[slot]] = 0
                self.values[:, slot, :, end : held[slot]] = 0
            self._ends[slot] = end
        return Decode(self.keys, self.values, slots, at)

    def reserve(self, slots: Sequence[int], starts: Sequence[int]) -> list[int]:
        """Reserve one token in each slot at `starts`; return its indices in `keys`."""
        at = [self._begins[slot] + start for slot, start in zip(slots, starts, strict=True)]
        for slot, index in zip(slots, at, strict=True):
            self._ends[slot] = max(self._ends[slot], index + 1)
        return at


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate zeros, on a CPU lazily.  A masked key may have any value but NaN."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch.zeros touches every page; mapped memory is committed on first use.
    memory = mmap(-1, torch.Size(shape).numel() * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@contextmanager
def explain_out_of_memory(slots: int, context: int, needed: int) -> Iterator[None]:
    """Turn a failed allocation of the cache into EngineUnavailable."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as exc:
        # mmap raises OSError, torch's allocators raise others.
        if not isinstance(exc, OSError) and not is_out_of_memory(exc):
            raise
        raise EngineUnavailable(
            f"not enough memory for the KV cache: {needed / 2**30:.1f} GiB for engine.max_batch_size = {slots} and "
            f"{context} tokens each; lower engine.max_batch_size or engine.context_length"
        ) from exc


def adjacent_runs(slots: Sequence[int]) -> Iterator[slice]:
    """Group rows whose slots are adjacent: each group is read as one view, without a copy.

    >>> list(adjacent_runs([0, 1, 4]))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    first = 0
    for row in range(1, len(slots) + 1):
        if row == len(slots) or slots[row] != slots[row - 1] + 1:
            yield slice(first, row)
            first = row


class _PromptView(NamedTuple):
    """A prompt's tokens in the step's row, and its part of the cache."""

    tokens: slice
    begin: int  # the index of its first token, after the prefix
    keys: Tensor  # [layers, heads, tokens, head_dim], like values
    values: Tensor
    bias: Tensor


class Prefill:
    """Attention within each prompt; appends keys and values to the cache."""

    def __init__(self, prompts: Sequence[_PromptView]) -> None:
        self._prompts = prompts

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed: list[Tensor] = []
        for prompt in self._prompts:
            keys, values = prompt.keys[layer], prompt.values[layer]
            keys[:, prompt.begin :] = key[0, :, prompt.tokens]
            values[:, prompt.begin :] = value[0, :, prompt.tokens]
            mixed.append(attention(query[:, :, prompt.tokens], keys[None], values[None], prompt.bias))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)


class _SlotRun(NamedTuple):
    """Rows with adjacent slots, and a view of their cache."""

    rows: slice
    keys: Tensor  # [layers, slots * heads, tokens, head_dim], like values
    values: Tensor
    bias: Tensor


class Decode:
    """Append one token per row, and attend to its slot."""

    def __init__(self, keys: Tensor, values: Tensor, slots: Sequence[int], at: Sequence[int]) -> None:
        self._keys, self._values = keys, values
        heads, capacity = keys.shape[2], keys.shape[3]
        # Indices of the new entries in a layer viewed as [slots * heads * capacity, head_dim].
        lines = torch.tensor(slots, device=keys.device)[:, None] * heads + torch.arange(heads, device=keys.device)
        self._indices = (lines * capacity + torch.tensor(at, device=keys.device)[:, None]).flatten()
        self._runs = [self._run(slots[rows.start], at[rows], rows) for rows in adjacent_runs(slots)]

    def _run(self, slot: int, at: Sequence[int], rows: slice) -> _SlotRun:
        heads, capacity = self._keys.shape[2], self._keys.shape[3]
        tokens = min(-(-(max(at) + 1) // _STRIDE) * _STRIDE, capacity)
        part = slice(slot, slot + len(at))
        keys, values = (everything[:, part].flatten(1, 2)[:, :, :tokens] for everything in (self._keys, self._values))
        index = torch.arange(tokens, device=keys.device)
        hidden = index > torch.tensor(at, device=keys.device)[:, None]
        bias = mask_bias(hidden, keys.dtype).repeat_interleave(heads, 0)[..., None]
        return _SlotRun(rows, keys, values, bias)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for cached, new in ((self._keys, key), (self._values, value)):
            cached[layer].flatten(0, 2).index_copy_(0, self._indices, new.flatten(0, 2))
        mixed = [
            attention_of_one(query[run.rows].flatten(0, 1), run.keys[layer], run.values[layer], run.bias)
            for run in self._runs
        ]
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).view_as(query)
