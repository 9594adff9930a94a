"""Matmuls over frozen weights, with gradients for activations only."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from bot.engine.kernels import Quantised
from bot.engine.kernels.reference import Int4, Int8, dequantise

# Weights dequantised at once; the whole table of ChatGLM-6B would take 1 GiB in float16.
WEIGHTS_AT_ONCE = 1 << 26


class FrozenLinear(nn.Module):
    """`nn.Linear` over a float, int8 or int4 matrix that is not trained.

    Quantised weights are dequantised in the forward pass and again in the backward pass, a
    part at a time: between them only the quantised matrix is held, and no activation.
    """

    def __init__(self, weight: Tensor | Quantised, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        del dtype  # the matrix and the bias have it already
        self._weight, self._bias = weight, bias

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[..., columns]` to `[..., rows]` in the same dtype."""
        return frozen_linear(hidden, self._weight, self._bias)


class FrozenEmbedding(nn.Module):
    """Input embedding and output projection that share one matrix, which is not trained."""

    def __init__(self, weight: Tensor | Quantised, dtype: torch.dtype) -> None:
        super().__init__()
        self._weight, self._dtype = weight, dtype

    def forward(self, ids: Tensor) -> Tensor:
        if isinstance(self._weight, Tensor):
            return functional.embedding(ids, self._weight)
        return dequantise(self._weight, rows=ids)

    def logits(self, hidden: Tensor) -> Tensor:
        return frozen_linear(hidden.to(self._dtype), self._weight, None)


def frozen_linear(hidden: Tensor, weight: Tensor | Quantised, bias: Tensor | None) -> Tensor:
    """Multiply `[..., columns]` by the transposed matrix, in the dtype of `hidden`."""
    if isinstance(weight, Tensor):
        return functional.linear(hidden, weight, bias)
    product: Tensor = _QuantisedProduct.apply(hidden, weight)  # type: ignore[no-untyped-call]  # torch's
    return product if bias is None else product + bias


class _QuantisedProduct(torch.autograd.Function):
    """`hidden @ weight.T`; its gradient is `gradient @ weight`."""

    @staticmethod
    def forward(ctx: "torch.autograd.function.FunctionCtx", hidden: Tensor, weight: Quantised) -> Tensor:
        ctx.weight = weight  # type: ignore[attr-defined]  # torch's way to keep what is no tensor
        out = hidden.new_empty(*hidden.shape[:-1], weight.shape[0])
        for part, matrix in _parts(weight, hidden.dtype):
            out[..., part] = hidden @ matrix.t()
        return out

    @staticmethod
    def backward(ctx: "torch.autograd.function.FunctionCtx", *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        weight: Quantised = ctx.weight  # type: ignore[attr-defined]
        total = gradient.new_zeros(*gradient.shape[:-1], weight.shape[1])
        for part, matrix in _parts(weight, gradient.dtype):
            total += gradient[..., part] @ matrix
        return total, None


def _parts(weight: Quantised, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    rows, columns = weight.shape
    at_once = max(1, WEIGHTS_AT_ONCE // columns)
    for first in range(0, rows, at_once):
        part = slice(first, first + at_once)
        match weight:
            case Int8():
                few: Quantised = Int8(weight.values[part], weight.scale[part])
            case Int4():
                few = Int4(weight.packed[part], weight.scale[part], None if weight.zero is None else weight.zero[part])
        yield part, dequantise(few, dtype)
