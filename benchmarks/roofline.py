"""Limits of the machine (memory bandwidth, matrix rate) and the work of the model to compare with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod

import torch

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.weights import EMBEDDING, bits_of, expected_shapes
from bot.engine.kernels.reference import group_of

# Larger than the caches of a CPU, so that every read comes from memory.
BUFFER_BYTES = 1 << 29
MATRIX_SIZES = {"cpu": 2048, "cuda": 8192}
_REPEATS = 4
_SCALE_BYTES = 4  # one float32, or a scale and a zero in bfloat16


def bandwidth(device: torch.device, threads: int) -> float:
    """Measure the memory bandwidth in bytes per second: the best of several reads and copies.

    A read sums the whole buffer, a copy moves one half to the other and counts both; which of
    them is faster depends on the machine.  On a CPU torch uses `threads` threads.
    """
    buffer = torch.ones(BUFFER_BYTES // 4, device=device)
    source, target = buffer.chunk(2)

    # On a GPU one synchronisation covers many passes, so its latency does not count.
    passes = 1 if device.type == "cpu" else 16

    def read() -> None:
        for _ in range(passes):
            total = buffer.sum()
        total.item()

    def copy() -> None:
        for _ in range(passes):
            target.copy_(source)
        target[-1].item()

    with torch_threads(threads):
        read()  # warm-up
        return max(passes * buffer.nbytes / _seconds(work) for work in (read, copy) for _ in range(_REPEATS))


def matrix_rate(device: torch.device, threads: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """Measure the best rate of a large square matrix product, in operations per second."""
    size = MATRIX_SIZES[device.type]
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    passes = 1 if device.type == "cpu" else 16

    def multiply() -> None:
        for _ in range(passes):
            product = left @ right
        product[-1, -1].item()  # synchronises with a GPU

    with torch_threads(threads):
        multiply()  # warm-up
        return max(passes * 2 * size**3 / _seconds(multiply) for _ in range(_REPEATS))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set the number of torch threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def step_bytes(config: ChatGLMConfig, quantization: str, itemsize: int) -> int:
    """Count the bytes of weights, scales and biases that one decode step reads.

    `itemsize` is that of the network's dtype; norms are always float32.  Every matrix is read
    once, including the embedding, which computes the logits.
    """
    floating = replace(config, quantization_bit=0, quantization_embeddings=False)
    total = 0
    for name, shape in expected_shapes(floating).items():
        size = prod(shape)
        bits = bits_of(config, name, quantization) if len(shape) == 2 else 0
        if bits:
            total += size * bits // 8 + _SCALE_BYTES * shape[0] * _scales_per_row(shape[1], bits, config)
        else:
            total += size * (4 if "norm" in name else itemsize)
    return total


def _scales_per_row(columns: int, bits: int, config: ChatGLMConfig) -> int:
    # Published quantised checkpoints have one scale per row.
    group = group_of(columns) if bits == 4 and not config.quantization_bit else None
    return 1 if group is None else columns // group


def prefill_operations(config: ChatGLMConfig, tokens: int) -> int:
    """Count multiplications and additions of one prompt: layers, attention, logits of the last token."""
    matrices = {name: prod(shape) for name, shape in expected_shapes(config).items() if len(shape) == 2}
    table = matrices.pop(EMBEDDING)
    attention = 2 * config.num_layers * tokens**2 * config.hidden_size  # scores, and the weighted sum of values
    return 2 * (tokens * sum(matrices.values()) + attention + table)
