"""Every Triton kernel against its reference, in the interpreter, and on a GPU if present."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bot.engine.chatglm.decoding import Decoder, padding
from bot.engine.chatglm.loading import load_random
from bot.engine.chatglm.model import RotaryEmbedding, rotary_angles
from bot.engine.kernels import Int4, Linear, Quantised, cuda, eager, quantise
from bot.engine.kernels.reference import dequantise, quantise_rows
from tests.engine.test_model import CONFIG

pytest.importorskip("triton", reason="triton is not installed: its kernels are not tested")

from bot.engine.kernels.triton import matmul, ops
from tests.engine.interpreter import IS_INTERPRETED, repair_bfloat16

FLOAT32_STEP = 2.0**-24
NO_GPU = "no GPU: Triton kernels were interpreted, not run"
DTYPES = [torch.float16, torch.bfloat16]
KINDS = ["int8", "int4", "published int8", "published int4"]


@pytest.fixture(params=["interpreter", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if request.param == "cuda":
        if not torch.cuda.is_available() or IS_INTERPRETED:
            pytest.skip(NO_GPU)
        return torch.device("cuda")
    if not IS_INTERPRETED:
        pytest.skip("Triton kernels ran on the GPU; TRITON_INTERPRET=1 interprets them")
    repair_bfloat16(monkeypatch)
    return torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step_of(dtype: torch.dtype) -> float:
    """Return the relative rounding error of a dtype; the interpreter truncates bfloat16."""
    return 2.0**-11 if dtype == torch.float16 else 2.0**-7


def quantised(kind: str, rows: int, columns: int) -> Quantised:
    weight = normal(rows, columns) * columns**-0.5
    bits = int(kind[-1])
    return quantise_rows(weight.half(), bits) if kind.startswith("published") else quantise(weight, bits)


def packed(weight: Quantised, bias: Tensor | None, dtype: torch.dtype, device: torch.device) -> matmul.TritonMatmul:
    kernel = matmul.pack(weight.to(device), None if bias is None else bias.to(device), dtype)
    assert kernel is not None
    return kernel


def exact(hidden: Tensor, weight: Quantised, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Multiply in float64; also return the sums of the terms' absolute values."""
    matrix = dequantise(weight, torch.float64)
    total = functional.linear(hidden.double(), matrix, None if bias is None else bias.double())
    return total, hidden.double().abs() @ matrix.abs().T + (0 if bias is None else bias.double().abs())


def bound(dtype: torch.dtype, total: Tensor, size: Tensor, columns: int) -> Tensor:
    # One rounding of the result, and one per term of the float32 sum.
    return step_of(dtype) * total.abs() + columns * FLOAT32_STEP * size + 2.0**-24


