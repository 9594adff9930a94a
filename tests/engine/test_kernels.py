"""int8 and int4: layouts, rounding, and every matmul against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bot.engine.kernels import Int4, Int8, Linear, Quantised, TiedEmbedding, quantise
from bot.engine.kernels.attention import attention, attention_of_one, mask_bias
from bot.engine.kernels.reference import (
    dequantise,
    group_of,
    linear,
    pack_int4,
    quantise_int4,
    quantise_int8,
    quantise_rows,
    unpack_int4,
)

BFLOAT16_STEP = 2.0**-8
"""Largest relative distance between adjacent bfloat16 numbers."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squared_error(weight: Tensor, quantised: Quantised) -> float:
    return (dequantise(quantised) - weight).square().mean().item()


@given(rows=st.integers(1, 5), columns=st.integers(1, 9), seed=st.integers(0, 1000))
def test_packing_and_unpacking_int4_are_inverse(rows: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    values = torch.randint(-8, 8, (rows, 2 * columns), dtype=torch.int8, generator=random)
    assert torch.equal(unpack_int4(pack_int4(values)), values)


@given(bits=st.sampled_from([4, 8]), rows=st.integers(1, 4), columns=st.integers(1, 20), seed=st.integers(0, 1000))
def test_row_rounding_errs_by_at_most_half_a_step(bits: int, rows: int, columns: int, seed: int) -> None:
    weight = normal(rows, 2 * columns, seed=seed)
    quantised = quantise_rows(weight, bits, torch.float32)
    assert quantised.shape == weight.shape
    assert ((dequantise(quantised) - weight).abs() <= quantised.scale * 0.5001).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_zeros_stay_zeros(bits: int) -> None:
    weight = torch.zeros(16, 128)
    for quantised in (quantise_rows(weight, bits), quantise(weight, bits)):
        assert torch.equal(dequantise(quantised), weight)


def test_a_group_of_equal_weights_is_exact() -> None:
    assert torch.equal(dequantise(quantise_int4(torch.full((16, 64), 0.5))), torch.full((16, 64), 0.5))


@given(columns=st.sampled_from([32, 64, 96, 160, 256]), rows=st.integers(1, 40), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_fitted_groups_are_closer_than_min_max_groups(columns: int, rows: int, seed: int) -> None:
    weight = normal(rows, columns, seed=seed)
    quantised = quantise_int4(weight)
    assert quantised.group == group_of(columns)
    groups = weight.view(rows, -1, quantised.group)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 15
    naive = ((groups - low) / step).round() * step + low
    # bfloat16 scales are slightly off the exact range.
    assert squared_error(weight, quantised) <= (naive - groups).square().mean().item() * 1.02


def test_groups_have_about_a_third_of_the_published_schemes_squared_error() -> None:
    weight, hidden = normal(1024, 4096, seed=1) * 0.02, normal(8, 4096, seed=2)
    wanted = hidden @ weight.T
    ours, theirs = (linear(hidden, quantised) for quantised in (quantise_int4(weight), quantise_rows(weight.half(), 4)))
    assert (ours - wanted).square().mean() <= 0.36 * (theirs - wanted).square().mean()


@pytest.mark.parametrize("shape", [(1, 40), (700, 100), (3, 70_000)], ids=str)
def test_chunked_quantisation_equals_quantising_at_once(shape: tuple[int, int]) -> None:
    weight = normal(*shape).bfloat16()
    found, wanted = quantise_int8(weight), quantise_rows(weight, 8, torch.float32)
    assert isinstance(wanted, Int8)
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.scale, wanted.scale)


def test_columns_not_divisible_by_a_group_are_quantised_by_rows() -> None:
    quantised = quantise_int4(normal(16, 20))
    assert quantised.scale.shape == (16, 1)
    assert quantised.zero is None


@pytest.mark.parametrize("bits", [4, 8])
def test_single_rows_dequantise_like_the_whole_matrix(bits: int) -> None:
    quantised = quantise(normal(32, 64), bits)
    rows = torch.tensor([[3, 3], [31, 0]])
    assert torch.equal(dequantise(quantised, rows=rows), dequantise(quantised)[rows])


SHAPES = [(16, 32), (48, 96), (80, 64), (96, 224), (64, 160), (1040, 128), (16, 20), (17, 64), (30, 50)]


@pytest.mark.parametrize("tokens", [1, 3, 70])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["int8", "int4", "published int8", "published int4"])
def test_bfloat16_matmuls_equal_the_reference_within_two_roundings(
    kind: str, shape: tuple[int, int], tokens: int
) -> None:
    weight, bits = normal(*shape), int(kind[-1])
    quantised = quantise_rows(weight.half(), bits) if kind.startswith("published") else quantise(weight, bits)
    hidden, bias = normal(2, tokens, shape[1], seed=1).bfloat16(), normal(shape[0], seed=2).bfloat16()
    found = Linear(quantised, bias, torch.bfloat16)(hidden)
    assert found.dtype == torch.bfloat16
    exact = dequantise(quantised)
    wanted = linear(hidden.float(), quantised, bias.float())
    # Each weight and each sum is rounded to bfloat16, and the biased sum once more.
    bound = BFLOAT16_STEP * (hidden.float().abs() @ exact.abs().T + 2 * wanted.abs() + bias.float().abs())
    assert ((found.float() - wanted).abs() <= bound).all()


