"""Layers as wide as those of ChatGLM-6B: their converted weights exceed the caches, and what an allocator keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks.report import SuiteRow
from bot.engine.benchmark import BenchOptions, Spread, StepTimer, Watch, random_config, random_prompt
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.loading import DType, load_random
from bot.engine.chatglm.model import ChatGLM
from bot.engine.chatglm.weights import Quantization


@dataclass(frozen=True, slots=True)
class WidePlan:
    """Prompts and a batch for few layers; `prefill` and `decode` are the targets of quantised weights.

    They are multiples of what the same network does with unquantised weights.
    """

    config: ChatGLMConfig = field(
        default_factory=lambda: random_config(hidden=4096, layers=2, heads=32, inner=16384, vocab=1024)
    )
    prompts: tuple[int, ...] = (128, 512)
    batch: int = 64
    prompt: int = 32  # tokens before decoding begins
    tokens: int = 8
    prefill: float = 0.75
    decode: float = 1.0


def wide_rows(
    plan: WidePlan, kinds: Sequence[Quantization], dtype: DType, device: str, repeat: int, watch: Watch
) -> Iterator[SuiteRow]:
    """Measure each kind of weights, one after another; the first is "none"."""
    plain: dict[str, float] = {}
    for kind in kinds:
        name = dtype if kind == "none" else kind
        watch(f"{name}, {plan.config.hidden_size} wide", 0, 1)
        network = load_random(plan.config, quantization=kind, dtype=dtype, device=device, slots=1).network
        for row, measure, target in _measurements(plan, network, kind):
            rate = Spread.of(measure() for _ in range(repeat)).median
            first = plain.setdefault(row, rate)
            full = f"{row}, {plan.config.hidden_size} wide, {name}"
            if kind == "none":
                yield SuiteRow(full, rate, "tok/s", remark=f"{plan.config.num_layers} layers")
            else:
                yield SuiteRow(full, rate / first, "times", target, remark=f"{dtype}; {rate:,.0f} tok/s")


Measurement = tuple[str, Callable[[], float], float]
"""Name, a function that returns tokens per second, and target."""


def _measurements(plan: WidePlan, network: ChatGLM, kind: Quantization) -> Iterator[Measurement]:
    """Yield the measurements of a network, each after its warm-up."""
    for count in plan.prompts:
        steps = _steps(plan, network, kind, count, BenchOptions(batch=1, tokens=1))
        steps.prefill(0)
        yield f"prefill, {count} tokens", partial(_prefill_rate, steps, count), plan.prefill
    steps = _steps(plan, network, kind, plan.prompt, BenchOptions(batch=plan.batch, tokens=plan.tokens))
    steps.warm_up()
    yield f"decode, batch {plan.batch}", partial(_decode_rate, steps, plan.batch * plan.tokens), plan.decode


def _prefill_rate(steps: StepTimer, tokens: int) -> float:
    return tokens / steps.prefill(0)


def _decode_rate(steps: StepTimer, tokens: int) -> float:
    return tokens / steps.decode()


def _steps(plan: WidePlan, network: ChatGLM, kind: Quantization, prompt: int, options: BenchOptions) -> StepTimer:
    network.config = replace(plan.config, max_sequence_length=prompt + options.tokens)
    model = ChatGLMForServing(network, slots=options.batch, quantization=kind)
    return StepTimer(model, plan.config.vocab_size, random_prompt(plan.config, prompt), options)
