"""Suites, run on a very small model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch.nn import functional

from benchmarks import suite
from benchmarks.baseline import GrowingCache, eager_network
from benchmarks.checkpoint import first_token_seconds, reading_seconds, written_checkpoint
from benchmarks.report import SuiteRow, SuiteTable, markdown, percentile
from benchmarks.roofline import prefill_operations, step_bytes, torch_threads
from benchmarks.suite import PLANS, BatchTarget, ChannelsPlan, SuitePlan, WeightsPlan
from benchmarks.wide import WidePlan
from bot.cli import cli
from bot.engine.benchmark import random_config, random_prompt
from bot.engine.chatglm.layout import layout_of
from bot.engine.chatglm.loading import load, load_random
from bot.engine.chatglm.model import WholeSequence
from bot.engine.kernels import Int4, Int8

TINY = random_config(hidden=64, layers=2, heads=2, inner=128, vocab=64)
SMALL = SuitePlan(
    name="cpu",
    device="cpu",
    config=TINY,
    dtype=torch.bfloat16,
    weights=(
        WeightsPlan("none", batches=(BatchTarget(2, times=1e9),)),
        WeightsPlan("int4", 1e-9, times_eager=0.0, batches=(BatchTarget(3, rate=1.0),)),
    ),
    prompt=6,
    tokens=3,
    long_prompt=9,
    long_share=1e9,
    channels=ChannelsPlan(count=3, prompt=5, tokens=4, first=100.0, first_p95=100.0, gap_p95=100.0),
    load_times=1e9,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "cpu", SMALL)


def bench(*args: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "--suite", "cpu", "--repeat", "1", *args])


def test_the_suite_measures_everything_and_prints_json() -> None:
    ran = bench("--json")
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["suite"] == "cpu"
    assert found["machine"]["torch"] == torch.__version__
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [
        "memory bandwidth",
        "matrix rate",
        "decode, batch 1, bfloat16",
        "decode, batch 2, bfloat16",
        "prefill, 9 tokens, bfloat16",
        "first token, bfloat16",
        "3 channels at once, bfloat16: first token, p95",
        "3 channels at once, bfloat16: gap, p95",
        "against plain torch, batch 1, bfloat16",
        "decode, batch 1, int4",
        "decode, batch 3, int4",
        "prefill, 9 tokens, int4",
        "first token, int4",
        "3 channels at once, int4: first token, p95",
        "3 channels at once, int4: gap, p95",
        "against plain torch, batch 1, int4",
        "load to first token, int4",
    ]
    assert all(row["value"] > 0 for name, row in rows.items() if "gap" not in name)
    assert rows["decode, batch 1, bfloat16"]["is_reached"] is None
    assert rows["decode, batch 2, bfloat16"]["is_reached"] is False
    assert rows["first token, int4"]["is_reached"] is True
    assert rows["load to first token, int4"]["is_reached"] is True
    assert found["missed"] == sum(row["is_reached"] is False for row in rows.values()) >= 3


def test_a_plan_without_channels_and_loading_gives_a_shorter_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        PLANS, "cpu", replace(SMALL, weights=(WeightsPlan("int8", 1e9),), channels=None, load_times=None)
    )
    ran = bench()
    assert ran.exit_code == 0, ran.output
    *_, decode, prefill, plain = ran.stdout.splitlines()
    assert decode.startswith("| decode, batch 1, int8 | ")
    assert "| **missed** | of the bandwidth; " in decode
    assert prefill.startswith("| prefill, 9 tokens, int8 | ")
    assert plain.startswith("| against plain torch, batch 1, int8 | ")


def test_wide_layers_are_compared_with_unquantised_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = WidePlan(TINY, prompts=(5, 9), batch=3, prompt=4, tokens=2, prefill=1e9, decode=0.0)
    monkeypatch.setitem(PLANS, "cpu", replace(SMALL, channels=None, wide=wide, load_times=None))
    rows = {row["name"]: row for row in json.loads(bench("--json").stdout)["rows"][-6:]}
    assert list(rows) == [
        f"{work}, 64 wide, {kind}"
        for kind in ("bfloat16", "int4")
        for work in ("prefill, 5 tokens", "prefill, 9 tokens", "decode, batch 3")
    ]
    assert all(row["value"] > 0 for row in rows.values())
    assert rows["prefill, 9 tokens, 64 wide, bfloat16"]["is_reached"] is None
    assert rows["prefill, 9 tokens, 64 wide, int4"]["is_reached"] is False
    assert rows["decode, batch 3, 64 wide, int4"]["is_reached"] is True


def test_a_batch_that_does_not_fit_is_reported_and_the_rest_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = WeightsPlan("int8", batches=(BatchTarget(1000, rate=1.0),))
    monkeypatch.setitem(PLANS, "cpu", replace(SMALL, weights=(weights,), channels=None, load_times=None))
    monkeypatch.setattr(suite, "available_bytes", lambda device: 36_000_000)
    ran = bench()
    assert ran.exit_code == 0, ran.output
    assert (
        "| decode, batch 1000, int8 | 0.00 tok/s | ≥ 1.00 tok/s | **missed** | its cache does not fit this"
        in ran.stdout
    )


def test_the_markdown_table_shows_which_targets_are_reached() -> None:
    table = SuiteTable(
        "cpu",
        "2026-11-20",
        {"device": "cpu", "device_name": "A Processor", "threads": 2, "torch": "2.13.0", "python": "3.11.7"},
        (
            SuiteRow("memory bandwidth", 40.25, "GB/s", remark="best"),
            SuiteRow("decode", 0.756, "share", 0.75),
            SuiteRow("batch 8", 2.4, "times", 2.5),
            SuiteRow("first token", 39.0, "ms", 40.0, is_limit=True, remark="alone"),
        ),
    )
    assert table.missed == 1
    assert list(markdown(table)) == [
        "2026-11-20, A Processor, 2 threads, torch 2.13.0, Python 3.11.7: `python -m bot bench --suite cpu`",
        "",
        "| | measured | target | | |",
        "|---|---:|---:|---|---|",
        "| memory bandwidth | 40.2 GB/s |  |  | best |",
        "| decode | 76 % | ≥ 75 % | reached |  |",
        "| batch 8 | 2.40 times | ≥ 2.50 times | **missed** |  |",
        "| first token | 39.0 ms | ≤ 40.0 ms | reached | alone |",
    ]


def test_the_plans_hold_the_targets_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cuda, cpu = PLANS["cuda"], PLANS["cpu"]
    assert (cuda.wide, cpu.wide) == (None, WidePlan())
    assert (WidePlan().config.hidden_size, WidePlan().prefill, WidePlan().decode) == (4096, 0.75, 1.0)
    assert [(weights.quantization, weights.share) for weights in cuda.weights] == [
        ("none", 0.8),
        ("int8", 0.7),
        ("int4", 0.5),
    ]
    assert [weights.times_eager for weights in cuda.weights] == [None, None, 10]
    assert {batch.size: batch.rate for batch in cuda.weights[2].batches} == {64: 8_000, 256: 15_000}
    assert cuda.prompt + cuda.tokens == 512
    assert (cuda.long_prompt, cuda.long_share, cuda.load_times) == (2000, 0.5, 1.5)
    assert cuda.channels == ChannelsPlan(64, 200, 200, first=0.040, first_p95=1.0, gap_p95=0.060)
    assert [weights.share for weights in cpu.weights] == [None, 0.75, 0.60]
    assert {batch.times for weights in cpu.weights for batch in weights.batches} == {2.5}
    assert cpu.dtype_name == "bfloat16"
    assert cuda.dtype_name == "float16"


def test_prefill_operations_count_products_attention_and_logits() -> None:
    config = TINY
    layer = 3 * 64 * 64 + 64 * 64 + 2 * 64 * 128
    assert prefill_operations(config, 10) == 2 * (10 * 2 * layer + 2 * 2 * 100 * 64 + 64 * 64)


@pytest.mark.parametrize(("share", "expected"), [(0.95, 95), (1.0, 100), (0.01, 1), (0.001, 1)])
def test_a_percentile_is_one_of_the_samples(share: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), share) == expected


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_the_eager_network_with_a_growing_cache_computes_the_same(quantization: str) -> None:
    config = TINY
    network = eager_network(config, quantization, torch.float32, torch.device("cpu"))  # type: ignore[arg-type]
    prompt = random_prompt(config, 7)
    ids = [*prompt, 9, 11]
    layout = layout_of(prompt, config)
    positions, mask = layout.positions(len(ids))[None], layout.mask(len(ids))
    whole = network.hidden(torch.tensor([ids]), positions, WholeSequence(mask[None]))
    cache = GrowingCache()
    cache.hidden = layout.mask(len(prompt))
    parts = [network.hidden(torch.tensor([prompt]), positions[:, :7], cache)]
    cache.hidden = None
    parts += [network.hidden(torch.tensor([[ids[at]]]), positions[:, at : at + 1], cache) for at in (7, 8)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)
    assert functional.cosine_similarity(whole[0, -1], whole[0, -2], dim=0) < 1


def test_the_temporary_checkpoint_loads_as_int4_and_is_deleted() -> None:
    config = random_config(hidden=64, layers=2, heads=2, inner=128, vocab=128)
    with written_checkpoint(config) as folder:
        assert load(folder, slots=1).quantization == "int4"
        assert reading_seconds(folder) > 0
        assert first_token_seconds(folder, "cpu", random_prompt(config, 5)) > 0
    assert not folder.exists()


def test_reading_works_without_posix_fadvise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    monkeypatch.delattr("os.posix_fadvise")
    assert reading_seconds(tmp_path) > 0


def test_gpu_memory_is_freed_between_models(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[bool] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: freed.append(True))
    watch: Callable[[str, int, int], None] = lambda phase, done, total: None  # noqa: E731  # a stub
    suite._Suite(SMALL, torch.device("cuda"), 1, watch)._free_memory()
    assert freed == [True]


def test_a_step_reads_every_matrix_once_with_scales_and_biases() -> None:
    config = random_config(hidden=64, layers=2, heads=2, inner=128, vocab=100)
    table, norms = 100 * 64, 4 * (2 * 2 + 1) * 2 * 64
    weights = 2 * (3 * 64 * 64 + 64 * 64 + 128 * 64 + 64 * 128)
    rows = 2 * (3 * 64 + 64 + 128 + 64)
    assert step_bytes(config, "none", 4) == 4 * (table + weights + rows) + norms
    scored = table + 4 * 100  # the embedding is int8 in both
    assert step_bytes(config, "int8", 2) == 2 * rows + scored + weights + 4 * rows + norms
    # Groups have up to 128 columns, so every row has one scale.
    assert step_bytes(config, "int4", 2) == 2 * rows + scored + weights // 2 + 4 * rows + norms
    wide = replace(config, hidden_size=256)
    published = replace(wide, quantization_bit=4, quantization_embeddings=True)
    scales = 4 * (2 * (3 * 256 + 256 + 128) * 2 + 2 * 256)
    fewer = 4 * 2 * (3 * 256 + 256 + 128 + 256)
    assert step_bytes(wide, "int4", 2) - step_bytes(published, "int4", 2) == scales - fewer + 100 * 256 // 2
    floating = replace(published, quantization_embeddings=False)
    saved = 2 * 100 * 256 - (100 * 256 // 2 + 4 * 100)
    assert step_bytes(floating, "int4", 2) - step_bytes(published, "int4", 2) == saved


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_step_bytes_equal_the_tensors_of_a_network(quantization: str) -> None:
    config = random_config(hidden=128, layers=1, heads=2, inner=128, vocab=64)
    model = load_random(config, quantization=quantization, dtype="float16", slots=1)  # type: ignore[arg-type]
    held = sum(norm.nbytes for norm in model.network.parameters())
    for module in model.network.modules():
        matmul = vars(module).get("_matmul")
        for part in vars(matmul).values() if matmul is not None and hasattr(matmul, "_weight") else ():
            match part:
                case torch.Tensor():
                    held += part.nbytes
                case Int8():
                    held += part.values.nbytes + part.scale.nbytes
                case Int4(packed, scale, zero):
                    held += packed.nbytes + scale.nbytes + (0 if zero is None else zero.nbytes)
    assert step_bytes(config, quantization, 2) == held


def test_torch_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
