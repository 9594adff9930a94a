"""What a model needs of a device's memory, counted before anything is read: weights, cache, workspace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

import torch

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.weights import (
    EMBEDDING,
    Places,
    Quantization,
    bits_of,
    expected_shapes,
    stored_quantization,
)
from bot.engine.kernels.footprint import Shape, linear_bytes, table_bytes
from bot.engine.serving.scheduler import PREFILL_TOKENS
from bot.errors import EngineUnavailable

# Bytes for each token of a prompt and each number of its hidden state: while queries and keys are rotated in
# float32, where most is alive at once, and while the MLP runs.
_ROTATION = 44
_RESIDUAL = 16
# For each number of the MLP's inner state where a packed product gives float32 sums; others give the dtype, twice.
_PACKED_SUMS = 12
# For each query and key of a prompt: who sees whom, as bools on the way and as what attention adds.
_MASK = 8
# For each word of the vocabulary that a row scores: logits twice, and what the sampler sorts without top_k.
_SCORES = 40
# Weights become floats so many at a time on CUDA; on a CPU it is a matrix, and with so many rows the words' table.
_CONVERTED_AT_ONCE = {"cuda": 1 << 26}
_TABLE_CONVERTED_FROM = 24
# What cuBLAS and recorded steps keep, and what is lost between two allocations.
_RESERVE = 32 << 20


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one device's memory."""

    weights: int
    cache: int  # all slots full
    workspace: int  # what a step holds while it runs, at most

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.workspace

    def __add__(self, other: Need) -> Need:
        """What two parts of a model need on one device: their steps take turns."""
        return Need(self.weights + other.weights, self.cache + other.cache, max(self.workspace, other.workspace))


@dataclass(frozen=True, slots=True)
class Setup:
    """A model as it is to be loaded.  `config` is of `stored_config`; `prefix` counts tokens of a P-Tuning prefix."""

    config: ChatGLMConfig
    quantization: Quantization
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    slots: int
    prefix: int = 0

    @property
    def kind(self) -> str:
        """In a word how the weights are held."""
        stored = stored_quantization(self.config)
        quantization = self.quantization if stored == "none" else stored
        return str(self.dtype).removeprefix("torch.") if quantization == "none" else quantization


def needs(setup: Setup) -> dict[torch.device, Need]:
    """Count what a model needs of each of its devices."""
    weights: Counter[torch.device] = Counter()
    layers: Counter[torch.device] = Counter()
    place = Places(setup.devices, setup.config.num_layers)
    for name, size in _tensors(setup):
        device = place(name)
        weights[device] += _held(setup, name, size, device)
        layers[device] += name.endswith("query_key_value.weight")
    return {
        device: Need(weights[device], layers[device] * _cache_of_a_layer(setup), _workspace(setup, device))
        for device in weights
    }


def _tensors(setup: Setup) -> Iterator[tuple[str, tuple[int, ...]]]:
    # As floats: what is packed comes with its scales, which are counted with it.
    floating = replace(setup.config, quantization_bit=0, quantization_embeddings=False)
    yield from expected_shapes(floating).items()


def _held(setup: Setup, name: str, size: tuple[int, ...], device: torch.device) -> int:
    if "norm" in name:
        return 4 * prod(size)
    if name.endswith(".bias"):
        return 0  # counted with its matrix
    bits = bits_of(setup.config, name, setup.quantization)
    rows, columns = size
    shape = Shape(rows, columns, bits, is_published=setup.config.quantization_bit > 0)
    if name == EMBEDDING:
        return table_bytes(shape, setup.dtype, device.type)
    return linear_bytes(shape, setup.dtype, device.type, has_bias=True)


def _cache_of_a_layer(setup: Setup) -> int:
    tokens = setup.prefix + setup.config.max_sequence_length
    return 2 * setup.slots * tokens * setup.config.hidden_size * setup.dtype.itemsize


