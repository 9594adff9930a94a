"""Decoding steps that are recorded once for each batch size and then replayed, with buffers that stay where they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bot.engine.serving.h2d import to_device_async
from bot.engine.serving.runner import is_out_of_memory

log = logging.getLogger(__name__)

Call = Callable[[], Tensor]
Record = Callable[[Call], Call]
"""Takes a call that always reads and writes the same memory; returns what does the same faster."""


class Replay:
    """Runs `step` on batches of a few sizes, each with a buffer and a recording of its own.

    `step` is given int64 `[numbers, rows]`, a column for each of the batch's rows, and returns `[rows, ...]`. A
    batch is filled up to the next power of two, or `most`, with columns of `padding`, which must be harmless.
    """

    def __init__(
        self,
        step: Callable[[Tensor], Tensor],
        *,
        padding: Sequence[int],
        most: int,
        device: torch.device,
        record: Record,
    ) -> None:
        self._step = step
        self._padding = tuple(padding)
        self._most = most
        self._device = device
        self._record = record
        self._recorded: dict[int, tuple[Tensor, Call]] = {}

    def __call__(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Run one step; what it returns is good until the next."""
        size = padded_size(len(rows), self._most)
        numbers = to_device_async(self._device, [*zip(*rows, *[self._padding] * (size - len(rows)), strict=True)])
        if size in self._recorded:
            buffer, call = self._recorded[size]
            buffer.copy_(numbers)
        else:
            buffer = numbers.clone()
            # Recording may run the step: with this batch's numbers in the buffer that does no harm.
            call = self._record(lambda: self._step(buffer))
            self._recorded[size] = buffer, call
        return call()[: len(rows)]


def padded_size(rows: int, most: int) -> int:
    """Find the size of batch that so many rows are filled up to.

    >>> [padded_size(rows, 24) for rows in (1, 2, 3, 9, 17, 24)]
    [1, 2, 4, 16, 24, 24]
    """
    return min(1 << (rows - 1).bit_length(), most)


def unrecorded(call: Call) -> Call:
    """Record nothing: run the step anew each time."""
    return call


class CudaGraphs:
    """A `Record` of CUDA graphs, which share the memory they compute in.

    A step that cannot be recorded is run anew each time; the log tells why.
    """

    def __init__(self) -> None:
        self._pool: Any = None  # torch's handle, which has no public type

    def __call__(self, call: Call) -> Call:
        try:
            self._warm_up(call)
            graph = torch.cuda.CUDAGraph()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = call()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise  # the runner gives memory back and tries with fewer rows
            log.warning("a decoding step cannot be recorded as a CUDA graph and runs slower: %s", error)
            return call

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    @staticmethod
    def _warm_up(call: Call) -> None:
        # What is compiled or allocated at first use must not happen while a graph is recorded.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
