"""Weights of any kind as parts of a network that serves; products are picked by device and dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from bot.engine.kernels import cpu, cuda, reference
from bot.engine.kernels import footprint as sizes
from bot.engine.kernels.native.products import Product as NativeProduct
from bot.engine.kernels.reference import Int4, Int8, Quantised, quantise_int4, quantise_int8

__all__ = ["Int4", "Int8", "Linear", "Quantised", "TiedEmbedding", "quantise"]


def quantise(weight: Tensor, bits: int) -> Quantised:
    """Quantise a floating matrix: rows to int8, groups to int4."""
    return quantise_int8(weight) if bits == 8 else quantise_int4(weight)


@runtime_checkable
class WithGelu(Protocol):
    """A product that can end with a GELU."""

    def __call__(self, hidden: Tensor) -> Tensor: ...

    def with_gelu(self, hidden: Tensor) -> Tensor: ...


class Linear(nn.Module):
    """Stands where an `nn.Linear` would, for activations of one `dtype`; it cannot be trained.

    A floating `weight` and the `bias` are of that dtype.
    """

    def __init__(self, weight: Tensor | Quantised, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        packed = _pack(weight, bias, dtype)
        # The plain form is let go where there is a packed one.
        self._product = _Plain(weight, bias) if packed is None else packed

    @property
    def product(self) -> Callable[[Tensor], Tensor]:
        """What multiplies: where a part of the network is done in one go, it reads the weights there."""
        return self._product

    @property
    def is_packed(self) -> bool:
        return not isinstance(self._product, _Plain)

    def forward(self, hidden: Tensor) -> Tensor:
        """Multiply `[..., columns]`; return `[..., rows]` in the same dtype."""
        return self._product(hidden)

    def gelu(self, hidden: Tensor) -> Tensor:
        """The same with the tanh form of GELU after it, in one where there is a kernel for both."""
        if isinstance(self._product, WithGelu):
            return self._product.with_gelu(hidden)
        return functional.gelu(self._product(hidden), approximate="tanh")


class TiedEmbedding(nn.Module):
    """Stands where the network's `Embedding` would: a row per id in, a product with all rows out."""

    def __init__(self, weight: Tensor | Quantised, dtype: torch.dtype) -> None:
        super().__init__()
        self._rows = weight
        self._dtype = dtype
        pack = not isinstance(weight, Tensor) or weight.nbytes <= sizes.PACKED_TABLE_BYTES
        self._product = Linear(weight, None, dtype) if pack else _Plain(weight, None)
        self._takes_float32 = isinstance(self._product, Linear) and isinstance(self._product.product, NativeProduct)

    def forward(self, ids: Tensor) -> Tensor:
        """Look rows up; those of a quantised table come as float32."""
        if isinstance(self._rows, Tensor):
            return functional.embedding(ids, self._rows)
        return reference.dequantise(self._rows, rows=ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every word; in float32 where the product can, for what is rounded here is rounded last."""
        return self._product(hidden if self._takes_float32 else hidden.to(self._dtype))


class _Plain:
    def __init__(self, weight: Tensor | Quantised, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, hidden: Tensor) -> Tensor:
        if isinstance(self._weight, Tensor):
            return functional.linear(hidden, self._weight, self._bias)
        return reference.linear(hidden, self._weight, self._bias)


def _pack(weight: Tensor | Quantised, bias: Tensor | None, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    match (weight if isinstance(weight, Tensor) else weight.scale).device.type:
        case "cpu":
            return cpu.pack(weight, bias, dtype)
        case "cuda" if not isinstance(weight, Tensor):
            return cuda.pack(weight, bias, dtype)
    return None
