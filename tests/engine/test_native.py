"""Native matmuls and layers against their references; skipped without a C compiler."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.loading import load_random
from bot.engine.kernels import Quantised, quantise
from bot.engine.kernels.native import build, matmul
from bot.engine.kernels.reference import Int4, dequantise, linear, quantise_rows
from bot.engine.serving.base import Batch

needs_library = pytest.mark.skipif(build.library() is None, reason="no C compiler is here")

# Float32 sums in another order: each term may differ by its rounding.
SUM_ERROR = 2.0**-23
BFLOAT16_ERROR = 2.0**-8
# Some CPUs round activations to 16 bits of the largest.
ROUNDING = 2.0**-16

KINDS = ["int8", "int4", "int4 a scale a row"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantised(kind: str, weight: Tensor) -> Quantised:
    return quantise_rows(weight, 4) if kind == KINDS[2] else quantise(weight, int(kind[3:]))


def pack_native(weight: Quantised, bias: Tensor | None) -> matmul.NativeMatmul:
    kernel = matmul.pack(weight, bias)
    assert kernel is not None
    return kernel


def largest_sum(hidden: Tensor, weight: Quantised) -> float:
    return (hidden.abs() @ dequantise(weight).abs().T).max().item()


def few_rows_error(hidden: Tensor, weight: Quantised) -> float:
    sums = hidden.shape[-1] * SUM_ERROR * (largest_sum(hidden, weight) + 4)
    rounded = ROUNDING * hidden.abs().amax() * dequantise(weight).abs().sum(1).amax()
    return sums + rounded.item()


# Matmuls


@needs_library
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 7).map(lambda blocks: 16 * blocks),
    columns=st.integers(1, 11).map(lambda blocks: 32 * blocks),
    tokens=st.integers(1, matmul.MOST_ROWS),
    has_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_few_rows_use_exact_weights(kind: str, rows: int, columns: int, tokens: int, has_bias: bool, seed: int) -> None:
    weight = quantised(kind, normal(rows, columns, seed=seed))
    bias = normal(rows, seed=seed + 1) if has_bias else None
    hidden = normal(tokens, columns, seed=seed + 2).bfloat16().float()
    found = pack_native(weight, bias)(hidden)
    error = (found - linear(hidden, weight, bias)).abs().max().item()
    assert error <= few_rows_error(hidden, weight)


@needs_library
@given(
    rows=st.integers(1, 7).map(lambda blocks: 16 * blocks),
    columns=st.integers(1, 11).map(lambda blocks: 16 * blocks),
    tokens=st.integers(1, matmul.MOST_ROWS + 7),
    has_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_bfloat16_weights_are_multiplied(rows: int, columns: int, tokens: int, has_bias: bool, seed: int) -> None:
    weight = normal(rows, columns, seed=seed).bfloat16()
    bias = normal(rows, seed=seed + 1).bfloat16() if has_bias else None
    hidden = normal(tokens, columns, seed=seed + 2)
    kernel = matmul.pack(weight, bias)
    assert kernel is not None
    wanted = hidden @ weight.float().T + (0 if bias is None else bias.float())
    largest = (hidden.abs() @ weight.float().abs().T).max().item()
    assert (kernel(hidden) - wanted).abs().max().item() <= BFLOAT16_ERROR * (largest + 4)


@needs_library
def test_with_bfloat16_weights_a_row_gives_the_same_numbers_with_any_number_of_others() -> None:
    kernel = matmul.pack(normal(48, 224).bfloat16(), normal(48).bfloat16())
    assert kernel is not None
    hidden = normal(kernel.most_rows, 224, seed=1)
    alone = torch.cat([kernel(row[None]) for row in hidden])
    for rows in range(2, kernel.most_rows + 1):
        assert torch.equal(kernel(hidden[:rows]), alone[:rows]), rows


@needs_library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [matmul.MOST_ROWS + 1, 2 * matmul.MOST_ROWS + 7])
@pytest.mark.parametrize("is_converted", [True, False])
@pytest.mark.parametrize("at_once", [1, 5, 48])
def test_many_rows_use_bfloat16_weights(
    kind: str, tokens: int, is_converted: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "multiplies_bfloat16", lambda: is_converted)
    monkeypatch.setattr(matmul, "_CONVERTED", at_once * 160)
    weight, bias = quantised(kind, normal(48, 160, seed=1)), normal(48, seed=2)
    hidden = normal(tokens, 160, seed=3).bfloat16()
    found = pack_native(weight, bias)(hidden)
    assert found.dtype == torch.bfloat16
    error = (found.float() - linear(hidden.float(), weight, bias)).abs().max().item()
    assert error <= 2 * BFLOAT16_ERROR * largest_sum(hidden.float(), weight)


@needs_library
def test_two_threads_convert_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "multiplies_bfloat16", lambda: True)
    kernels = [pack_native(quantise(normal(64, columns, seed=columns), 8), None) for columns in (128, 256)]
    hidden = [normal(matmul.MOST_ROWS + 1, kernel.columns).bfloat16() for kernel in kernels]
    alone = [kernel(rows) for kernel, rows in zip(kernels, hidden, strict=True)]
    both_run = Barrier(2)

    def repeat(which: int) -> bool:
        both_run.wait()
        return all(torch.equal(kernels[which](hidden[which]), alone[which]) for _ in range(50))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(repeat, range(2)))


@needs_library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [800, 1152])
def test_a_row_gives_the_same_numbers_with_any_number_of_others(kind: str, columns: int) -> None:
    kernel = pack_native(quantised(kind, normal(48, columns)), normal(48))
    hidden = normal(matmul.MOST_ROWS, columns, seed=1)
    alone = torch.cat([kernel(row[None]) for row in hidden])
    for rows in range(2, matmul.MOST_ROWS + 1):
        assert torch.equal(kernel(hidden[:rows]), alone[:rows]), rows


@needs_library
def test_a_matmul_keeps_the_leading_dimensions() -> None:
    kernel = pack_native(quantise(normal(32, 64), 8), None)
    assert kernel(normal(2, 3, 64).bfloat16()).shape == (2, 3, 32)
    assert kernel(normal(64).bfloat16()).shape == (32,)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nan_and_infinity_propagate(kind: str, wrong: float) -> None:
    kernel = pack_native(quantised(kind, normal(16, 128)), None)
    hidden = normal(3, 128)
    hidden[1, 5] = wrong
    found = kernel(hidden)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@needs_library
def test_unsupported_sizes_are_not_packed() -> None:
    assert matmul.pack(quantise(normal(24, 64), 8), None) is None
    assert matmul.pack(quantise(normal(32, 72), 8), None) is None
    assert matmul.pack(quantise_rows(normal(32, 80), 4), None) is None


@needs_library
def test_groups_without_zero_points_are_supported() -> None:
    weight = quantise(normal(16, 256), 4)
    assert isinstance(weight, Int4)
    without = Int4(weight.packed, weight.scale)
    hidden = normal(2, 256, seed=1).bfloat16().float()
    error = (pack_native(without, None)(hidden) - linear(hidden, without)).abs().max().item()
    assert error <= few_rows_error(hidden, without)


# Layers

# Two head sizes, a vocabulary that the native matmul supports, and prompts of several lengths.
SIZES: list[dict[str, Any]] = [
    {"hidden_size": 64, "num_attention_heads": 4, "inner_hidden_size": 160, "num_layers": 3},
    {"hidden_size": 128, "num_attention_heads": 2, "inner_hidden_size": 96, "num_layers": 1},
]


def config_of(sizes: dict[str, Any]) -> ChatGLMConfig:
    return ChatGLMConfig(
        vocab_size=160,
        max_sequence_length=64,
        layernorm_epsilon=1e-5,
        mask_token_id=155,
        gmask_token_id=156,
        bos_token_id=157,
        eos_token_id=158,
        pad_token_id=159,
        **sizes,
    )


def prompt(words: int, seed: int) -> tuple[int, ...]:
    return (*(5 + (7 * seed + 3 * word) % 140 for word in range(words)), 156, 157)


@needs_library
@pytest.mark.parametrize("kind", ["none", "int8", "int4"])
@pytest.mark.parametrize("sizes", SIZES)
def test_native_layers_equal_layerwise_decoding(sizes: dict[str, Any], kind: Any) -> None:
    config = config_of(sizes)
    lengths = (1, 9, 30, 4, 17, 6, 2, 12, 20)
    model, plain = (load_random(config, quantization=kind, dtype="bfloat16", slots=len(lengths)) for _ in range(2))
    assert model._native is not None
    plain._native = None
    prompts = tuple(prompt(words, seed) for seed, words in enumerate(lengths))
    slots = tuple(range(len(lengths)))
    for each in (model, plain):
        each.forward(Batch(slots, prompts, (0,) * len(slots)))
    starts = [len(tokens) for tokens in prompts]
    # Rows in any order, and not all of them in every step.
    for step, rows in enumerate(([*slots], [5], [7, 2, 8], [*reversed(slots)], [0, 1])):
        batch = Batch(
            tuple(rows), tuple((5 + (step * 11 + row) % 140,) for row in rows), tuple(starts[row] for row in rows)
        )
        found, wanted = model.forward(batch), plain.forward(batch)
        assert found.shape == wanted.shape
        # The layerwise path rounds to bfloat16 between ops.
        apart = (found - wanted).norm() / wanted.norm()
        assert apart < 0.02, step
        for row in rows:
            starts[row] += 1


@needs_library
def test_a_nan_slot_does_not_affect_others() -> None:
    model = load_random(config_of(SIZES[0]), quantization="int8", slots=3)
    prompts = tuple(prompt(words, words) for words in (4, 8, 5))
    model.forward(Batch((0, 1, 2), prompts, (0, 0, 0)))
    starts = tuple(len(tokens) for tokens in prompts)
    batch = Batch((0, 1, 2), ((6,), (7,), (8,)), starts)
    wanted = model.forward(batch)
    model._caches[0].keys[1, 1, :, 2] = float("nan")
    found = model.forward(batch)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], wanted[[0, 2]])


@needs_library
def test_more_rows_than_the_native_limit_are_decoded_by_torch() -> None:
    slots = matmul.MOST_ROWS + 2
    model = load_random(config_of(SIZES[0]), quantization="int8", slots=slots)
    rows = tuple(range(slots))
    prompts = tuple(prompt(3 + row % 4, row) for row in rows)
    model.forward(Batch(rows, prompts, (0,) * slots))
    starts = tuple(len(tokens) for tokens in prompts)
    together = model.forward(Batch(rows, ((9,),) * slots, starts))
    alone = model.forward(Batch(rows[:4], ((9,),) * 4, starts[:4]))
    assert (together[:4] - alone).norm() / alone.norm() < 0.02


# Compiling


@needs_library
@pytest.mark.parametrize("kind", ["AMX", "AVX512_VNNI", "AVX512", "AVX2", "DEFAULT"])
def test_each_cpu_type_has_its_own_library_with_the_same_results(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build.compile_for(kind, tmp_path)
    assert [*tmp_path.iterdir()] == [made]
    kinds = [*build._KINDS]
    if kinds.index(kind) < kinds.index(build.kind_of_processor()):
        return  # this processor cannot run it
    older = build._load(made)
    is_rounded = kinds.index(kind) <= kinds.index("AVX512_VNNI")
    few, many = (normal(tokens, 256, seed=tokens).bfloat16() for tokens in (11, 70))
    for name in KINDS:
        weight = quantised(name, normal(48, 256))
        kernel = pack_native(weight, normal(48))
        wanted = kernel(few.float()), kernel(many)
        with monkeypatch.context() as patched:
            patched.setattr(matmul, "loaded_library", lambda: older)
            error = (kernel(few.float()) - wanted[0]).abs().max().item()
            apart = (kernel(many).float() - wanted[1].float()).abs().max().item()
        assert apart <= 2 * BFLOAT16_ERROR * largest_sum(many.float(), weight)
        assert error <= few_rows_error(few.float(), weight)
        if is_rounded:
            assert error == 0


def test_without_a_compiler_torchs_matmuls_are_used_and_the_log_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build, "_name", lambda kind: "not-there.so")
    with caplog.at_level(logging.WARNING):
        assert build.library.__wrapped__() is None
    assert "apt install gcc libc6-dev" in caplog.text


def test_an_invalid_library_file_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_name", lambda kind: "torn.so")
    (tmp_path / "chatglm-bot").mkdir()
    (tmp_path / "chatglm-bot" / "torn.so").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        assert build.library.__wrapped__() is None
    assert "torn.so" in caplog.text


def test_a_failing_compilers_output_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'no omp.h here' >&2\nexit 3\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(build, "_name", lambda kind: "not-there.so")
    with caplog.at_level(logging.WARNING):
        assert build.library.__wrapped__() is None
    assert "no omp.h here" in caplog.text
