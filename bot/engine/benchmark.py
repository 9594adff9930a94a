"""Measure one model: loading, network steps, and the engine with one client and with many."""

import asyncio
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Self

import torch

from bot.domain import ChatMessage, ChatRequest, Delta, EngineInfo, Finished, SamplingParams, Tokens
from bot.engine.backends.chatglm import ONE_THREAD_WIDTH, find_checkpoint
from bot.engine.base import Engine, Progress
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.config import ChatGLMConfig, read_config
from bot.engine.chatglm.loading import DType, find_devices, load, load_random
from bot.engine.chatglm.text import AnswerDetokenizer
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.chatglm.weights import Quantization
from bot.engine.serving.base import Batch, CausalLM, Detokenizer, Tokenizer
from bot.engine.serving.engine import LoadedModel, ServingEngine
from bot.engine.serving.sampler import Sampler, SamplerState
from bot.errors import EngineFailed, PromptTooLong

Watch = Callable[[str, int, int], None]
"""Receives the current phase, the amount done and the total; from any thread."""

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The model and the workload: for the network `batch` and `prompt`, for the engine `clients` and `question`."""

    model: str = "demo"
    random: ChatGLMConfig | None = None  # measure random weights of this shape instead
    quantization: Quantization = "none"
    dtype: DType = "auto"
    device: str = "auto"
    batch: int = 1
    prompt: int = 128
    tokens: int = 64
    clients: int = 8
    question: int = 24
    repeat: int = 5
    threads: int | None = None  # of torch; None as when serving


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of repeated measurements.

    >>> Spread.of([4.0, 1.0, 2.0])
    Spread(median=2.0, low=1.0, high=4.0)
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Self:
        values = sorted(samples)
        return cls(median(values), values[0], values[-1])

    @classmethod
    def rate(cls, amount: float, seconds: Iterable[float]) -> Self:
        """Return `amount` per second for repetitions that took `seconds`."""
        return cls.of(amount / each for each in seconds)


@dataclass(frozen=True, slots=True)
class Measurement:
    name: str
    unit: str
    value: Spread


@dataclass(frozen=True, slots=True)
class BenchResult:
    info: EngineInfo
    machine: dict[str, str | int]
    measurements: tuple[Measurement, ...]


def measure(options: BenchOptions, watch: Watch) -> BenchResult:
    """Load the model and measure it.

    Raises:
        PromptTooLong: Prompt and answer exceed the context of the model.
        EngineError: The model cannot be found, loaded or run.
    """
    loader = _Loader(options, watch)  # may download: outside the event loop Ctrl-C ends it at once

    async def run() -> BenchResult:
        async with ServingEngine(loader, max_waiting=options.clients) as engine:
            clients = await _measure_clients(engine, options, watch)
            return BenchResult(engine.info, loader.machine, (*loader.measured, *clients))

    return asyncio.run(run())


class _Loader:
    """Loads the model and measures its steps, in the worker thread of the engine.

    The threads of torch belong to the thread that computes: a second one would compete for the cores.
    """

    machine: dict[str, str | int]
    measured: list[Measurement]

    def __init__(self, options: BenchOptions, watch: Watch) -> None:
        self._options, self._watch = options, watch
        self._folder = Path() if options.random else find_checkpoint(options.model)
        self._config = options.random or read_config(self._folder)
        needed = max(options.prompt, options.question) + options.tokens
        if needed > (limit := self._config.max_sequence_length):
            raise PromptTooLong(needed, limit)

    def __call__(self, report: Progress) -> LoadedModel:
        options = self._options

        def step(phase: str, done: int, total: int) -> None:
            report(done, total)  # raises once the engine is closed, so Ctrl-C ends this too
            self._watch(phase, done, total)

        if options.threads is not None or self._config.hidden_size <= ONE_THREAD_WIDTH:
            torch.set_num_threads(options.threads or 1)  # small networks use one thread, as in the backend
        device, *_ = find_devices(options.device, self._config.num_layers)
        if device.type == "cuda":
            torch.empty(0, device=device)  # the statistics exist only after the first use
            torch.cuda.reset_peak_memory_stats(device)
        step("Loading the model", 0, 1)
        began = time.perf_counter()
        model, tokenizer = self._load(partial(step, "Loading the model"))
        loading = time.perf_counter() - began
        steps = StepTimer(model, tokenizer.vocabulary, random_prompt(self._config, options.prompt), options)
        step("Warming up", 0, 1)
        steps.warm_up()
        memory = peak_memory(device)
        prefills, decodes = [], []
        for done in range(options.repeat):
            step("Model and sampler", done, options.repeat)
            prefills.append(steps.prefill(done % options.batch))
            decodes.append(steps.decode())
        self.machine = describe(device)
        self.measured = [
            Measurement("loading", "s", Spread.of([loading])),
            *(Measurement(name, "MB", Spread.of([held / 1e6])) for name, held in memory.items()),
            Measurement("first token", "ms", Spread.of(1e3 * each for each in prefills)),
            Measurement("prefill", "tok/s", Spread.rate(options.prompt, prefills)),
            Measurement(
                f"decode, batch {options.batch}", "tok/s", Spread.rate(options.batch * options.tokens, decodes)
            ),
            Measurement("decode, per sequence", "tok/s", Spread.rate(options.tokens, decodes)),
        ]
        dtype, devices = str(model.dtype).removeprefix("torch."), ",".join(map(str, model.devices))
        info = EngineInfo(options.model, "chatglm", model.quantization, dtype, devices, model.context_length)
        return LoadedModel(model, FixedPrompt(random_prompt(self._config, options.question), tokenizer), info)

    def _load(self, report: Progress) -> tuple[ChatGLMForServing, "Tokenizer | NumberedTokens"]:
        options, slots = self._options, max(self._options.batch, self._options.clients)
        if options.random is not None:
            tokenizer: Tokenizer | NumberedTokens = NumberedTokens(self._config.vocab_size)
            loader = partial(load_random, self._config)
        else:
            tokenizer = ChatGLMTokenizer.load(self._folder)
            loader = partial(load, self._folder, progress=report)
        kind, dtype = options.quantization, options.dtype
        return loader(quantization=kind, dtype=dtype, device=options.device, slots=slots), tokenizer


def random_config(
    hidden: int = 1024, layers: int = 8, heads: int = 16, inner: int = 4096, vocab: int = 32768
) -> ChatGLMConfig:
    """Return the config of a model of these sizes, with the context of the published one."""
    mask, gmask, bos, eos, pad = range(vocab - 5, vocab)
    return ChatGLMConfig(vocab, hidden, inner, layers, heads, bos, eos, mask, gmask, pad)


def random_prompt(config: ChatGLMConfig, tokens: int) -> tuple[int, ...]:
    """Draw ordinary ids, followed by [gMASK] and `<sop>` as in every prompt."""
    named = (config.bos_token_id, config.eos_token_id, config.mask_token_id, config.gmask_token_id, config.pad_token_id)
    ordinary = [token for token in range(config.vocab_size) if token not in named]
    return (*Random(0).choices(ordinary, k=tokens - 2), config.gmask_token_id, config.bos_token_id)


class StepTimer:
    """Times prefill and decode: network and sampler, without the engine."""

    def __init__(self, model: CausalLM, vocabulary: int, prompt: tuple[int, ...], options: BenchOptions) -> None:
        self._model = model
        self._sampler = Sampler(vocabulary)
        self._prompt = prompt
        self._rows = [SamplerState.of(SamplingParams(seed=row)) for row in range(options.batch)]
        self._tokens = options.tokens
        self._last = [prompt[0]] * options.batch

    def warm_up(self) -> None:
        for slot in range(len(self._rows)):
            self.prefill(slot)
        self.decode()

    def prefill(self, slot: int) -> float:
        """Feed one prompt and draw its first token; return the seconds."""
        began = time.perf_counter()
        [self._last[slot]] = self._draw(Batch((slot,), (self._prompt,), (0,)), self._rows[slot : slot + 1])
        return time.perf_counter() - began

    def decode(self) -> float:
        """Decode the new tokens of every sequence; return the seconds."""
        slots = tuple(range(len(self._rows)))
        began = time.perf_counter()
        for start in range(len(self._prompt), len(self._prompt) + self._tokens):
            batch = Batch(slots, tuple((token,) for token in self._last), (start,) * len(slots))
            self._last = self._draw(batch, self._rows)
        return time.perf_counter() - began

    @torch.inference_mode()
    def _draw(self, batch: Batch, rows: list[SamplerState]) -> list[int]:
        sampled = self._sampler.sample(self._model.forward(batch), rows)
        tokens = [token for token in sampled if token is not None]
        if len(tokens) < len(sampled):
            raise EngineFailed("the logits of the model are NaN or infinite: nothing to measure")
        return tokens


@dataclass(frozen=True, slots=True)
class NumberedTokens:
    """Vocabulary for random weights: the text of each id is its number."""

    vocabulary: int
    leading_spaces_dropped: int = 1

    def detokenizer(self) -> Detokenizer:
        return AnswerDetokenizer(self)

    def surface(self, token: int) -> str:
        return f"▁{token}"


class FixedPrompt:
    """A `Tokenizer` with one prompt for all requests and no stop token, so all answers are equally long."""

    stop_ids: frozenset[int] = frozenset()

    def __init__(self, prompt: Sequence[int], tokenizer: Tokenizer | NumberedTokens) -> None:
        self.vocabulary = tokenizer.vocabulary
        self.detokenizer = tokenizer.detokenizer
        self._prompt = list(prompt)

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        return self._prompt

    def tokenize(self, text: str) -> Tokens:
        return Tokens((), ())


@dataclass(frozen=True, slots=True)
class ClientRound:
    """Results of concurrent clients: their rate, and for each the seconds until each piece of its answer."""

    tokens_per_second: float
    text_seconds: tuple[list[float], ...]


async def run_clients(engine: Engine, clients: int, tokens: int) -> ClientRound:
    """Send one request per client at once and read all answers to the end."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_ask(engine, number, tokens)) for number in range(clients)]
    seconds = time.perf_counter() - began
    counts, times = zip(*(task.result() for task in tasks), strict=True)
    return ClientRound(sum(counts) / seconds, times)


