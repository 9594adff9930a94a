"""Gradients through frozen weights, against finite differences in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bot.engine.kernels import Int4, Int8, Quantised, quantise
from bot.engine.kernels.reference import dequantise, quantise_rows
from bot.engine.tuning import frozen
from bot.engine.tuning.frozen import FrozenEmbedding, FrozenLinear


def matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5))


def kinds(rows: int, columns: int) -> list[Quantised]:
    weight = matrix(rows, columns)
    return [quantise(weight, 8), quantise(weight, 4), quantise_rows(weight, 8), quantise_rows(weight, 4)]


@pytest.mark.parametrize(("rows", "columns"), [(6, 64), (7, 10), (5, 32)])
def test_the_gradient_is_that_of_finite_differences(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "WEIGHTS_AT_ONCE", 3 * columns)  # several parts, the last one smaller
    hidden = torch.randn(2, 3, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    hidden.requires_grad_()
    bias = torch.randn(rows, dtype=torch.float64)
    for weight in kinds(rows, columns):
        layer = FrozenLinear(weight, bias, torch.float64)

        assert torch.autograd.gradcheck(layer, (hidden,), eps=1e-6, atol=1e-8)
        expected = hidden @ dequantise(weight, torch.float64).t() + bias
        torch.testing.assert_close(layer(hidden), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_within_its_rounding(dtype: torch.dtype) -> None:
    gradient = torch.randn(9, 32, generator=torch.Generator().manual_seed(7))
    for weight in kinds(32, 64):
        hidden = torch.zeros(9, 64, dtype=dtype, requires_grad=True)
        torch.autograd.backward(FrozenLinear(weight, None, dtype)(hidden), gradient.to(dtype))

        exact = gradient.double() @ dequantise(weight, torch.float64)
        assert hidden.grad is not None
        error = (hidden.grad.double() - exact).abs().max() / exact.abs().max()
        assert error < 8 * torch.finfo(dtype).eps


def test_a_quantised_embedding_serves_rows_and_logits() -> None:
    ids = torch.tensor([[0, 3, 3]])
    hidden = torch.randn(2, 64, dtype=torch.float64, requires_grad=True)
    for weight in kinds(6, 64):
        table = FrozenEmbedding(weight, torch.float64)

        assert torch.equal(table(ids), dequantise(weight)[ids])
        assert torch.autograd.gradcheck(table.logits, (hidden,), atol=1e-8)


def test_no_weight_gets_a_gradient() -> None:
    weight = matrix(4, 8)
    hidden = torch.randn(3, 8, requires_grad=True)

    product = FrozenLinear(weight, None, torch.float32)(hidden)
    torch.autograd.backward(product.sum())

    assert weight.grad is None
    assert not any(isinstance(each, Int4 | Int8) for each in FrozenLinear(weight, None, torch.float32).parameters())
