"""CUDA graphs of decode steps, captured once per batch size, with static input buffers."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bot.engine.serving.h2d import to_device_async
from bot.engine.serving.runner import is_out_of_memory

log = logging.getLogger(__name__)

StepFunction = Callable[[], Tensor]
Capture = Callable[[StepFunction], StepFunction]
"""Turns a step on fixed memory into a faster equivalent."""


class GraphRunner:
    """Runs `step` on batches padded to a few sizes, each with its own buffer and capture.

    `step` maps int64 `[fields, rows]` to `[rows, ...]`.  A batch is padded to the next power
    of two, at most `most`, with columns of `padding`, which must have no effect.
    """

    def __init__(
        self,
        step: Callable[[Tensor], Tensor],
        *,
        padding: Sequence[int],
        most: int,
        device: torch.device,
        capture: Capture,
    ) -> None:
        self._step = step
        self._padding = tuple(padding)
        self._most = most
        self._device = device
        self._capture = capture
        self._captured: dict[int, tuple[Tensor, StepFunction]] = {}

    def __call__(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Run one step; the result is valid until the next one."""
        size = padded_size(len(rows), self._most)
        numbers = to_device_async(self._device, [*zip(*rows, *[self._padding] * (size - len(rows)), strict=True)])
        if size in self._captured:
            buffer, run = self._captured[size]
            buffer.copy_(numbers)
        else:
            buffer = numbers.clone()
            # The capture may run the step: on this batch's own input that is idempotent.
            run = self._capture(lambda: self._step(buffer))
            self._captured[size] = buffer, run
        return run()[: len(rows)]


def padded_size(rows: int, most: int) -> int:
    """Return the batch size that `rows` are padded to.

    >>> [padded_size(rows, 24) for rows in (1, 2, 3, 9, 17, 24)]
    [1, 2, 4, 16, 24, 24]
    """
    return min(1 << (rows - 1).bit_length(), most)


class CudaGraphs:
    """A `Capture` of CUDA graphs that share one memory pool.

    A step that cannot be captured runs eagerly, and the reason is logged.
    """

    def __init__(self) -> None:
        self._pool: Any = None  # torch's handle, which has no public type

    def __call__(self, step: StepFunction) -> StepFunction:
        try:
            self._warm_up(step)
            graph = torch.cuda.CUDAGraph()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = step()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise  # the runner frees memory and retries with fewer rows
            log.warning("CUDA graph capture failed, decode steps run slower: %s", error)
            return step

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    @staticmethod
    def _warm_up(step: StepFunction) -> None:
        # Compilation and first-use allocations must not happen during the capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
