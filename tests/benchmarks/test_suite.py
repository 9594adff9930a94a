"""The suite measures a very small model by the same code, its arithmetic is right, and what is missed is said."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch.nn import functional

from benchmarks import machine, suite
from benchmarks.baseline import GrowingCache, eager
from benchmarks.checkpoint import first_token_seconds, reading_seconds, written_checkpoint
from benchmarks.figures import Machine
from benchmarks.goals import Row, Table, percentile, prefill_operations
from benchmarks.measure import made_up
from benchmarks.network import random_prompt
from benchmarks.options import Dimensions
from benchmarks.suite import PLANS, Batch, Channels, Kind, Plan
from benchmarks.suite_report import markdown
from bot.__main__ import cli
from bot.engine.chatglm.layout import layout_of
from bot.engine.chatglm.loading import load
from bot.engine.chatglm.model import WholeSequence

TINY = Dimensions(hidden=64, layers=2, heads=2, inner=128, vocab=64)
SMALL = Plan(
    name="cpu",
    device="cpu",
    sizes=TINY,
    dtype=torch.bfloat16,
    kinds=(
        Kind("none", batches=(Batch(2, times=1e9),)),
        Kind("int4", 1e-9, times_eager=0.0, batches=(Batch(3, rate=1.0),)),
    ),
    prompt=6,
    tokens=3,
    long_prompt=9,
    long_share=1e9,
    channels=Channels(count=3, prompt=5, tokens=4, first=100.0, first_p95=100.0, gap_p95=100.0),
    load_times=1e9,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BUFFER_BYTES", 1 << 12)
    monkeypatch.setattr(machine, "MATRIX_SIZES", {"cpu": 16})
    monkeypatch.setitem(PLANS, "cpu", SMALL)
    torch.set_num_threads(1)


def bench(*args: str) -> Result:
    return CliRunner().invoke(cli, ["bench", "--suite", "cpu", "--repeat", "1", *args])


def test_one_command_measures_everything_and_prints_json() -> None:
    ran = bench("--json")
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["suite"] == "cpu"
    assert found["machine"]["torch"] == torch.__version__
    rows = {row["what"]: row for row in found["rows"]}
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
    assert all(row["figure"] > 0 for what, row in rows.items() if "gap" not in what)
    assert rows["decode, batch 1, bfloat16"]["is_reached"] is None
    assert rows["decode, batch 2, bfloat16"]["is_reached"] is False
    assert rows["first token, int4"]["is_reached"] is True
    assert rows["load to first token, int4"]["is_reached"] is True
    assert found["missed"] == sum(row["is_reached"] is False for row in rows.values()) >= 3


def test_without_channels_and_loading_there_is_less_and_it_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "cpu", replace(SMALL, kinds=(Kind("int8", 1e9),), channels=None, load_times=None))
    ran = bench()
    assert ran.exit_code == 0, ran.output
    *_, decode, prefill, plain = ran.stdout.splitlines()
    assert decode.startswith("| decode, batch 1, int8 | ")
    assert "| **missed** | of the bandwidth; " in decode
    assert prefill.startswith("| prefill, 9 tokens, int8 | ")
    assert plain.startswith("| against plain torch, batch 1, int8 | ")


def test_a_batch_that_does_not_fit_is_said_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind("int8", batches=(Batch(1000, rate=1.0),))
    monkeypatch.setitem(PLANS, "cpu", replace(SMALL, kinds=(kind,), channels=None, load_times=None))
    monkeypatch.setattr(suite, "free_bytes", lambda device: 36_000_000)
    ran = bench()
    assert ran.exit_code == 0, ran.output
    assert (
        "| decode, batch 1000, int8 | 0.00 tok/s | ≥ 1.00 tok/s | **missed** | its cache does not fit this"
        in ran.stdout
    )


def test_the_table_is_markdown_and_says_what_is_reached() -> None:
    table = Table(
        "cpu",
        "2026-11-20",
        Machine("cpu", "A Processor", 2, "2.13.0", "3.11.7"),
        (
            Row("memory bandwidth", 40.25, "GB/s", remark="best"),
            Row("decode", 0.756, "share", 0.75),
            Row("batch 8", 2.4, "times", 2.5),
            Row("first token", 39.0, "ms", 40.0, is_limit=True, remark="alone"),
        ),
    )
    assert table.missed == 1
    assert list(markdown(table)) == [
        "2026-11-20, A Processor, 2 threads, torch 2.13.0, Python 3.11.7: `python -m bot bench --suite cpu`",
        "",
        "| | measured | goal | | |",
        "|---|---:|---:|---|---|",
        "| memory bandwidth | 40.2 GB/s |  |  | best |",
        "| decode | 76 % | ≥ 75 % | reached |  |",
        "| batch 8 | 2.40 times | ≥ 2.50 times | **missed** |  |",
        "| first token | 39.0 ms | ≤ 40.0 ms | reached | alone |",
    ]


def test_the_plans_hold_the_goals_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cuda, cpu = PLANS["cuda"], PLANS["cpu"]
    assert [(kind.quantization, kind.share) for kind in cuda.kinds] == [("none", 0.8), ("int8", 0.7), ("int4", 0.5)]
    assert [kind.times_eager for kind in cuda.kinds] == [None, None, 10]
    assert {batch.size: batch.rate for batch in cuda.kinds[2].batches} == {64: 8_000, 256: 15_000}
    assert cuda.prompt + cuda.tokens == 512
    assert (cuda.long_prompt, cuda.long_share, cuda.load_times) == (2000, 0.5, 1.5)
    assert cuda.channels == Channels(64, 200, 200, first=0.040, first_p95=1.0, gap_p95=0.060)
    assert [kind.share for kind in cpu.kinds] == [None, 0.75, 0.60]
    assert {batch.times for kind in cpu.kinds for batch in kind.batches} == {2.5}
    assert cpu.dtype_name == "bfloat16"
    assert cuda.dtype_name == "float16"


def test_the_operations_of_a_prompt_are_those_of_its_products() -> None:
    config = made_up(TINY)
    layer = 3 * 64 * 64 + 64 * 64 + 2 * 64 * 128
    assert prefill_operations(config, 10) == 2 * (10 * 2 * layer + 2 * 2 * 100 * 64 + 64 * 64)


@pytest.mark.parametrize(("share", "expected"), [(0.95, 95), (1.0, 100), (0.01, 1), (0.001, 1)])
def test_a_percentile_is_one_of_the_samples(share: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), share) == expected


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_the_plain_network_with_its_growing_cache_is_the_network(quantization: str) -> None:
    config = made_up(TINY)
    network = eager(config, quantization, torch.float32, torch.device("cpu"))  # type: ignore[arg-type]
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


def test_the_checkpoint_that_is_written_loads_as_int4_and_is_gone_afterwards() -> None:
    config = made_up(replace(TINY, vocab=128))
    with written_checkpoint(config) as folder:
        assert load(folder, slots=1).quantization == "int4"
        assert reading_seconds(folder) > 0
        assert first_token_seconds(folder, "cpu", random_prompt(config, 5)) > 0
    assert not folder.exists()


def test_where_the_system_cannot_be_told_to_forget_it_is_read_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    monkeypatch.delattr("os.posix_fadvise")
    assert reading_seconds(tmp_path) > 0


def test_memory_on_a_gpu_is_given_back_between_models(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: given_back.append(True))
    watch: Callable[[str, int, int], None] = lambda what, done, total: None  # noqa: E731  # a stand-in
    suite._Suite(SMALL, torch.device("cuda"), 1, watch)._let_go()
    assert given_back == [True]
