"""The bench runs on a very small model, its arithmetic is right, and mistakes are told.  It times nothing here."""

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from rich.console import Console

from benchmarks import machine, report
from benchmarks.clients import FixedLength, MadeUpWords, one_round
from benchmarks.figures import Figures, Machine, Memory, Network, Served, Spread, step_bytes
from benchmarks.measure import made_up
from benchmarks.network import Steps, random_prompt
from benchmarks.options import Dimensions, OptionError, Options
from bot.__main__ import cli
from bot.domain import ChatMessage, Queued
from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.loading import load_random
from bot.engine.kernels import Int4, Int8
from bot.errors import EngineFailed, EngineUnavailable
from tests.harness.fakes import ScriptedEngine

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TINY = "hidden=32,layers=2,heads=2,inner=64,vocab=64"
FEW = ("--prompt", "5", "--tokens", "3", "--clients", "2", "--repeat", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BUFFER_BYTES", 1 << 12)


def bench(*args: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *args])


def figures(**changes: object) -> Figures:
    """Made-up figures: a batch of 4 decodes 40 tok/s together, so 10 steps a second."""
    made = Figures(
        options=Options(batch=4),
        quantization="int4",
        dtype="bfloat16",
        machine=Machine("cpu", "A Processor", 2, "2.13.0", "3.11.7"),
        load_seconds=1.5,
        memory=Memory(resident=700_000_000, anonymous=500_000_000),
        network=Network(Spread(0.25, 0.2, 0.3), Spread(512, 500, 520), Spread(40, 38, 44), 600_000_000, 8e9),
        one_client=Served(1, Spread(12, 11, 13), Spread(0.3, 0.3, 0.3)),
        many_clients=Served(8, Spread(42, 40, 43), Spread(0.9, 0.5, 1.2)),
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # each test names real fields


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_it_measures_a_made_up_model_and_prints_json(quantization: str) -> None:
    ran = bench("--random", TINY, "--quantization", quantization, "--batch", "2", "--json", *FEW)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["model"] == TINY
    assert found["quantization"] == quantization
    assert found["options"]["batch"] == 2
    assert found["machine"]["threads"] == 1
    assert found["machine"]["torch"] == torch.__version__
    network = found["network"]
    per_sequence = network["decode_tokens_per_second"]["median"] / 2
    assert network["decode_tokens_per_second_per_sequence"] == per_sequence
    assert network["bandwidth_share"] == pytest.approx(
        network["weight_bytes_per_step"] * per_sequence / network["bandwidth_bytes_per_second"]
    )
    assert [found[key]["clients"] for key in ("one_client", "many_clients")] == [1, 2]
    assert found["clients_ratio"] > 0


def test_it_measures_a_checkpoint_and_tells_what_it_does_on_standard_error() -> None:
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


def test_it_measures_a_model_whose_layers_several_devices_share() -> None:
    ran = bench("--random", TINY, "--device", "cpu,cpu", "--json", *FEW)
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout)["machine"]["device"] == "cpu"


