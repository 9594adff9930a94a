"""Estimate a model's memory before loading: weights, KV cache, workspace."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch

from bot.engine.chatglm.causal import step_tokens
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
    prefixes: int = 0  # P-Tuning prefixes, from which slots are filled

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.workspace + self.prefixes


@dataclass(frozen=True, slots=True)
class LoadParameters:
    """Load parameters; `config` is from `stored_config`, `prefixes` the tokens of P-Tuning prefixes by name."""

    config: ChatGLMConfig
    quantization: Quantization
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    slots: int
    prefixes: Mapping[str, int] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        """Tokens of a slot."""
        return max(self.prefixes.values(), default=0) + self.config.max_sequence_length

    @property
    def kind(self) -> str:
        """Storage of the weights, for messages."""
        stored = stored_quantization(self.config)
        quantization = self.quantization if stored == "none" else stored
        return str(self.dtype).removeprefix("torch.") if quantization == "none" else quantization


def needs(parameters: LoadParameters) -> dict[torch.device, Need]:
    """Return the required memory of each device."""
    weights: Counter[torch.device] = Counter()
    layers: Counter[torch.device] = Counter()
    device_of = DeviceMap(parameters.devices, parameters.config.num_layers)
    for name, size in _float_shapes(parameters).items():
        device = device_of(name)
        weights[device] += _tensor_bytes(parameters, name, size, device)
        layers[device] += name.endswith("query_key_value.weight")
    return {
        device: Need(
            weights[device],
            layers[device] * parameters.slots * parameters.capacity * _token_bytes(parameters),
            _workspace(parameters, device),
            layers[device] * sum(parameters.prefixes.values()) * _token_bytes(parameters),
        )
        for device in weights
    }


def _float_shapes(parameters: LoadParameters) -> dict[str, tuple[int, ...]]:
    # Scales of quantised matrices are counted with them.
    return expected_shapes(replace(parameters.config, quantization_bit=0, quantization_embeddings=False))


def _tensor_bytes(parameters: LoadParameters, name: str, size: tuple[int, ...], device: torch.device) -> int:
    if "norm" in name:
        return 4 * prod(size)
    if name.endswith(".bias"):
        return 0  # counted with its matrix
    bits = bits_of(parameters.config, name, parameters.quantization)
    rows, columns = size
    shape = MatrixShape(rows, columns, bits, is_published=parameters.config.quantization_bit > 0)
    if name == EMBEDDING:
        return table_bytes(shape, parameters.dtype, device.type)
    return linear_bytes(shape, parameters.dtype, device.type, has_bias=True)


def _token_bytes(parameters: LoadParameters) -> int:
    """Return the bytes of a token's key and value in one layer."""
    return 2 * parameters.config.hidden_size * parameters.dtype.itemsize


def _workspace(parameters: LoadParameters, device: torch.device) -> int:
    config, itemsize = parameters.config, parameters.dtype.itemsize
    # The longest prefill is one prompt of the whole context, or short ones up to PREFILL_TOKENS.
    tokens = max(PREFILL_TOKENS, config.max_sequence_length)
    matrices = {name: prod(size) for name, size in _float_shapes(parameters).items() if len(size) == 2}
    table = matrices.pop(EMBEDDING)
    converted, inner = 0, 2 * itemsize
    if bits_of(config, next(iter(matrices)), parameters.quantization):
        largest = max(matrices.values())
        if device.type != "cuda" and parameters.slots >= _TABLE_CONVERTED_FROM:
            largest = max(largest, table)
        if device.type == "cpu":
            inner = _PACKED_SUMS
        converted = itemsize * min(largest, _CONVERTED_AT_ONCE.get(device.type, largest))
    prefill = max(
        tokens * _ROTATION * config.hidden_size,
        tokens * (_RESIDUAL * config.hidden_size + inner * config.inner_hidden_size) + converted,
    )
    rows = max(parameters.slots, step_tokens(parameters.devices))
    decode = rows * (_SCORES * config.vocab_size + _ROTATION * config.hidden_size) + converted
    return max(prefill + _MASK * config.max_sequence_length * parameters.capacity, decode) + _RESERVE