async def _measure_clients(engine: Engine, options: BenchOptions, watch: Watch) -> list[Measurement]:
    rounds: dict[int, list[ClientRound]] = {1: [], options.clients: []}
    for done in range(-1, options.repeat):
        watch("Engine and clients", max(done, 0), options.repeat)
        for count, results in rounds.items():  # in turn, so that a busy machine slows both down alike
            result = await run_clients(engine, count, options.tokens)
            if done >= 0:  # the first round is a warm-up
                results.append(result)
    measured: list[Measurement] = []
    for count, results in rounds.items():
        name = f"engine, {count} client{'s' * (count > 1)}"
        firsts = [1e3 * seconds for each in results for seconds, *_ in each.text_seconds]
        measured.append(Measurement(name, "tok/s", Spread.of(each.tokens_per_second for each in results)))
        measured.append(Measurement(f"{name}: first text", "ms", Spread.of(firsts)))
    one, many = (median(each.tokens_per_second for each in rounds[count]) for count in (1, options.clients))
    return [*measured, Measurement(f"{options.clients} clients / 1 client", "times", Spread.of([many / one]))]


async def _ask(engine: Engine, number: int, tokens: int) -> tuple[int, list[float]]:
    """Send one request; return the number of tokens, and the seconds until each piece of text."""
    params, name = SamplingParams(max_tokens=tokens, seed=number), f"client {number}"
    request = ChatRequest((ChatMessage("user", name),), params, channel=name, user=name)
    began = time.perf_counter()
    times: list[float] = []
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Delta) or (isinstance(event, Finished) and not times):
                times.append(time.perf_counter() - began)
            if isinstance(event, Finished):
                return event.usage.completion_tokens, times
    raise AssertionError("an engine's stream ends with Finished")


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the peak memory of the process and of a CUDA device, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"peak memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peaks["peak device memory"] = torch.cuda.max_memory_allocated(device)
    return peaks


def describe(device: torch.device) -> dict[str, str | int]:
    """Return the names and versions that a result depends on."""
    found = re.search(r"^model name\s*: (.+)$", _CPU_INFO.read_text(), re.MULTILINE) if _CPU_INFO.exists() else None
    cpu = found[1] if found else platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"device": str(device), "device_name": name, "threads": torch.get_num_threads(), **versions}
