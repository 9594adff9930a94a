"""Linear layers over float, int8 and int4 weights; the kernel depends on device and dtype."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from bot.engine.kernels import cpu, cuda, footprint, reference
from bot.engine.kernels.native.matmul import NativeMatmul
from bot.engine.kernels.reference import Int4, Int8, Quantised, quantise_int4, quantise_int8

__all__ = ["Int4", "Int8", "Linear", "Quantised", "TiedEmbedding", "quantise"]


def quantise(weight: Tensor, bits: int) -> Quantised:
    """Quantise a float matrix, to int8 by rows or to int4 by groups."""
    return quantise_int8(weight) if bits == 8 else quantise_int4(weight)


@runtime_checkable
class SupportsGelu(Protocol):
    """A matmul with a fused GELU epilogue."""

    def __call__(self, hidden: Tensor) -> Tensor: ...

    def with_gelu(self, hidden: Tensor) -> Tensor: ...


class Linear(nn.Module):
    """Inference-only `nn.Linear` for activations of one `dtype`.

    A float `weight` and the `bias` have that dtype.
    """

    def __init__(self, weight: Tensor | Quantised, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        # A packed matmul holds its own copy of the weights; no other reference is kept.
        self._matmul = _pack(weight, bias, dtype) or _EagerMatmul(weight, bias)

    @property
    def matmul(self) -> Callable[[Tensor], Tensor]:
        """The kernel; fused layers read its weights."""
        return self._matmul

    @property
    def is_packed(self) -> bool:
        return not isinstance(self._matmul, _EagerMatmul)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[..., columns]` to `[..., rows]` in the same dtype."""
        return self._matmul(hidden)

    def gelu(self, hidden: Tensor) -> Tensor:
        """Apply the layer and tanh GELU, fused where the kernel supports it."""
        if isinstance(self._matmul, SupportsGelu):
            return self._matmul.with_gelu(hidden)
        return functional.gelu(self._matmul(hidden), approximate="tanh")


class TiedEmbedding(nn.Module):
    """Input embedding and output projection that share one matrix."""

    def __init__(self, weight: Tensor | Quantised, dtype: torch.dtype) -> None:
        super().__init__()
        self._rows = weight
        self._dtype = dtype
        linear = Linear(weight, None, dtype) if footprint.is_packed_table(weight, dtype) else None
        self._matmul = linear or _EagerMatmul(weight, None)
        self._takes_float32 = linear is not None and isinstance(linear.matmul, NativeMatmul)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up rows; a quantised table returns float32."""
        if isinstance(self._rows, Tensor):
            return functional.embedding(ids, self._rows)
        return reference.dequantise(self._rows, rows=ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits, from float32 where the kernel supports it: rounding here is not averaged out later."""
        return self._matmul(hidden if self._takes_float32 else hidden.to(self._dtype))


class _EagerMatmul:
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