def _workspace(setup: Setup, device: torch.device) -> int:
    config, itemsize = setup.config, setup.dtype.itemsize
    # A prompt as long as the context is prefilled alone, shorter ones together up to PREFILL_TOKENS.
    tokens = max(PREFILL_TOKENS, config.max_sequence_length)
    keys = setup.prefix + config.max_sequence_length
    matrices = {name: prod(size) for name, size in _tensors(setup) if len(size) == 2}
    table = matrices.pop(EMBEDDING)
    converted, inner = 0, 2 * itemsize
    if bits_of(config, next(iter(matrices)), setup.quantization):
        largest = max(matrices.values())
        if device.type != "cuda" and setup.slots >= _TABLE_CONVERTED_FROM:
            largest = max(largest, table)
        if device.type == "cpu":
            inner = _PACKED_SUMS
        converted = itemsize * min(largest, _CONVERTED_AT_ONCE.get(device.type, largest))
    prefill = max(
        tokens * _ROTATION * config.hidden_size,
        tokens * (_RESIDUAL * config.hidden_size + inner * config.inner_hidden_size) + converted,
    )
    decode = setup.slots * (_SCORES * config.vocab_size + _ROTATION * config.hidden_size) + converted
    return max(prefill + _MASK * config.max_sequence_length * keys, decode) + _RESERVE


Free = Callable[[torch.device], int | None]
"""How many bytes of a device are free; None where nobody knows."""


def check(setup: Setup, name: str, free: Free, with_quantization: Callable[[Quantization], Setup]) -> str:
    """Return the sums in a line for the log.  `with_quantization` makes the same setup with other weights.

    Raises:
        EngineUnavailable: It does not fit; the sentence says what would.
    """
    found = needs(setup)
    known = {device: free(device) for device in found}
    for device, need in found.items():
        there = known[device]
        if there is not None and need.total > there:
            raise EngineUnavailable(
                f"{name} as {setup.kind} needs {_gib(need.total)} GiB ({_parts(need, setup)}), and {device} has "
                f"{_gib(there)} GiB free: {_advice(setup, known, with_quantization)}"
            )
    sums = [
        f"{device} {_gib(need.total)} GiB ({_parts(need, setup)}) of {_free(known[device])}"
        for device, need in found.items()
    ]
    return f"{name} as {setup.kind}: {'; '.join(sums)}"


def largest_batch(setup: Setup, known: dict[torch.device, int | None]) -> int:
    """How many slots fit, at most those asked for; 0 is none."""
    low, high = 0, setup.slots
    while low < high:  # what is needed grows with the slots
        middle = (low + high + 1) // 2
        if _fits(replace(setup, slots=middle), known):
            low = middle
        else:
            high = middle - 1
    return low


def _advice(
    setup: Setup, known: dict[torch.device, int | None], with_quantization: Callable[[Quantization], Setup]
) -> str:
    """Say which settings fit: the batch as near to what was asked as the weights allow, then smaller weights."""
    ways: list[str] = []
    most = 0
    kinds: list[Quantization] = [setup.quantization]
    if not setup.config.quantization_bit:
        order: tuple[Quantization, ...] = ("none", "int8", "int4")
        kinds = [*order[order.index(setup.quantization) :]]
    for kind in kinds:
        other = with_quantization(kind)
        batch = largest_batch(other, known)
        if batch > most:
            most = batch
            wanted = [] if kind == setup.quantization else [f'engine.quantization = "{kind}"']
            if batch < setup.slots:
                wanted.append(f"{'' if wanted else 'engine.'}max_batch_size = {batch}")
            ways.append(" with ".join(wanted))
    if ways:
        return f"{', or '.join(ways)} fits"
    smallest = replace(with_quantization(kinds[-1]), slots=1)
    for context in range(smallest.config.max_sequence_length // 2, 255, -128):
        shorter = replace(smallest, config=replace(smallest.config, max_sequence_length=context))
        if _fits(shorter, known):
            kind_too = "" if kinds[-1] == setup.quantization else f'engine.quantization = "{kinds[-1]}", '
            return f"{kind_too}engine.max_batch_size = 1 and context_length = {context} fit"
    least = max(need.total for need in needs(smallest).values())
    return f"nothing smaller than {_gib(least)} GiB is possible with this model; free memory, or name another device"


def _fits(setup: Setup, known: dict[torch.device, int | None]) -> bool:
    return all((there := known[device]) is None or need.total <= there for device, need in needs(setup).items())


def _parts(need: Need, setup: Setup) -> str:
    sequences = "1 sequence" if setup.slots == 1 else f"{setup.slots} sequences"
    return f"weights {_gib(need.weights)}, cache {_gib(need.cache)} for {sequences}, workspace {_gib(need.workspace)}"


def _free(there: int | None) -> str:
    return "what is free" if there is None else f"{_gib(there)} GiB free"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
