"""Measures one model: its loading, its steps, then the engine around it with one client and with many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.clients import FixedLength, MadeUpWords, Words, measure_clients
from benchmarks.figures import Figures, Machine, Memory, Network
from benchmarks.machine import MemoryWatch, describe
from benchmarks.network import Steps, measure_network, random_prompt
from benchmarks.options import Dimensions, OptionError, Options
from bot.domain import EngineInfo
from bot.engine.backends.chatglm import ONE_THREAD_WIDTH, find_folder
from bot.engine.base import Progress
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.config import ChatGLMConfig, read_config
from bot.engine.chatglm.loading import find_devices, load, load_random
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.serving.engine import Loaded, ServingEngine

Watch = Callable[[str, int, int], None]
"""Told what is under way, how much of it is done, and how much there is; from any thread."""

CONTEXT = 2048  # tokens, of a made-up model: the published one's


def measure(options: Options, watch: Watch) -> Figures:
    """Load what `options` name and measure it.

    Raises:
        OptionError: Prompt and answer do not fit the model's context.
        EngineError: The model cannot be found, loaded or run.
    """
    worker = _Worker(options, watch)  # may download: outside the event loop, Ctrl-C ends that at once
    return asyncio.run(_measure(worker, options, watch))


async def _measure(worker: _Worker, options: Options, watch: Watch) -> Figures:
    async with ServingEngine(worker, max_waiting=options.clients) as engine:
        one, many = await measure_clients(
            engine, options, lambda done: watch("Engine and clients", done, options.repeat)
        )
    found = worker.found
    return Figures(
        options=options,
        quantization=found.info.quantization,
        dtype=found.info.dtype,
        machine=found.machine,
        load_seconds=found.load_seconds,
        memory=found.memory,
        network=found.network,
        one_client=one,
        many_clients=many,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known when the engine begins to serve."""

    info: EngineInfo
    machine: Machine
    load_seconds: float
    memory: Memory
    network: Network


class _Worker:
    """Loads the model and times its steps in the engine's own thread, then hands it to the engine.

    Another thread that computes would bring helpers of its own, which fight with the
    engine's for the same cores.
    """

    found: _Found  # once it was called

    def __init__(self, options: Options, watch: Watch) -> None:
        self._options = options
        self._watch = watch
        self._folder = None if options.random else find_folder(options.model)
        self._config = read_config(self._folder) if self._folder else made_up(options.random or Dimensions())
        context = self._config.max_sequence_length
        for name, length in (("prompt", options.prompt), ("question", options.question)):
            if length + options.tokens > context:
                raise OptionError(
                    f"--{name} {length} and --tokens {options.tokens}: together they are more than the {context} "
                    "tokens of this model's context"
                )

    def __call__(self, report: Progress) -> Loaded:
        options = self._options

        def step(what: str, done: int, total: int) -> None:
            report(done, total)  # raises once the engine is closed: so Ctrl-C ends this too
            self._watch(what, done, total)

        all_threads = torch.get_num_threads()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        elif self._config.hidden_size <= ONE_THREAD_WIDTH:
            torch.set_num_threads(1)  # as the backend does
        # The first one's name, memory and bandwidth stand for those that share the layers.
        device, *_ = find_devices(options.device, self._config.num_layers)
        step("Loading the model", 0, 1)
        with MemoryWatch(device) as memory:
            began = time.perf_counter()
            model, words = self._load(lambda done, total: step("Loading the model", done, total))
            load_seconds = time.perf_counter() - began
            prompt = random_prompt(self._config, options.prompt)
            steps = Steps(model, words.vocabulary, prompt, options)
            step("Warming up", 0, 1)
            steps.warm_up()
        network = measure_network(
            model, steps, options, all_threads, lambda done: step("Model and sampler", done, options.repeat)
        )
        info = EngineInfo(
            model=options.model_name,
            backend="chatglm",
            quantization=model.quantization,
            dtype=str(model.dtype).removeprefix("torch."),
            device=",".join(map(str, model.devices)),
            context_length=model.context_length,
        )
        self.found = _Found(info, describe(device), load_seconds, memory.peak, network)
        return Loaded(model, FixedLength(random_prompt(self._config, options.question), words), info)

    def _load(self, report: Progress) -> tuple[ChatGLMForServing, Words]:
        options = self._options
        slots = max(options.batch, options.clients)
        if self._folder is None:
            model = load_random(
                self._config,
                quantization=options.quantization,
                dtype=options.dtype,
                device=options.device,
                slots=slots,
            )
            return model, MadeUpWords(self._config.vocab_size)
        words = ChatGLMTokenizer.load(self._folder)
        model = load(
            self._folder,
            quantization=options.quantization,
            dtype=options.dtype,
            device=options.device,
            slots=slots,
            progress=report,
        )
        return model, words


def made_up(sizes: Dimensions) -> ChatGLMConfig:
    """The config of a model with these sizes; its control tokens are the last ids."""
    return ChatGLMConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        inner_hidden_size=sizes.inner,
        num_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        mask_token_id=sizes.vocab - 5,
        gmask_token_id=sizes.vocab - 4,
        bos_token_id=sizes.vocab - 3,
        eos_token_id=sizes.vocab - 2,
        pad_token_id=sizes.vocab - 1,
        max_sequence_length=CONTEXT,
    )
