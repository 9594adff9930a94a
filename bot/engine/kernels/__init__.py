"""Matrices in 8 and 4 bits as parts of a network; the product is picked by device and dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bot.engine.kernels import cpu, reference
from bot.engine.kernels.reference import Int4, Int8, Quantised, quantise_int4, quantise_rows

__all__ = ["Int4", "Int8", "Quantised", "QuantisedEmbedding", "QuantisedLinear", "quantise"]


def quantise(weight: Tensor, bits: int) -> Quantised:
    """Quantise a floating matrix: rows to int8, groups to int4."""
    return quantise_rows(weight.float(), 8, torch.float32) if bits == 8 else quantise_int4(weight)


class QuantisedLinear(nn.Module):
    """Stands where an `nn.Linear` would, for activations of one `dtype`."""

    def __init__(self, weight: Quantised, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        on_cpu = weight.scale.device.type == "cpu"
        self._packed = cpu.pack(weight, bias) if on_cpu and dtype == cpu.DTYPE else None
        # Only one form is kept: the other would double the memory.
        self._plain = weight if self._packed is None else None
        self._bias = None if bias is None else bias.to(dtype)

    @property
    def is_packed(self) -> bool:
        return self._packed is not None

    def forward(self, hidden: Tensor) -> Tensor:
        """Multiply `[..., columns]`; return `[..., rows]` in the same dtype."""
        if self._packed is not None:
            return self._packed(hidden)
        assert self._plain is not None
        return reference.linear(hidden, self._plain, self._bias)


class QuantisedEmbedding(nn.Module):
    """Stands where the network's `Embedding` would."""

    def __init__(self, weight: Quantised, dtype: torch.dtype) -> None:
        super().__init__()
        self._rows = weight
        self._linear = QuantisedLinear(weight, None, dtype)
        self._dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        return reference.dequantise(self._rows, self._dtype, rows=ids)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._linear.forward(hidden)