# Columns: several blocks, part of a block, and a multiple of 32 but not of 64.
SHAPES = [(40, 96), (17, 2048), (65, 160)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_a_matmul_rounds_only_its_result(device: torch.device, kind: str, tokens: int, dtype: torch.dtype) -> None:
    for rows, columns in SHAPES:
        weight = quantised(kind, rows, columns)
        hidden, bias = normal(tokens, columns, seed=1).to(dtype), normal(rows, seed=2).to(dtype)
        kernel = packed(weight, bias, dtype, device)
        found = kernel(hidden[None].to(device))
        total, size = exact(hidden, weight, bias)
        assert (found.shape, found.dtype) == ((1, tokens, rows), dtype)
        assert ((found[0].cpu().double() - total).abs() <= bound(dtype, total, size, columns)).all()
        # GELU's derivative is at most 1.13.
        curved = functional.gelu(total, approximate="tanh")
        error = (kernel.with_gelu(hidden.to(device)).cpu().double() - curved).abs()
        assert (error <= bound(dtype, curved, 1.13 * size, columns) + 1e-6).all()


@pytest.mark.parametrize("kind", ["published int8", "published int4"])
@pytest.mark.parametrize("columns", [2, 20, 100, 1034])
@pytest.mark.parametrize("tokens", [1, 5])
def test_matmuls_without_a_bias_support_any_number_of_columns(
    device: torch.device, kind: str, columns: int, tokens: int
) -> None:
    weight, hidden = quantised(kind, 9, columns), normal(tokens, columns, seed=1).half()
    total, size = exact(hidden, weight)
    found = packed(weight, None, torch.float16, device)(hidden.to(device)).cpu().double()
    assert ((found - total).abs() <= bound(torch.float16, total, size, columns)).all()


@pytest.mark.parametrize("tokens", [1, 3])
def test_split_k_is_used_for_few_rows_and_is_deterministic(device: torch.device, tokens: int) -> None:
    for kind in ("int8", "int4"):
        kernel = packed(quantised(kind, 16, 4096), None, torch.float16, device)
        hidden = normal(tokens, 4096, seed=1).half().to(device)
        assert kernel._tiling(tokens).splits > 1
        assert torch.equal(kernel(hidden), kernel(hidden))


def test_a_large_networks_weights_give_enough_programs() -> None:
    for tokens in (1, 4, 64):
        for rows, columns in ((12288, 4096), (4096, 4096), (16384, 4096), (4096, 16384)):
            tiling = matmul._Tiling.of(tokens, rows, columns // 128, 8 if tokens == 1 else 1)
            assert tiling.splits * rows / tiling.block_rows >= matmul._PROGRAMS / 2
            assert (tiling.splits - 1) * tiling.per_split < columns // 128 <= tiling.splits * tiling.per_split


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows_use_dequantised_weights_rounded_once(
    device: torch.device, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "DEQUANTISE_FROM", 4)
    monkeypatch.setattr(matmul, "_WEIGHTS_AT_ONCE", 20 * 1056)
    weight, hidden, bias = quantised(kind, 33, 1056), normal(5, 1056, seed=1).to(dtype), normal(33, seed=2).to(dtype)
    kernel = packed(weight, bias, dtype, device)
    floats = kernel.dequantised(slice(3, 20), dtype).cpu().double()
    wanted = dequantise(weight, torch.float64)
    assert ((floats - wanted[3:20]).abs() <= step_of(dtype) * wanted[3:20].abs() + 2.0**-23).all()
    total, size = exact(hidden, weight, bias)
    # torch's matmul may round its sums, too.
    limit = 3 * step_of(dtype) * size
    assert ((kernel(hidden.to(device)).cpu().double() - total).abs() <= limit).all()
    curved = functional.gelu(total, approximate="tanh")
    assert ((kernel.with_gelu(hidden.to(device)).cpu().double() - curved).abs() <= 1.13 * limit + 1e-2).all()


def test_a_rows_result_does_not_depend_on_other_rows(device: torch.device) -> None:
    hidden, others = normal(5, 256, seed=1).half().to(device), normal(5, 256, seed=2).half().to(device)
    others[2] = hidden[2]
    others[3] = torch.nan
    for kind in ("int8", "int4"):
        kernel = packed(quantised(kind, 24, 256), None, torch.float16, device)
        assert torch.equal(kernel(hidden)[2], kernel(others)[2])


def test_an_empty_batch_gives_an_empty_result(device: torch.device) -> None:
    kernel = packed(quantised("int8", 16, 32), None, torch.float16, device)
    assert kernel(torch.empty(0, 32, dtype=torch.float16, device=device)).shape == (0, 16)


def test_unsupported_weights_are_left_to_torch() -> None:
    assert matmul.pack(quantised("int8", 16, 32), None, torch.float32) is None
    of_sixteen = Int4(torch.zeros(4, 24, dtype=torch.int8), torch.ones(4, 3))
    assert matmul.pack(of_sixteen, None, torch.float16) is None


def test_without_triton_quantised_matmuls_are_eager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    cuda.has_triton.cache_clear()
    assert cuda.pack(quantised("int8", 16, 32), None, torch.float16) is None
    assert cuda.decode_ops(128, 2, torch.float16) is None
    assert "triton is not installed" in caplog.text
    cuda.has_triton.cache_clear()


def test_a_linear_layer_uses_the_fused_gelu(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.engine.kernels.cpu.pack", cuda.pack)
    weight, hidden = quantised("int4", 24, 64), normal(3, 64, seed=1).half().to(device)
    part = Linear(weight.to(device), None, torch.float16)
    assert part.is_packed
    assert torch.equal(part.gelu(hidden), packed(weight, None, torch.float16, device).with_gelu(hidden))


# Decode ops


@pytest.mark.parametrize("hidden", [64, 100, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residuals_are_added_and_normalised_in_float32(device: torch.device, dtype: torch.dtype, hidden: int) -> None:
    norm = nn.LayerNorm(hidden).requires_grad_(False)
    norm.weight.copy_(normal(hidden, seed=3))
    norm.bias.copy_(normal(hidden, seed=4))
    product, residual = normal(3, hidden).to(dtype), normal(3, hidden, seed=1)
    for before in (None, residual):
        wanted, _ = eager.add_norm(product, before, 7.5, norm, dtype)
        moved = None if before is None else before.to(device)
        normed, cast = ops.add_norm(product.to(device), moved, 7.5, norm.to(device), dtype)
        norm.cpu()
        # Sums of a few thousand float32 values of about 1.
        torch.testing.assert_close(normed.cpu(), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(cast.cpu(), wanted.to(dtype), atol=1e-4, rtol=2 * step_of(dtype))


def a_cache(slots: int, capacity: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return normal(slots, 3, capacity, head_dim, seed=5).to(dtype), normal(slots, 3, capacity, head_dim, seed=6).to(
        dtype
    )


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_is_applied_and_keys_appended_except_for_padding(
    device: torch.device, head_dim: int, channels: int, dtype: torch.dtype
) -> None:
    keys, values = a_cache(4, 9, head_dim, dtype)
    heads = normal(3, 9 * head_dim).to(dtype)
    angles = rotary_angles(torch.arange(2048), head_dim // channels)
    positions = torch.tensor([[0, 1], [2047, 30], [5, 5]])[:, :channels].contiguous()
    slots, at = torch.tensor([3, 0, 0]), torch.tensor([8, 0, -1])
    found_keys, found_values = keys.to(device, copy=True), values.to(device, copy=True)
    found = ops.rope_and_append(
        heads.to(device),
        (angles[0].to(device), angles[1].to(device)),
        positions.to(device),
        found_keys,
        found_values,
        slots.to(device),
        at.to(device),
    )
    before = keys.clone()
    wanted = eager.rope_and_append(heads, angles, positions, keys, values, slots, at)
    parts = heads.view(3, 1, 3, 3, head_dim)[..., :2, :]
    torch.testing.assert_close(wanted, RotaryEmbedding(positions[:, None], head_dim)(parts)[:, 0, :, 0])
    for one, other in ((found, wanted), (found_keys, keys), (found_values, values)):
        torch.testing.assert_close(one.cpu(), other, atol=1e-6, rtol=2 * step_of(dtype))
    assert (keys != before).flatten(1).any(1).tolist() == [True, False, False, True]
    assert torch.equal(found_keys[0, :, 1:].cpu(), before[0, :, 1:])


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("capacity", "at"), [(2048, [2046]), (300, [0, 63, 64, -1, 255, 299]), (40, [39, 1]), (130, [0])], ids=str
)
def test_each_query_attends_to_its_own_slot_up_to_its_length(
    device: torch.device, capacity: int, at: list[int], head_dim: int, dtype: torch.dtype
) -> None:
    keys, values = a_cache(len(at) + 1, capacity, head_dim, dtype)
    slots = torch.arange(len(at)).flip(0) + 1
    for slot, last in zip(slots.tolist(), at, strict=True):
        keys[slot, :, last + 1 :] = torch.nan  # stale entries must not be read
        values[slot, :, last + 1 :] = torch.nan
    query, places = normal(len(at), 3, head_dim).to(dtype), torch.tensor(at)
    wanted = eager.attend(query, keys, values, slots, places)
    found = ops.attend(*(each.to(device) for each in (query, keys, values, slots, places))).cpu()
    # Both sum in float32; only the rounding of the result differs.
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=2 * step_of(dtype))
    assert not found[places < 0].any()


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # the interpreter's, of numpy
def test_a_nan_slot_affects_only_its_own_row(device: torch.device) -> None:
    keys, values = (each.to(device) for each in a_cache(2, 70, 64, torch.float16))
    query = normal(2, 3, 64).half().to(device)
    slots, at = torch.tensor([0, 1], device=device), torch.tensor([69, 69], device=device)
    wanted = ops.attend(query, keys, values, slots, at)
    keys[1], values[1] = torch.nan, torch.nan
    found = ops.attend(query, keys, values, slots, at)
    assert torch.equal(found[0], wanted[0])
    assert found[1].isnan().all()


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_decode_step_of_kernels_equals_the_network(
    device: torch.device, quantization: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.engine.kernels.cpu.pack", lambda *of: None)
    wanted = load_random(CONFIG, quantization=quantization, dtype="float16", slots=3)
    monkeypatch.setattr(
        "bot.engine.kernels.cpu.pack",
        lambda weight, *of: None if isinstance(weight, Tensor) else cuda.pack(weight, *of),
    )
    ours = load_random(CONFIG, quantization=quantization, dtype="float16", slots=3, device=device.type)
    assert ops.supports(CONFIG.head_dim, CONFIG.channels, torch.float16)
    cache = ours._caches[0]
    cache.keys.copy_(normal(*cache.keys.shape, seed=1))
    cache.values.copy_(normal(*cache.values.shape, seed=2))
    eager_cache = wanted._caches[0]
    eager_cache.keys.copy_(cache.keys)
    eager_cache.values.copy_(cache.values)
    numbers = torch.tensor([(7, 2, 20, 3, 17), (50, 0, 5, 2, 3), padding(2)]).t().contiguous()
    with torch.inference_mode():
        found = Decoder(ours.network, cache, ops)(numbers.to(device)).cpu()
        expected = Decoder(wanted.network, eager_cache, eager)(numbers)
    # The reference rounds weights to float16, the kernels do not.
    torch.testing.assert_close(found[:2], expected[:2], atol=0.03, rtol=0.03)
    torch.testing.assert_close(cache.keys.cpu(), eager_cache.keys, atol=0.03, rtol=0.03)
    assert not ops.supports(96, 2, torch.float16)
    assert not ops.supports(64, 2, torch.float32)


def test_all_kernels_compile_for_the_oldest_gpu(pytestconfig: pytest.Config) -> None:
    # Triton's cache is keyed by each kernel's source: what has not changed is not compiled again, which takes 30 s.
    cache = pytestconfig.rootpath / ".pytest_cache" / "d" / "triton"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    made = subprocess.run(
        [sys.executable, "-m", "tests.engine.compiled", "75:fp16"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    assert made.stdout.count("\n") == 15
