"""Runs everything that a device should reach, in one go: ceilings, steps, channels and loading, each beside its goal."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.baseline import decode_seconds, eager
from benchmarks.checkpoint import first_token_seconds, reading_seconds, written_checkpoint
from benchmarks.clients import FixedLength, MadeUpWords, Round, one_round
from benchmarks.figures import Spread, step_bytes
from benchmarks.goals import Row, Table, percentile, prefill_operations
from benchmarks.machine import bandwidth, describe, matrix_rate
from benchmarks.measure import Watch, made_up
from benchmarks.network import Steps, random_prompt
from benchmarks.options import Dimensions, Options
from bot.domain import EngineInfo
from bot.engine.base import Progress
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.loading import DType, find_device, load_random
from bot.engine.chatglm.memory import Setup, needs
from bot.engine.chatglm.model import ChatGLM
from bot.engine.chatglm.weights import Quantization
from bot.engine.memory_available import free_bytes
from bot.engine.serving.engine import Loaded, ServingEngine

# Each new round of a baseline makes its sequence longer; few steps keep that small.
_BASELINE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that decode together, with the tokens a second or the times of one sequence's that they should reach."""

    size: int
    rate: float | None = None
    times: float | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """Weights of one kind.  `share` is the goal of batch 1: of the time that reading the weights once takes."""

    quantization: Quantization
    share: float | None = None
    times_eager: float | None = None
    batches: tuple[Batch, ...] = ()


@dataclass(frozen=True, slots=True)
class Channels:
    """So many channels that ask at once, and what each of them should see, in seconds."""

    count: int = 64
    prompt: int = 200
    tokens: int = 200
    first: float = 0.040  # of one channel, alone
    first_p95: float = 1.0
    gap_p95: float = 0.060


@dataclass(frozen=True, slots=True)
class Plan:
    """What a suite measures, and its goals: those of the project."""

    name: str
    device: str
    sizes: Dimensions
    dtype: torch.dtype
    kinds: tuple[Kind, ...]
    prompt: int  # tokens before decoding begins
    tokens: int
    long_prompt: int  # that prefill is measured with
    long_share: float | None = None  # of the matrix rate
    channels: Channels | None = None
    load_times: float | None = None  # of the time that reading the file takes

    @property
    def dtype_name(self) -> DType:
        return "bfloat16" if self.dtype == torch.bfloat16 else "float16"


PLANS = {
    "cpu": Plan(
        name="cpu",
        device="cpu",
        sizes=Dimensions(),
        dtype=torch.bfloat16,
        kinds=(
            Kind("none", batches=(Batch(8, times=2.5),)),
            Kind("int8", 0.75, batches=(Batch(8, times=2.5),)),
            Kind("int4", 0.60, batches=(Batch(8, times=2.5),)),
        ),
        prompt=256,
        tokens=64,
        long_prompt=256,
    ),
    "cuda": Plan(
        name="cuda",
        device="cuda",
        sizes=Dimensions(hidden=4096, layers=28, heads=32, inner=16384, vocab=130528),
        dtype=torch.float16,
        kinds=(
            Kind("none", 0.80, batches=(Batch(64, rate=8_000), Batch(256, rate=15_000))),
            Kind("int8", 0.70),
            Kind("int4", 0.50, times_eager=10, batches=(Batch(64, rate=8_000), Batch(256, rate=15_000))),
        ),
        prompt=448,
        tokens=64,
        long_prompt=2000,
        long_share=0.50,
        channels=Channels(),
        load_times=1.5,
    ),
}


def measure_suite(plan: Plan, repeat: int, watch: Watch) -> Table:
    """Measure all of it, one model in memory at a time.

    Raises:
        EngineError: There is no such device here, or a model does not run on it.
    """
    device = find_device(plan.device)
    suite = _Suite(plan, device, repeat, watch)
    rows = tuple(suite.rows())
    return Table(plan.name, time.strftime("%Y-%m-%d"), describe(device), rows)


