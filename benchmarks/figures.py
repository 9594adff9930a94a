"""The figures that a run gives, and the arithmetic between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from math import prod
from statistics import median
from typing import Any, Self

from benchmarks.options import Options
from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.weights import bits_of, expected_shapes
from bot.engine.kernels.reference import group_of

_SCALE_BYTES = 4  # one float32, or a scale and a zero in bfloat16


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing.

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
        """How much of `amount` goes by in a second, given the time that each repetition took."""
        return cls.of(amount / each for each in seconds)


@dataclass(frozen=True, slots=True)
class Memory:
    """The most that was held from before the model was loaded until it was warm, in bytes.

    None is what this system does not tell.
    """

    resident: int | None = None  # the whole process: Python, torch and mapped files too
    anonymous: int | None = None  # without what could be read from a file again
    device: int | None = None  # tensors on a CUDA device


@dataclass(frozen=True, slots=True)
class Network:
    """The network step: model and sampler, without the engine."""

    first_token_seconds: Spread  # one prompt, until its first token is drawn
    prefill_tokens_per_second: Spread
    decode_tokens_per_second: Spread  # all sequences of the batch together
    weight_bytes_per_step: int
    bandwidth_bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Served:
    """So many clients of the engine at once, from their questions to the last word of the last answer."""

    clients: int
    tokens_per_second: Spread  # all clients together
    first_text_seconds: Spread


@dataclass(frozen=True, slots=True)
class Machine:
    device: str
    device_name: str
    threads: int
    torch: str
    python: str


@dataclass(frozen=True, slots=True)
class Figures:
    options: Options
    quantization: str
    dtype: str
    machine: Machine
    load_seconds: float
    memory: Memory
    network: Network
    one_client: Served
    many_clients: Served

    @property
    def tokens_per_second_per_sequence(self) -> float:
        return self.network.decode_tokens_per_second.median / self.options.batch

    @property
    def bandwidth_share(self) -> float:
        """How much of the memory bandwidth decode needed for reading weights; above 1 they came from a cache."""
        # Each step gives every sequence one token, and reads the weights once for all of them.
        steps_per_second = self.tokens_per_second_per_sequence
        return self.network.weight_bytes_per_step * steps_per_second / self.network.bandwidth_bytes_per_second

    @property
    def clients_ratio(self) -> float:
        """How many times one client's tokens per second the many get together."""
        return self.many_clients.tokens_per_second.median / self.one_client.tokens_per_second.median

    def as_json(self) -> dict[str, Any]:
        figures = asdict(self)
        figures["network"] |= {
            "decode_tokens_per_second_per_sequence": self.tokens_per_second_per_sequence,
            "bandwidth_share": self.bandwidth_share,
        }
        return {"model": self.options.model_name} | figures | {"clients_ratio": self.clients_ratio}


def step_bytes(config: ChatGLMConfig, quantization: str, itemsize: int) -> int:
    """Count the bytes of weights that one decode step reads, scales and biases included.

    `itemsize` is that of the network's dtype; norms are float32 always.  Every matrix is
    read once, the table of the words too: it scores each word.
    """
    floating = replace(config, quantization_bit=0, quantization_embeddings=False)
    total = 0
    for name, shape in expected_shapes(floating).items():
        size = prod(shape)
        bits = bits_of(config, name, quantization) if len(shape) == 2 else 0
        if bits:
            total += size * bits // 8 + _SCALE_BYTES * shape[0] * _scales(shape[1], bits, config)
        else:
            total += size * (4 if "norm" in name else itemsize)
    return total


def _scales(columns: int, bits: int, config: ChatGLMConfig) -> int:
    """Count a row's scales: published checkpoints have one."""
    group = group_of(columns) if bits == 4 and not config.quantization_bit else None
    return 1 if group is None else columns // group
