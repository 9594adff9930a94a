"""Suites: one command measures everything that a device should reach, each row with its target."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from benchmarks.baseline import decode_seconds, eager_network
from benchmarks.checkpoint import first_token_seconds, reading_seconds, written_checkpoint
from benchmarks.report import SuiteRow, SuiteTable, markdown, percentile
from benchmarks.roofline import bandwidth, matrix_rate, prefill_operations, step_bytes
from benchmarks.wide import WidePlan, wide_rows
from bot.domain import EngineInfo
from bot.engine.base import Progress
from bot.engine.benchmark import (
    BenchOptions,
    ClientRound,
    FixedPrompt,
    NumberedTokens,
    Spread,
    StepTimer,
    Watch,
    describe,
    random_config,
    random_prompt,
    run_clients,
)
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.loading import DType, find_device, load_random
from bot.engine.chatglm.memory import LoadParameters, needs
from bot.engine.chatglm.model import ChatGLM
from bot.engine.chatglm.weights import Quantization
from bot.engine.memory_available import available_bytes
from bot.engine.serving.engine import LoadedModel, ServingEngine

# Each repetition of the baseline makes its sequence longer; few steps keep that effect small.
_BASELINE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class BatchTarget:
    """A batch size, with its target in tokens per second or as a multiple of batch 1."""

    size: int
    rate: float | None = None
    times: float | None = None


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """Measurements of one quantisation; `share` is the target of batch 1 as a share of the memory bandwidth."""

    quantization: Quantization
    share: float | None = None
    times_eager: float | None = None
    batches: tuple[BatchTarget, ...] = ()


@dataclass(frozen=True, slots=True)
class ChannelsPlan:
    """Concurrent channels and their latency targets in seconds."""

    count: int = 64
    prompt: int = 200
    tokens: int = 200
    first: float = 0.040  # one channel alone
    first_p95: float = 1.0
    gap_p95: float = 0.060


@dataclass(frozen=True, slots=True)
class SuitePlan:
    """Measurements of a suite and their targets."""

    name: str
    device: str
    config: ChatGLMConfig
    dtype: torch.dtype
    weights: tuple[WeightsPlan, ...]
    prompt: int  # tokens before decoding begins
    tokens: int
    long_prompt: int  # tokens of the prompt for prefill
    long_share: float | None = None  # share of the matrix rate
    channels: ChannelsPlan | None = None
    wide: WidePlan | None = None
    load_times: float | None = None  # multiple of the time to read the file

    @property
    def dtype_name(self) -> DType:
        return "bfloat16" if self.dtype == torch.bfloat16 else "float16"


PLANS = {
    "cpu": SuitePlan(
        name="cpu",
        device="cpu",
        config=random_config(),
        dtype=torch.bfloat16,
        weights=(
            WeightsPlan("none", batches=(BatchTarget(8, times=2.5),)),
            WeightsPlan("int8", 0.75, batches=(BatchTarget(8, times=2.5),)),
            WeightsPlan("int4", 0.60, batches=(BatchTarget(8, times=2.5),)),
        ),
        prompt=256,
        tokens=64,
        long_prompt=256,
        wide=WidePlan(),
    ),
    "cuda": SuitePlan(
        name="cuda",
        device="cuda",
        config=random_config(hidden=4096, layers=28, heads=32, inner=16384, vocab=130528),
        dtype=torch.float16,
        weights=(
            WeightsPlan("none", 0.80, batches=(BatchTarget(64, rate=8_000), BatchTarget(256, rate=15_000))),
            WeightsPlan("int8", 0.70),
            WeightsPlan(
                "int4", 0.50, times_eager=10, batches=(BatchTarget(64, rate=8_000), BatchTarget(256, rate=15_000))
            ),
        ),
        prompt=448,
        tokens=64,
        long_prompt=2000,
        long_share=0.50,
        channels=ChannelsPlan(),
        load_times=1.5,
    ),
}


def run_suite(name: str, repeat: int, watch: Watch, *, as_json: bool) -> str:
    """Measure the suite and return its table as Markdown or JSON.

    Raises:
        EngineError: The device is missing, or a model does not run on it.
    """
    table = measure_suite(PLANS[name], repeat, watch)
    return json.dumps(table.as_json(), indent=2) if as_json else "\n".join(markdown(table))


def measure_suite(plan: SuitePlan, repeat: int, watch: Watch) -> SuiteTable:
    """Measure everything in the plan, one model in memory at a time."""
    device = find_device(plan.device)
    rows = tuple(_Suite(plan, device, repeat, watch).rows())
    return SuiteTable(plan.name, time.strftime("%Y-%m-%d"), describe(device), rows)


class _Suite:
    def __init__(self, plan: SuitePlan, device: torch.device, repeat: int, watch: Watch) -> None:
        self._plan, self._device, self._repeat, self._watch = plan, device, repeat, watch
        self._threads = torch.get_num_threads()
        self._config = plan.config
        self._bandwidth = self._matrix_rate = 0.0

    def rows(self) -> Iterator[SuiteRow]:
        measured: list[SuiteRow] = []
        for weights in self._plan.weights:
            measured += self._weights(weights)
        if self._plan.wide is not None:
            measured += self._wide(self._plan.wide)
        if self._plan.load_times is not None:
            measured.append(self._loading(self._plan.load_times))
        yield SuiteRow("memory bandwidth", self._bandwidth / 1e9, "GB/s", remark="best read or copy of 512 MiB")
        yield SuiteRow(
            "matrix rate", self._matrix_rate / 1e12, "TFLOP/s", remark="best bfloat16 product of large matrices"
        )
        yield from measured

    def _wide(self, wide: WidePlan) -> Iterator[SuiteRow]:
        plan = self._plan
        kinds = [each.quantization for each in plan.weights]
        yield from wide_rows(wide, kinds, plan.dtype_name, plan.device, self._repeat, self._watch)
        self._free_memory()

    def _measure_limits(self) -> None:
        """Keep the best values: other load on the machine changes from minute to minute."""
        self._watch("Machine limits", 0, 1)
        self._bandwidth = max(self._bandwidth, bandwidth(self._device, self._threads))
        self._matrix_rate = max(self._matrix_rate, matrix_rate(self._device, self._threads))

    def _weights(self, weights: WeightsPlan) -> Iterator[SuiteRow]:
        plan, name = self._plan, _name(weights.quantization, self._plan.dtype)
        self._measure_limits()
        self._watch(f"{name}: loading", 0, 1)
        network = load_random(
            self._config, quantization=weights.quantization, dtype=plan.dtype_name, device=plan.device, slots=1
        ).network
        rates: dict[int, float] = {}
        for count in (1, *(batch.size for batch in weights.batches)):
            self._watch(f"{name}: batch {count}", 0, 1)
            if count > 1 and not self._fits(weights, count):
                continue
            rates[count] = self._decode(self._serving(network, weights, count, self._length), count)
            self._free_memory()
        self._watch(f"{name}: prefill", 0, 1)
        prefill = self._prefill_rate(self._serving(network, weights, 1, plan.long_prompt))
        self._measure_limits()
        yield from self._decode_rows(weights, name, rates)
        yield SuiteRow(
            f"prefill, {plan.long_prompt} tokens, {name}",
            prefill * prefill_operations(self._config, plan.long_prompt) / plan.long_prompt / self._matrix_rate,
            "share",
            plan.long_share,
            remark=f"of the matrix rate; {prefill:,.0f} tok/s",
        )
        if plan.channels is not None:
            self._watch(f"{name}: channels", 0, 1)
            context = plan.channels.prompt + plan.channels.tokens
            yield from self._channels(
                self._serving(network, weights, plan.channels.count, context), name, plan.channels
            )
        del network
        self._free_memory()
        self._watch(f"{name}: plain torch", 0, 1)
        yield self._against_eager(weights, name, rates[1])
        self._free_memory()

    def _decode_rows(self, weights: WeightsPlan, name: str, rates: dict[int, float]) -> Iterator[SuiteRow]:
        needed = step_bytes(self._config, weights.quantization, self._plan.dtype.itemsize)
        yield SuiteRow(
            f"decode, batch 1, {name}",
            rates[1] * needed / self._bandwidth,
            "share",
            weights.share,
            remark=f"of the bandwidth; {rates[1]:,.1f} tok/s, {needed / 1e6:,.1f} MB of weights per step",
        )
        for batch in weights.batches:
            row, rate = f"decode, batch {batch.size}, {name}", rates.get(batch.size, 0.0)
            if batch.rate is not None:
                remark = f"{self._length} tokens each" if rate else "its cache does not fit this device"
                yield SuiteRow(row, rate, "tok/s", batch.rate, remark=remark)
            if batch.times is not None:
                yield SuiteRow(row, rate / rates[1], "times", batch.times, remark=f"batch 1; {rate:,.1f} tok/s in all")

    @property
    def _length(self) -> int:
        return self._plan.prompt + self._plan.tokens

    def _fits(self, weights: WeightsPlan, slots: int) -> bool:
        """Return True if cache and workspace fit beside the loaded weights."""
        config = replace(self._config, max_sequence_length=self._length)
        need = needs(LoadParameters(config, weights.quantization, self._plan.dtype, (self._device,), slots))[
            self._device
        ]
        available = available_bytes(self._device)
        return available is None or need.cache + need.workspace <= available

    def _serving(self, network: ChatGLM, weights: WeightsPlan, slots: int, context: int) -> ChatGLMForServing:
        """Return the network with a cache that is no larger than the measurement needs."""
        network.config = replace(self._config, max_sequence_length=context)
        return ChatGLMForServing(network, slots=slots, quantization=weights.quantization)

    def _decode(self, model: ChatGLMForServing, batch: int) -> float:
        """Return the median rate of all sequences together, in tokens per second."""
        steps = self._steps(model, self._plan.prompt, BenchOptions(batch=batch, tokens=self._plan.tokens))
        steps.warm_up()
        seconds = [steps.decode() for _ in range(self._repeat)]
        return Spread.rate(batch * self._plan.tokens, seconds).median

    def _steps(self, model: ChatGLMForServing, prompt: int, options: BenchOptions) -> StepTimer:
        return StepTimer(model, self._config.vocab_size, random_prompt(self._config, prompt), options)

    def _prefill_rate(self, model: ChatGLMForServing) -> float:
        tokens = self._plan.long_prompt
        steps = self._steps(model, tokens, BenchOptions(batch=1, tokens=1))
        steps.prefill(0)
        return Spread.rate(tokens, [steps.prefill(0) for _ in range(self._repeat)]).median

    def _channels(self, model: ChatGLMForServing, name: str, plan: ChannelsPlan) -> Iterator[SuiteRow]:
        alone, together = asyncio.run(_run_channels(model, self._config, plan, self._repeat))
        yield SuiteRow(
            f"first token, {name}", Spread.of(_firsts(alone)).median * 1e3, "ms", plan.first * 1e3, is_limit=True,
            remark=f"a prompt of {plan.prompt} tokens, no other request",
        )  # fmt: skip
        gaps = [
            later - earlier for each in together for times in each.text_seconds for earlier, later in pairwise(times)
        ]
        rate = Spread.of(each.tokens_per_second for each in together).median
        row = f"{plan.count} channels at once, {name}"
        yield SuiteRow(
            f"{row}: first token, p95", percentile(_firsts(together), 0.95), "s", plan.first_p95, is_limit=True,
            remark=f"prompts of {plan.prompt} tokens, answers of {plan.tokens}",
        )  # fmt: skip
        yield SuiteRow(
            f"{row}: gap, p95", percentile(gaps, 0.95) * 1e3, "ms", plan.gap_p95 * 1e3, is_limit=True,
            remark=f"between pieces of an answer; {rate:,.0f} tok/s in all",
        )  # fmt: skip

    def _against_eager(self, weights: WeightsPlan, name: str, rate: float) -> SuiteRow:
        network = eager_network(self._config, weights.quantization, self._plan.dtype, self._device)
        prompt = random_prompt(self._config, self._plan.prompt)
        seconds = decode_seconds(network, prompt, _BASELINE_TOKENS, self._repeat)
        eager = Spread.rate(_BASELINE_TOKENS, seconds).median
        return SuiteRow(
            f"against plain torch, batch 1, {name}", rate / eager, "times", weights.times_eager,
            remark=f"the same network in nn.Linear or dequantised for each product: {eager:,.1f} tok/s",
        )  # fmt: skip

    def _loading(self, target: float) -> SuiteRow:
        self._watch("int4: loading a checkpoint", 0, 1)
        with written_checkpoint(self._config) as folder:
            prompt = random_prompt(self._config, min(200, self._plan.prompt))
            first_token_seconds(folder, self._plan.device, prompt)  # compiles kernels at the first use
            self._free_memory()
            reading = min(reading_seconds(folder) for _ in range(2))
            loading = first_token_seconds(folder, self._plan.device, prompt)
        self._free_memory()
        return SuiteRow(
            "load to first token, int4", loading / reading, "times", target, is_limit=True,
            remark=f"of reading the file, both from the disk; {loading:.1f} s, {reading:.1f} s",
        )  # fmt: skip

    def _free_memory(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _firsts(rounds: list[ClientRound]) -> list[float]:
    return [times[0] for each in rounds for times in each.text_seconds]


async def _run_channels(
    model: ChatGLMForServing, config: ChatGLMConfig, plan: ChannelsPlan, repeat: int
) -> tuple[list[ClientRound], list[ClientRound]]:
    """Measure one channel alone, then all at once, through the engine."""
    info = EngineInfo(
        "random", "chatglm", model.quantization, str(model.dtype), str(model.device), model.context_length
    )
    tokenizer = FixedPrompt(random_prompt(config, plan.prompt), NumberedTokens(config.vocab_size))

    def load_model(report: Progress) -> LoadedModel:
        return LoadedModel(model, tokenizer, info)

    async with ServingEngine(load_model, max_waiting=plan.count) as engine:
        for count in (1, plan.count):
            await run_clients(engine, count, plan.tokens)  # warm-up
        alone = [await run_clients(engine, 1, plan.tokens) for _ in range(repeat)]
        return alone, [await run_clients(engine, plan.count, plan.tokens) for _ in range(repeat)]


def _name(quantization: Quantization, dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.") if quantization == "none" else quantization
