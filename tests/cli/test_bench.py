"""`bot bench` on a very small model: nothing is timed for its result here."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from bot.cli import cli
from bot.cli.bench import table
from bot.cli.common import progress_bar
from bot.domain import ChatMessage, EngineInfo, Queued
from bot.engine import benchmark
from bot.engine.benchmark import (
    BenchOptions,
    BenchResult,
    FixedPrompt,
    Measurement,
    NumberedTokens,
    Spread,
    StepTimer,
    random_config,
    random_prompt,
    run_clients,
)
from bot.errors import EngineFailed, EngineUnavailable
from tests.harness.fakes import ScriptedEngine

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"
TINY = "hidden=32,layers=2,heads=2,inner=64,vocab=64"
FEW = ("--prompt", "5", "--tokens", "3", "--clients", "2", "--repeat", "2", "--threads", "1")
RESULT = BenchResult(
    EngineInfo("demo", "chatglm", "int4", "bfloat16", "cpu", 2048),
    {"device": "cpu", "device_name": "A Processor", "threads": 2, "torch": "2.13.0", "python": "3.11.7"},
    (
        Measurement("loading", "s", Spread(1.5, 1.5, 1.5)),
        Measurement("prefill", "tok/s", Spread(512, 500, 520)),
        Measurement("decode, batch 4", "tok/s", Spread(40, 38, 44)),
    ),
)


class NoBenchmarks:
    """Import finder of an installation without the repository."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "benchmarks":
            raise ModuleNotFoundError("No module named 'benchmarks'", name=name)


def bench(*args: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *args])


def test_help_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "Use random weights: hidden=1024,layers=8" in bench("--help").output


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_random_weights_are_measured_and_printed_as_json(quantization: str) -> None:
    ran = bench("--random", TINY, "--quantization", quantization, "--batch", "2", "--json", *FEW)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["info"]["model"] == TINY
    assert found["info"]["quantization"] == quantization
    assert found["machine"]["threads"] == 1
    assert found["machine"]["torch"] == torch.__version__
    rows = {row["name"]: row for row in found["measurements"]}
    assert list(rows) == [
        "loading",
        "peak memory",
        "first token",
        "prefill",
        "decode, batch 2",
        "decode, per sequence",
        "engine, 1 client",
        "engine, 1 client: first text",
        "engine, 2 clients",
        "engine, 2 clients: first text",
        "2 clients / 1 client",
    ]
    assert all(0 < row["value"]["low"] <= row["value"]["median"] <= row["value"]["high"] for row in rows.values())
    together, each = rows["decode, batch 2"]["value"], rows["decode, per sequence"]["value"]
    assert together["median"] == pytest.approx(2 * each["median"])
    one, many = (rows[name]["value"]["median"] for name in ("engine, 1 client", "engine, 2 clients"))
    assert rows["2 clients / 1 client"]["value"]["median"] == pytest.approx(many / one)


def test_a_checkpoint_is_measured_and_the_phases_are_shown_on_standard_error() -> None:
    ran = bench("--model", str(GOLDEN), *FEW)
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith(f"{GOLDEN} · not quantized · float32 on cpu")
    assert "2 clients / 1 client" in ran.stdout
    assert ran.stderr.splitlines() == [
        "Loading the model …",
        "Warming up …",
        "Model and sampler …",
        "Engine and clients …",
    ]


def test_a_model_split_over_several_devices_is_measured() -> None:
    ran = bench("--random", TINY, "--device", "cpu,cpu", "--json", *FEW)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert (found["machine"]["device"], found["info"]["device"]) == ("cpu", "cpu,cpu")


def test_small_networks_run_with_one_thread_as_when_serving() -> None:
    ran = bench("--random", TINY, "--json", *FEW[:-2])
    assert json.loads(ran.stdout)["machine"]["threads"] == 1