@pytest.mark.parametrize(
    ("kind", "shape", "packed"),
    [
        ("int8", (16, 48), True),
        ("int8", (16, 40), False),
        ("int8", (17, 64), False),
        ("int4", (16, 96), True),
        ("int4", (16, 20), False),
    ],
)
def test_supported_matrices_are_packed(kind: str, shape: tuple[int, int], packed: bool) -> None:
    quantised = quantise(normal(*shape), int(kind[-1]))
    assert Linear(quantised, None, torch.bfloat16).is_packed is packed


def test_float32_and_float16_use_the_eager_matmul() -> None:
    quantised = quantise(normal(32, 64), 4)
    for dtype in (torch.float32, torch.float16):
        part = Linear(quantised, None, dtype)
        hidden = normal(3, 64).to(dtype)
        assert not part.is_packed
        assert torch.equal(part(hidden), linear(hidden, quantised))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(16, 32), (17, 50), (300, 128)], ids=str)
def test_float_weights_give_the_same_packed_and_eager(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, bias = normal(*shape).to(dtype), normal(shape[0], seed=2).to(dtype)
    hidden = normal(2, 5, shape[1], seed=1).to(dtype)
    found = Linear(weight, bias, dtype)(hidden)
    wanted = torch.nn.functional.linear(hidden.float(), weight.float(), bias.float())
    assert found.shape == (2, 5, shape[0])
    torch.testing.assert_close(found.float(), wanted, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("table", [normal(32, 64), quantise_rows(normal(32, 64), 4), quantise_rows(normal(32, 64), 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tied_embedding_uses_one_table_for_lookup_and_logits(table: Tensor | Quantised, dtype: torch.dtype) -> None:
    table = table.to(dtype) if isinstance(table, Tensor) else table
    embedding = TiedEmbedding(table, dtype)
    plain = table.float() if isinstance(table, Tensor) else dequantise(table)
    ids = torch.tensor([[0, 31, 7]])
    assert torch.equal(embedding(ids).float(), plain[ids])
    hidden = normal(4, 64, seed=3).to(dtype)
    torch.testing.assert_close(embedding.logits(hidden).float(), hidden.float() @ plain.T, atol=0.1, rtol=0.02)


def test_a_large_table_is_not_packed_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.engine.kernels.footprint.PACKED_TABLE_BYTES", 100)
    table, hidden = normal(32, 64), normal(1, 64)
    assert torch.equal(TiedEmbedding(table, torch.float32).logits(hidden), hidden @ table.T)


def test_without_onednn_matmuls_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._C._has_mkldnn", False)
    assert not Linear(normal(16, 32), None, torch.float32).is_packed


def test_quantised_matrices_move_between_devices_with_all_tensors() -> None:
    meta = torch.device("meta")
    for moved in (quantise(normal(16, 64), 8).to(meta), quantise(normal(16, 64), 4).to(meta)):
        match moved:
            case Int8(values, scale):
                assert values.is_meta
                assert scale.is_meta
            case Int4(packed, scale, zero):
                assert packed.is_meta
                assert scale.is_meta
                assert zero is not None
                assert zero.is_meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_query_attention_equals_general_attention(dtype: torch.dtype) -> None:
    query = normal(3, 4, 1, 16).to(dtype)
    key, value = normal(3, 4, 9, 16, seed=1).to(dtype), normal(3, 4, 9, 16, seed=2).to(dtype)
    bias = mask_bias(torch.arange(9) > torch.tensor([[2], [8], [0]]), dtype)
    wanted = attention(query, key, value, bias[:, None, None])
    one = attention_of_one(
        query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), bias.repeat_interleave(4, 0)[..., None]
    )
    torch.testing.assert_close(one.view_as(wanted), wanted, atol=0.03 if dtype == torch.bfloat16 else 1e-5, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fully_masked_query_attends_uniformly(dtype: torch.dtype) -> None:
    query, key, value = (normal(1, 1, 4, 16, seed=seed).to(dtype) for seed in (0, 1, 2))
    mixed = attention(query, key, value, mask_bias(torch.ones(1, 1, 4, 4, dtype=torch.bool), dtype))
    torch.testing.assert_close(mixed[0, 0, 0], value[0, 0].float().mean(0).to(dtype), atol=0.02, rtol=0.02)