Available = Callable[[torch.device], int | None]
"""Returns the bytes available on a device; None if unknown."""


def check(
    parameters: LoadParameters,
    name: str,
    available: Available,
    with_quantization: Callable[[Quantization], LoadParameters],
) -> str:
    """Return a line for the log.  `with_quantization` creates the same parameters with other weights.

    Raises:
        EngineUnavailable: It does not fit; the message names settings that do.
    """
    required = needs(parameters)
    free = {device: available(device) for device in required}
    for device, need in required.items():
        limit = free[device]
        if limit is not None and need.total > limit:
            raise EngineUnavailable(
                f"{name} as {parameters.kind} needs {_gib(need.total)} GiB ({_details(need, parameters)}), but {device} has only "
                f"{_gib(limit)} GiB free: {_advice(parameters, free, with_quantization)}"
            )
    sums = [
        f"{device} needs {_gib(need.total)} GiB ({_details(need, parameters)}), "
        + ("free memory unknown" if (limit := free[device]) is None else f"{_gib(limit)} GiB free")
        for device, need in required.items()
    ]
    return f"{name} as {parameters.kind}: {'; '.join(sums)}"


def largest_batch(parameters: LoadParameters, free: dict[torch.device, int | None]) -> int:
    """Return the largest number of slots that fits, at most `parameters.slots`; 0 is none."""
    low, high = 0, parameters.slots
    while low < high:  # bisection: the required memory grows with the slots
        middle = (low + high + 1) // 2
        if _fits(replace(parameters, slots=middle), free):
            low = middle
        else:
            high = middle - 1
    return low


def _advice(
    parameters: LoadParameters,
    free: dict[torch.device, int | None],
    with_quantization: Callable[[Quantization], LoadParameters],
) -> str:
    """Name settings that fit: the largest batch with the given weights, then with smaller ones."""
    ways: list[str] = []
    most = 0
    kinds: list[Quantization] = [parameters.quantization]
    if not parameters.config.quantization_bit:
        order: tuple[Quantization, ...] = ("none", "int8", "int4")
        kinds = [*order[order.index(parameters.quantization) :]]
    for kind in kinds:
        other = with_quantization(kind)
        batch = largest_batch(other, free)
        if batch > most:
            most = batch
            wanted = [] if kind == parameters.quantization else [f'engine.quantization = "{kind}"']
            if batch < parameters.slots:
                wanted.append(f"{'' if wanted else 'engine.'}max_batch_size = {batch}")
            ways.append(" with ".join(wanted))
    if ways:
        return f"{', or '.join(ways)} fits"
    smallest = replace(with_quantization(kinds[-1]), slots=1)
    for context in range(smallest.config.max_sequence_length // 2, 255, -128):
        shorter = replace(smallest, config=replace(smallest.config, max_sequence_length=context))
        if _fits(shorter, free):
            kind_too = "" if kinds[-1] == parameters.quantization else f'engine.quantization = "{kinds[-1]}", '
            return f"{kind_too}engine.max_batch_size = 1 and context_length = {context} fit"
    least = max(need.total for need in needs(smallest).values())
    return f"this model needs at least {_gib(least)} GiB; free memory, or name another device"


def _fits(parameters: LoadParameters, free: dict[torch.device, int | None]) -> bool:
    return all((limit := free[device]) is None or need.total <= limit for device, need in needs(parameters).items())


def _details(need: Need, parameters: LoadParameters) -> str:
    sequences = "1 sequence" if parameters.slots == 1 else f"{parameters.slots} sequences"
    named = [f"{name or 'its own'} {tokens} tokens" for name, tokens in parameters.prefixes.items() if tokens]
    prefixes = f", prefixes {_gib(need.prefixes)} ({', '.join(named)})" if named else ""
    return (
        f"weights {_gib(need.weights)}, cache {_gib(need.cache)} for {sequences}{prefixes}, "
        f"workspace {_gib(need.workspace)}"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