def test_one_client_can_be_measured_alone() -> None:
    ran = bench("--random", TINY, "--json", *FEW, "--clients", "1")
    assert ran.exit_code == 0, ran.output
    assert "engine, 1 client" in ran.stdout


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--random", "hiden=256"), '"hiden=256" is not NAME=NUMBER with one of: hidden, layers, heads, inner, vocab'),
        (("--random", "hidden"), '"hidden" is not NAME=NUMBER'),
        (("--random", "layers=1,layers=2"), "layers is given twice"),
        (("--random", "layers=-1"), '"layers=-1" is not NAME=NUMBER'),
        (("--random", "heads=0"), '"heads=0" is not NAME=NUMBER'),
        (("--random", "hidden=100,heads=2"), "hidden = 100 with 2 heads: use a multiple of 8"),
        (("--random", "inner=7"), "inner = 7 is odd: int4 packs two columns into a byte"),
        (("--random", "vocab=5"), "vocab = 5 is too small"),
        (("--random", TINY, "--model", "demo"), "--model and --random exclude each other"),
        (("--suite", "cpu", "--model", "demo"), "--suite cpu brings its own model: omit --model and --random"),
        (
            ("--random", TINY, "--prompt", "2048"),
            "--prompt or --question with --tokens: the prompt takes 2112 tokens, and the model's context holds 2048",
        ),
        (("--quantization", "int5"), "'int5' is not one of"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_exit_code_2(args: Sequence[str], sentence: str) -> None:
    ran = bench(*args)
    assert ran.exit_code == 2
    *_, error = ran.output.splitlines()
    assert error.startswith("Error: ")
    assert sentence in error


def test_a_model_or_device_that_does_not_exist_is_one_sentence() -> None:
    assert "no such folder" in str(bench("--model", "nowhere").exception)
    assert "is not a device" in str(bench("--random", TINY, "--device", "tpu").exception)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bot.engine.benchmark")
    monkeypatch.setitem(sys.modules, "torch", None)
    error = bench().exception
    assert isinstance(error, EngineUnavailable)
    assert "bench needs the package torch" in str(error)
    monkeypatch.setitem(sys.modules, "bot.engine.benchmark", None)
    assert isinstance(bench().exception, ModuleNotFoundError), "a missing module of our own is a bug"


def test_a_suite_without_the_repository_says_where_to_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.suite", None)
    assert isinstance(bench("--suite", "cpu").exception, ModuleNotFoundError), "a missing module of our own is a bug"
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoBenchmarks(), *sys.meta_path])
    error = bench("--suite", "cpu").exception
    assert isinstance(error, EngineUnavailable)
    assert "run python -m bot bench --suite cpu in a checkout of the repository" in str(error)


def test_ctrl_c_ends_it_at_once_and_without_a_traceback() -> None:
    command = [sys.executable, "-m", "bot", "bench", "--random", TINY, "--repeat", "1000000", "--tokens", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        shown = ""
        while "Model and sampler" not in shown:
            line = process.stderr.readline()
            assert line, "it ended by itself"
            shown += line
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=600)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in rest


def test_medians_and_rates_of_given_times() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)
    assert Spread.rate(100, [2.0, 1.0, 4.0]) == Spread(50.0, 25.0, 100.0)


def test_a_random_prompt_ends_as_the_model_expects_and_has_no_other_control_token() -> None:
    config = random_config(vocab=64)
    prompt = random_prompt(config, 50)
    assert len(prompt) == 50
    assert prompt[-2:] == (config.gmask_token_id, config.bos_token_id)
    assert max(prompt[:-2]) < 59


class NanModel:
    context_length = 100
    slots = 1

    def forward(self, batch: object) -> torch.Tensor:
        return torch.full((1, 64), torch.nan)


def test_logits_that_are_nan_are_not_measured() -> None:
    steps = StepTimer(NanModel(), 64, random_prompt(random_config(vocab=64), 5), BenchOptions(tokens=2))
    with pytest.raises(EngineFailed, match="nothing to measure"):
        steps.warm_up()


async def test_clients_are_different_users_and_each_answer_is_timed() -> None:
    engine = ScriptedEngine([Queued(1), "ab", "cd"], "", default="abcd")
    seen = await run_clients(engine, 3, tokens=4)
    assert seen.tokens_per_second > 0
    assert len(seen.text_seconds) == 3
    assert all(seen.text_seconds)
    assert len({(request.user, request.channel) for request in engine.requests}) == 3
    assert {request.params.max_tokens for request in engine.requests} == {4}


def test_random_weights_produce_text_like_a_real_vocabulary() -> None:
    tokenizer = FixedPrompt([1, 2, 3], NumberedTokens(64))
    assert tokenizer.prompt([ChatMessage("user", "any text")]) == [1, 2, 3]
    detokenizer = tokenizer.detokenizer()
    assert "".join([detokenizer.push(7), detokenizer.push(8), detokenizer.finish()]) == "7 8"


def test_the_table_shows_median_and_range() -> None:
    assert list(table(RESULT)) == [
        "demo · int4 · bfloat16 on cpu (A Processor), threads: 2 · torch 2.13.0, Python 3.11.7",
        "loading                                1.50 s",
        "prefill                                 512 tok/s  500 to 520",
        "decode, batch 4                        40.0 tok/s  38.0 to 44.0",
    ]


def test_a_terminal_shows_a_progress_bar_that_disappears() -> None:
    screen = io.StringIO()
    with progress_bar(console=Console(file=screen, force_terminal=True, width=120)) as show:
        for done in range(4):
            show("Model and sampler", done, 3)
    assert "Model and sampler" in screen.getvalue()
    assert screen.getvalue().rstrip().endswith("\x1b[2K"), "the line is erased"


def test_a_processor_without_a_name_is_called_by_its_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "_CPU_INFO", tmp_path / "missing")
    assert benchmark.describe(torch.device("cpu"))["device_name"]
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some Processor\n")
    monkeypatch.setattr(benchmark, "_CPU_INFO", tmp_path / "cpuinfo")
    assert benchmark.describe(torch.device("cpu"))["device_name"] == "Some Processor"


def test_peak_memory_includes_memory_that_was_freed() -> None:
    held = bytearray(64 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
    peak = benchmark.peak_memory(torch.device("cpu"))["peak memory"]
    del held
    assert benchmark.peak_memory(torch.device("cpu"))["peak memory"] >= peak > 64 << 20
