"""Times the network step, model and sampler, without the engine around it."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

import torch

from benchmarks.figures import Network, Spread, step_bytes
from benchmarks.machine import bandwidth
from benchmarks.options import Options
from bot.domain import SamplingParams
from bot.engine.chatglm.causal import ChatGLMForServing
from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.serving.base import Batch, CausalLM
from bot.engine.serving.sampler import Row, Sampler
from bot.errors import EngineFailed


def random_prompt(config: ChatGLMConfig, tokens: int) -> tuple[int, ...]:
    """Draw a prompt: ordinary ids, then [gMASK] and `<sop>` as at the end of every prompt."""
    control = {
        config.bos_token_id,
        config.eos_token_id,
        config.mask_token_id,
        config.gmask_token_id,
        config.pad_token_id,
    }
    ordinary = [token for token in range(config.vocab_size) if token not in control]
    return (*Random(0).choices(ordinary, k=tokens - 2), config.gmask_token_id, config.bos_token_id)


class Steps:
    """Runs a batch through prefill and decode, again and again in the same slots."""

    def __init__(self, model: CausalLM, vocabulary: int, prompt: tuple[int, ...], options: Options) -> None:
        self._model = model
        self._sampler = Sampler(vocabulary)
        self._prompt = prompt
        self._rows = [Row.of(SamplingParams(seed=row)) for row in range(options.batch)]
        self._tokens = options.tokens
        self._last = [prompt[0]] * options.batch

    def warm_up(self) -> None:
        """Fill every slot, and let caches, threads and clocks get going."""
        for slot in range(len(self._rows)):
            self.prefill(slot)
        self.decode()

    def prefill(self, slot: int) -> float:
        """Feed one prompt and draw its first token; return the seconds that took."""
        began = time.perf_counter()
        [self._last[slot]] = self._draw(Batch((slot,), (self._prompt,), (0,)), self._rows[slot : slot + 1])
        return time.perf_counter() - began

    def decode(self) -> float:
        """Give every sequence its new tokens after the prompt; return the seconds that took."""
        slots = tuple(range(len(self._rows)))
        began = time.perf_counter()
        for start in range(len(self._prompt), len(self._prompt) + self._tokens):
            batch = Batch(slots, tuple((token,) for token in self._last), (start,) * len(slots))
            self._last = self._draw(batch, self._rows)
        return time.perf_counter() - began

    @torch.inference_mode()
    def _draw(self, batch: Batch, rows: list[Row]) -> list[int]:
        drawn = self._sampler.draw(self._model.forward(batch), rows)
        tokens = [token for token in drawn if token is not None]
        if len(tokens) < len(drawn):
            raise EngineFailed("the model's numbers are no numbers (NaN or inf): there is nothing to measure")
        return tokens


def measure_network(
    model: ChatGLMForServing, steps: Steps, options: Options, all_threads: int, watch: Callable[[int], None]
) -> Network:
    """Time the repetitions of a warm batch, and the memory's bandwidth before and after them."""
    bandwidths = [bandwidth(model.device, all_threads)]
    prefills, decodes = [], []
    for done in range(options.repeat):
        watch(done)
        prefills.append(steps.prefill(done % options.batch))
        decodes.append(steps.decode())
    bandwidths.append(bandwidth(model.device, all_threads))
    return Network(
        first_token_seconds=Spread.of(prefills),
        prefill_tokens_per_second=Spread.rate(options.prompt, prefills),
        decode_tokens_per_second=Spread.rate(options.batch * options.tokens, decodes),
        weight_bytes_per_step=step_bytes(model.network.config, model.quantization, model.dtype.itemsize),
        bandwidth_bytes_per_second=max(bandwidths),
    )