def test_small_networks_run_with_one_thread_as_when_serving() -> None:
    ran = bench("--random", TINY, "--json", *FEW[:-2])
    assert json.loads(ran.stdout)["machine"]["threads"] == 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--random", "hiden=256"), '--random: there is no size "hiden"; did you mean hidden?'),
        (("--random", "zzz=256"), '--random: there is no size "zzz"; there are hidden, layers, heads, inner, vocab'),
        (("--random", "hidden"), '--random: "hidden" is not written name=number, as in hidden=1024,layers=8'),
        (("--random", "layers=1,layers=2"), "--random: layers is given twice"),
        (("--random", "layers=-1"), '--random: layers = "-1", where a whole number of at least 1 belongs'),
        (("--random", "heads=0"), '--random: heads = "0", where a whole number of at least 1 belongs'),
        (
            ("--random", "hidden=100,heads=2"),
            "--random: hidden = 100 cannot be shared by 2 heads: take a multiple of 8",
        ),
        (("--random", "inner=7"), "--random: inner = 7 is odd: int4 packs two columns into a byte"),
        (("--random", "vocab=5"), "--random: vocab = 5 is too small"),
        (("--random", TINY, "--model", "demo"), "--model and --random: there can be one of them"),
        (("--suite", "cpu", "--model", "demo"), "--suite cpu has a model of its own: leave --model and --random out"),
        (("--random", TINY, "--prompt", "2048"), "--prompt 2048 and --tokens 64: together they are more than the 2048"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_exit_code_2(args: Sequence[str], sentence: str) -> None:
    error = bench(*args).exception
    assert isinstance(error, OptionError)
    assert str(error).startswith(sentence)
    assert "\n" not in str(error)
    assert error.exit_code == 2


def test_what_cannot_be_loaded_is_one_sentence() -> None:
    assert "there is no such folder" in str(bench("--model", "nowhere").exception)
    assert "is no device" in str(bench("--random", TINY, "--device", "tpu").exception)
    assert "'int5' is not one of" in bench("--quantization", "int5").output


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.measure")
    monkeypatch.setitem(sys.modules, "torch", None)
    error = bench().exception
    assert isinstance(error, EngineUnavailable)
    assert "bench needs the package torch" in str(error)
    monkeypatch.setitem(sys.modules, "benchmarks.measure", None)
    assert isinstance(bench().exception, ModuleNotFoundError), "a missing module of our own is a bug"


def test_ctrl_c_ends_it_at_once_and_without_a_traceback() -> None:
    command = [sys.executable, "-m", "bot", "bench", "--random", TINY, "--repeat", "1000000", "--tokens", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while "Model and sampler" not in said:
            line = process.stderr.readline()
            assert line, "it ended by itself"
            said += line
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in rest


def test_medians_and_rates_of_made_up_times() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0)
    assert Spread.rate(100, [2.0, 1.0, 4.0]) == Spread(50.0, 25.0, 100.0)


def test_the_share_is_the_weights_of_each_step_against_the_bandwidth() -> None:
    made = figures()
    assert made.tokens_per_second_per_sequence == 10
    assert made.bandwidth_share == 0.75  # 600 MB ten times a second, of 8 GB/s
    assert made.clients_ratio == 3.5
    assert made.as_json()["network"]["bandwidth_share"] == 0.75


def test_a_step_reads_every_matrix_once_with_its_scales_and_biases() -> None:
    config = made_up(Dimensions(hidden=64, layers=2, heads=2, inner=128, vocab=100))
    table, norms = 100 * 64, 4 * (2 * 2 + 1) * 2 * 64
    weights = 2 * (3 * 64 * 64 + 64 * 64 + 128 * 64 + 64 * 128)
    rows = 2 * (3 * 64 + 64 + 128 + 64)
    assert step_bytes(config, "none", 4) == 4 * (table + weights + rows) + norms
    scored = table + 4 * 100  # the table is int8 in both
    assert step_bytes(config, "int8", 2) == 2 * rows + scored + weights + 4 * rows + norms
    # 64 columns share a scale, so all rows have one but those of 128 columns, whose group is 128.
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
def test_the_bytes_counted_are_those_a_network_holds(quantization: str) -> None:
    """The definition of `step_bytes` against the tensors that the plain parts keep."""
    config = made_up(Dimensions(hidden=128, layers=1, heads=2, inner=128, vocab=64))
    model = load_random(config, quantization=quantization, dtype="float16", slots=1)  # type: ignore[arg-type]
    held = sum(norm.nbytes for norm in model.network.parameters())
    for module in model.network.modules():
        product = vars(module).get("_product")
        for part in vars(product).values() if product is not None and hasattr(product, "_weight") else ():
            match part:
                case torch.Tensor():
                    held += part.nbytes
                case Int8():
                    held += part.values.nbytes + part.scale.nbytes
                case Int4(packed, scale, zero):
                    held += packed.nbytes + scale.nbytes + (0 if zero is None else zero.nbytes)
    assert step_bytes(config, quantization, 2) == held


def test_a_prompt_ends_as_the_model_expects_and_holds_no_other_control_token() -> None:
    config = made_up(Dimensions(vocab=64))
    prompt = random_prompt(config, 50)
    assert len(prompt) == 50
    assert prompt[-2:] == (config.gmask_token_id, config.bos_token_id)
    assert max(prompt[:-2]) < 59


class Nonsense:
    """A model whose numbers are none."""

    context_length = 100
    slots = 1

    def forward(self, batch: object) -> torch.Tensor:
        return torch.full((1, 64), torch.nan)


def test_numbers_that_are_none_are_not_measured() -> None:
    config: ChatGLMConfig = made_up(Dimensions(vocab=64))
    steps = Steps(Nonsense(), 64, random_prompt(config, 5), Options(tokens=2))
    with pytest.raises(EngineFailed, match="nothing to measure"):
        steps.warm_up()


async def test_a_round_is_of_different_people_and_sees_all_their_answers() -> None:
    engine = ScriptedEngine([Queued(1), "ab", "cd"], "", default="abcd")
    seen = await one_round(engine, 3, Options(tokens=4))
    assert seen.tokens_per_second > 0
    assert len(seen.first_text_seconds) == 3
    assert len({(request.user, request.channel) for request in engine.requests}) == 3
    assert {request.params.max_tokens for request in engine.requests} == {4}


def test_a_made_up_vocabulary_is_spelled_like_a_real_one() -> None:
    tokenizer = FixedLength([1, 2, 3], MadeUpWords(64))
    assert tokenizer.prompt([ChatMessage("user", "whatever")]) == [1, 2, 3]
    detokenizer = tokenizer.detokenizer()
    assert "".join([detokenizer.push(7), detokenizer.push(8), detokenizer.finish()]) == "7 8"


def test_figures_as_plain_lines() -> None:
    assert list(report.plain(figures())) == [
        "demo · int4 · bfloat16 on cpu (A Processor), 2 threads · torch 2.13.0, Python 3.11.7",
        "loading                   1.50 s",
        "peak memory               700 MB  resident; 500 MB anonymous",
        "first token               250 ms  200 to 300; a prompt of 128 tokens",
        "prefill                512 tok/s  500 to 520; one prompt",
        "decode, batch 4       40.0 tok/s  38.0 to 44.0; 64 steps",
        "  per sequence        10.0 tok/s",
        "weights of a step       600.0 MB",
        "memory bandwidth        8.0 GB/s  the best read (sum) or copy of a large buffer, all threads",
        "  share for weights          75%  decode reads them once a step",
        "engine, 1 client      12.0 tok/s  11.0 to 13.0; first text after 300 ms",
        "engine, 8 clients     42.0 tok/s  40.0 to 43.0; first text after 900 ms",
        "8 clients / 1 client        3.50  of tok/s in the same run",
    ]


def test_what_is_unknown_or_impossible_is_said() -> None:
    fast = replace(figures().network, bandwidth_bytes_per_second=1e9)
    random = Options(random=Dimensions())
    shown = "\n".join(report.plain(figures(memory=Memory(), network=fast, quantization="none", options=random)))
    assert shown.startswith("hidden=1024,layers=8,heads=16,inner=4096,vocab=32768 · not quantized")
    assert re.search(r"^peak memory +not known$", shown, re.MULTILINE)
    assert "weights are made up" in shown
    assert "more than all: they come from a cache" in shown
    shown = "\n".join(report.plain(figures(memory=Memory(resident=700_000_000, device=12_000_000_000))))
    assert "12,000 MB on the device" in shown


def test_a_terminal_gets_a_table_and_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(report, "Console", lambda **_: console)
    with report.watching() as watch:
        for done in range(3):
            watch("Model and sampler", done, 3)
    report.show(figures(), as_json=False)
    assert "Model and sampler" in screen.getvalue()
    assert "8 clients / 1 client" in screen.getvalue()
    assert "┃" in screen.getvalue()


def test_a_processor_without_a_name_is_called_by_its_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "missing")
    assert machine.describe(torch.device("cpu")).device_name
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some Processor\n")
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "cpuinfo")
    assert machine.describe(torch.device("cpu")).device_name == "Some Processor"


def test_the_peak_of_memory_is_what_was_held_and_not_what_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with machine.MemoryWatch(torch.device("cpu")) as watch:
        pass
    if watch.peak.resident is not None:
        assert watch.peak.anonymous is not None
        assert 0 < watch.peak.anonymous <= watch.peak.resident
    monkeypatch.setattr(machine, "_STATUS", tmp_path / "missing")
    with machine.MemoryWatch(torch.device("cpu")) as watch:
        pass
    assert watch.peak == Memory()
    assert machine.status_bytes("Name:\tx\n", "VmHWM") is None


def test_other_threads_are_used_for_a_while_only() -> None:
    before = torch.get_num_threads()
    with machine.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