class _Suite:
    def __init__(self, plan: Plan, device: torch.device, repeat: int, watch: Watch) -> None:
        self._plan, self._device, self._repeat, self._watch = plan, device, repeat, watch
        self._threads = torch.get_num_threads()
        self._config = made_up(plan.sizes)
        self._bandwidth = self._operations = 0.0

    def rows(self) -> Iterator[Row]:
        measured: list[Row] = []
        for kind in self._plan.kinds:
            measured += self._kind(kind)
        if self._plan.load_times is not None:
            measured.append(self._loading(self._plan.load_times))
        yield Row("memory bandwidth", self._bandwidth / 1e9, "GB/s", remark="best read or copy of 512 MiB")
        yield Row("matrix rate", self._operations / 1e12, "TFLOP/s", remark="best bfloat16 product of large matrices")
        yield from measured

    def _look_at_ceilings(self) -> None:
        """Keep the best that was seen: what else the machine does changes from minute to minute."""
        self._watch("Ceilings", 0, 1)
        self._bandwidth = max(self._bandwidth, bandwidth(self._device, self._threads))
        self._operations = max(self._operations, matrix_rate(self._device, self._threads))

    def _kind(self, kind: Kind) -> Iterator[Row]:
        plan, name = self._plan, _name(kind.quantization, self._plan.dtype)
        self._look_at_ceilings()
        self._watch(f"{name}: loading", 0, 1)
        network = load_random(
            self._config, quantization=kind.quantization, dtype=plan.dtype_name, device=plan.device, slots=1
        ).network
        rates: dict[int, float] = {}
        for count in (1, *(batch.size for batch in kind.batches)):
            self._watch(f"{name}: batch {count}", 0, 1)
            if count > 1 and not self._fits(kind, count):
                continue
            rates[count] = self._decode(self._serving(network, kind, count, self._length), count)
            self._let_go()
        self._watch(f"{name}: prefill", 0, 1)
        prefill = self._prefill_rate(self._serving(network, kind, 1, plan.long_prompt))
        self._look_at_ceilings()
        yield from self._decode_rows(kind, name, rates)
        yield Row(
            f"prefill, {plan.long_prompt} tokens, {name}",
            prefill * prefill_operations(self._config, plan.long_prompt) / plan.long_prompt / self._operations,
            "share",
            plan.long_share,
            remark=f"of the matrix rate; {prefill:,.0f} tok/s",
        )
        if plan.channels is not None:
            self._watch(f"{name}: channels", 0, 1)
            context = plan.channels.prompt + plan.channels.tokens
            yield from self._channels(self._serving(network, kind, plan.channels.count, context), name, plan.channels)
        del network
        self._let_go()
        self._watch(f"{name}: plain torch", 0, 1)
        yield self._against_eager(kind, name, rates[1])
        self._let_go()

    def _decode_rows(self, kind: Kind, name: str, rates: dict[int, float]) -> Iterator[Row]:
        needed = step_bytes(self._config, kind.quantization, self._plan.dtype.itemsize)
        yield Row(
            f"decode, batch 1, {name}",
            rates[1] * needed / self._bandwidth,
            "share",
            kind.share,
            remark=f"of the bandwidth; {rates[1]:,.1f} tok/s, {needed / 1e6:,.1f} MB of weights a step",
        )
        for batch in kind.batches:
            what, rate = f"decode, batch {batch.size}, {name}", rates.get(batch.size, 0.0)
            if batch.rate is not None:
                remark = f"{self._length} tokens each" if rate else "its cache does not fit this device"
                yield Row(what, rate, "tok/s", batch.rate, remark=remark)
            if batch.times is not None:
                yield Row(what, rate / rates[1], "times", batch.times, remark=f"batch 1; {rate:,.1f} tok/s in all")

    @property
    def _length(self) -> int:
        return self._plan.prompt + self._plan.tokens

    def _fits(self, kind: Kind, slots: int) -> bool:
        """Whether cache and workspace find room beside the weights, which are there."""
        config = replace(self._config, max_sequence_length=self._length)
        need = needs(Setup(config, kind.quantization, self._plan.dtype, (self._device,), slots))[self._device]
        there = free_bytes(self._device)
        return there is None or need.cache + need.workspace <= there

    def _serving(self, network: ChatGLM, kind: Kind, slots: int, context: int) -> ChatGLMForServing:
        """The network with a cache of its own, no larger than what is measured needs."""
        network.config = replace(self._config, max_sequence_length=context)
        return ChatGLMForServing(network, slots=slots, quantization=kind.quantization)

    def _decode(self, model: ChatGLMForServing, batch: int) -> float:
        """Tokens a second of all sequences: the median of the repetitions."""
        steps = self._steps(model, self._plan.prompt, Options(batch=batch, tokens=self._plan.tokens))
        steps.warm_up()
        seconds = [steps.decode() for _ in range(self._repeat)]
        return Spread.rate(batch * self._plan.tokens, seconds).median

    def _steps(self, model: ChatGLMForServing, prompt: int, options: Options) -> Steps:
        return Steps(model, self._config.vocab_size, random_prompt(self._config, prompt), options)

    def _prefill_rate(self, model: ChatGLMForServing) -> float:
        """Tokens a second of one prompt: the median of the repetitions."""
        tokens = self._plan.long_prompt
        steps = self._steps(model, tokens, Options(batch=1, tokens=1))
        steps.prefill(0)
        return Spread.rate(tokens, [steps.prefill(0) for _ in range(self._repeat)]).median

    def _channels(self, model: ChatGLMForServing, name: str, channels: Channels) -> Iterator[Row]:
        alone, together = asyncio.run(_ask_all(model, self._config, channels, self._repeat))
        first = Spread.of(seconds for each in alone for seconds in each.first_text_seconds)
        yield Row(
            f"first token, {name}", first.median * 1e3, "ms", channels.first * 1e3, is_limit=True,
            remark=f"a prompt of {channels.prompt} tokens, nobody else asks",
        )  # fmt: skip
        firsts = [seconds for each in together for seconds in each.first_text_seconds]
        gaps = [seconds for each in together for seconds in each.gap_seconds]
        rate = Spread.of(each.tokens_per_second for each in together).median
        what = f"{channels.count} channels at once, {name}"
        yield Row(
            f"{what}: first token, p95", percentile(firsts, 0.95), "s", channels.first_p95, is_limit=True,
            remark=f"prompts of {channels.prompt} tokens, answers of {channels.tokens}",
        )  # fmt: skip
        yield Row(
            f"{what}: gap, p95", percentile(gaps, 0.95) * 1e3, "ms", channels.gap_p95 * 1e3, is_limit=True,
            remark=f"between pieces of an answer; {rate:,.0f} tok/s in all",
        )  # fmt: skip

    def _against_eager(self, kind: Kind, name: str, rate: float) -> Row:
        network = eager(self._config, kind.quantization, self._plan.dtype, self._device)
        prompt = random_prompt(self._config, self._plan.prompt)
        seconds = decode_seconds(network, prompt, _BASELINE_TOKENS, self._repeat)
        plain = Spread.rate(_BASELINE_TOKENS, seconds).median
        return Row(
            f"against plain torch, batch 1, {name}", rate / plain, "times", kind.times_eager,
            remark=f"the same network in nn.Linear or dequantised for each product: {plain:,.1f} tok/s",
        )  # fmt: skip

    def _loading(self, goal: float) -> Row:
        self._watch("int4: loading a checkpoint", 0, 1)
        with written_checkpoint(self._config) as folder:
            prompt = random_prompt(self._config, min(200, self._plan.prompt))
            first_token_seconds(folder, self._plan.device, prompt)  # compiles what is compiled at first use
            self._let_go()
            reading = min(reading_seconds(folder) for _ in range(2))
            loading = first_token_seconds(folder, self._plan.device, prompt)
        self._let_go()
        return Row(
            "load to first token, int4", loading / reading, "times", goal, is_limit=True,
            remark=f"of reading the file, both from the disk; {loading:.1f} s, {reading:.1f} s",
        )  # fmt: skip

    def _let_go(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


async def _ask_all(
    model: ChatGLMForServing, config: ChatGLMConfig, channels: Channels, repeat: int
) -> tuple[list[Round], list[Round]]:
    """Let one channel ask, then all at once, through the engine."""
    info = EngineInfo(
        "made up", "chatglm", model.quantization, str(model.dtype), str(model.device), model.context_length
    )
    words = FixedLength(random_prompt(config, channels.prompt), MadeUpWords(config.vocab_size))

    def ready(report: Progress) -> Loaded:
        return Loaded(model, words, info)

    options = Options(tokens=channels.tokens)
    async with ServingEngine(ready, max_waiting=channels.count) as engine:
        for count in (1, channels.count):
            await one_round(engine, count, options)  # a warm-up
        alone = [await one_round(engine, 1, options) for _ in range(repeat)]
        return alone, [await one_round(engine, channels.count, options) for _ in range(repeat)]


def _name(quantization: Quantization, dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.") if quantization == "none" else quantization
