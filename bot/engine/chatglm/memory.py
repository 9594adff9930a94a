"""Estimate a model's memory before loading: weights, KV cache, workspace."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.weights import EMBEDDING, DeviceMap, Quantization, bits_of, expected_shapes, stored_quantization
from bot.engine.kernels.footprint import MatrixShape, linear_bytes, table_bytes
from bot.engine.serving.scheduler import PREFILL_TOKENS
from bot.errors import EngineUnavailable

# Bytes per prompt token and hidden unit: during RoPE in float32, the peak of the attention, and during the MLP.
_ROTATION = 44
_RESIDUAL = 16
# Bytes per inner unit of the MLP where a packed matmul returns float32 sums; others hold the dtype, twice.
_PACKED_SUMS = 12
# Bytes per query and key of a prompt: the bool masks and the additive bias.
_MASK = 8
# Bytes per row and vocabulary entry: logits twice, and the sampler's sort without top_k.
_SCORES = 40
# Weights dequantised at once on CUDA; on a CPU a whole matrix, from this many rows on also the embedding table.
_CONVERTED_AT_ONCE = {"cuda": 1 << 26}
_TABLE_CONVERTED_FROM = 24
# cuBLAS workspaces, CUDA graphs, fragmentation.
_RESERVE = 32 << 20


@dataclass(frozen=True, slots=True)
class Need:
    """Required bytes on one device."""

    weights: int
    cache: int  # all slots
    workspace: int  # peak of a step

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.workspace


@dataclass(frozen=True, slots=True)
class Setup:
    """Load parameters; `config` is from `stored_config`, `prefix` the tokens of a P-Tuning prefix."""

    config: ChatGLMConfig
    quantization: Quantization
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    slots: int
    prefix: int = 0

    @property
    def kind(self) -> str:
        """Storage of the weights, for messages."""
        stored = stored_quantization(self.config)
        quantization = self.quantization if stored == "none" else stored
        return str(self.dtype).removeprefix("torch.") if quantization == "none" else quantization


def needs(setup: Setup) -> dict[torch.device, Need]:
    """Return the required memory of each device."""
    weights: Counter[torch.device] = Counter()
    layers: Counter[torch.device] = Counter()
    device_of = DeviceMap(setup.devices, setup.config.num_layers)
    for name, size in _float_shapes(setup).items():
        device = device_of(name)
        weights[device] += _tensor_bytes(setup, name, size, device)
        layers[device] += name.endswith("query_key_value.weight")
    return {
        device: Need(weights[device], layers[device] * _layer_cache_bytes(setup), _workspace(setup, device))
        for device in weights
    }


def _float_shapes(setup: Setup) -> dict[str, tuple[int, ...]]:
    # Scales of quantised matrices are counted with them.
    return expected_shapes(replace(setup.config, quantization_bit=0, quantization_embeddings=False))


def _tensor_bytes(setup: Setup, name: str, size: tuple[int, ...], device: torch.device) -> int:
    if "norm" in name:
        return 4 * prod(size)
    if name.endswith(".bias"):
        return 0  # counted with its matrix
    bits = bits_of(setup.config, name, setup.quantization)
    rows, columns = size
    shape = MatrixShape(rows, columns, bits, is_published=setup.config.quantization_bit > 0)
    if name == EMBEDDING:
        return table_bytes(shape, setup.dtype, device.type)
    return linear_bytes(shape, setup.dtype, device.type, has_bias=True)


def _layer_cache_bytes(setup: Setup) -> int:
    tokens = setup.prefix + setup.config.max_sequence_length
    return 2 * setup.slots * tokens * setup.config.hidden_size * setup.dtype.itemsize


def _workspace(setup: Setup, device: torch.device) -> int:
    config, itemsize = setup.config, setup.dtype.itemsize
    # The longest prefill is one prompt of the whole context, or short ones up to PREFILL_TOKENS.
    tokens = max(PREFILL_TOKENS, config.max_sequence_length)
    keys = setup.prefix + config.max_sequence_length
    matrices = {name: prod(size) for name, size in _float_shapes(setup).items() if len(size) == 2}
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


Available = Callable[[torch.device], int | None]
"""Returns the bytes available on a device; None if unknown."""


def check(setup: Setup, name: str, available: Available, with_quantization: Callable[[Quantization], Setup]) -> str:
    """Return a line for the log.  `with_quantization` creates the same setup with other weights.

    Raises:
        EngineUnavailable: It does not fit; the message names settings that do.
    """
    required = needs(setup)
    free = {device: available(device) for device in required}
    for device, need in required.items():
        limit = free[device]
        if limit is not None and need.total > limit:
            raise EngineUnavailable(
                f"{name} as {setup.kind} needs {_gib(need.total)} GiB ({_details(need, setup)}), but {device} has only "
                f"{_gib(limit)} GiB free: {_advice(setup, free, with_quantization)}"
            )
    sums = [
        f"{device} needs {_gib(need.total)} GiB ({_details(need, setup)}), "
        + ("free memory unknown" if (limit := free[device]) is None else f"{_gib(limit)} GiB free")
        for device, need in required.items()
    ]
    return f"{name} as {setup.kind}: {'; '.join(sums)}"


def largest_batch(setup: Setup, free: dict[torch.device, int | None]) -> int:
    """Return the largest number of slots that fits, at most `setup.slots`; 0 is none."""
    low, high = 0, setup.slots
    while low < high:  # bisection: the required memory grows with the slots
        middle = (low + high + 1) // 2
        if _fits(replace(setup, slots=middle), free):
            low = middle
        else:
            high = middle - 1
    return low


def _advice(
    setup: Setup, free: dict[torch.device, int | None], with_quantization: Callable[[Quantization], Setup]
) -> str:
    """Name settings that fit: the largest batch with the given weights, then with smaller ones."""
    ways: list[str] = []
    most = 0
    kinds: list[Quantization] = [setup.quantization]
    if not setup.config.quantization_bit:
        order: tuple[Quantization, ...] = ("none", "int8", "int4")
        kinds = [*order[order.index(setup.quantization) :]]
    for kind in kinds:
        other = with_quantization(kind)
        batch = largest_batch(other, free)
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
        if _fits(shorter, free):
            kind_too = "" if kinds[-1] == setup.quantization else f'engine.quantization = "{kinds[-1]}", '
            return f"{kind_too}engine.max_batch_size = 1 and context_length = {context} fit"
    least = max(need.total for need in needs(smallest).values())
    return f"this model needs at least {_gib(least)} GiB; free memory, or name another device"


def _fits(setup: Setup, free: dict[torch.device, int | None]) -> bool:
    return all((limit := free[device]) is None or need.total <= limit for device, need in needs(setup).items())


def _details(need: Need, setup: Setup) -> str:
    sequences = "1 sequence" if setup.slots == 1 else f"{setup.slots} sequences"
    return f"weights {_gib(need.weights)}, cache {_gib(need.cache)} for {sequences}, workspace {_gib(need.workspace)}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
