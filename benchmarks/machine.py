"""What the machine is and can do: memory held, memory bandwidth, names and versions."""

from __future__ import annotations

import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from benchmarks.figures import Machine, Memory

# Larger than the caches of a processor, so that every read comes from memory.
BUFFER_BYTES = 1 << 29
MATRIX_SIZES = {"cpu": 2048, "cuda": 8192}
_TIMES = 4
_SAMPLING_SECONDS = 0.01

_STATUS = Path("/proc/self/status")
_CPUS = Path("/proc/cpuinfo")


class MemoryWatch:
    """Notes the most memory that is held while it is entered.

    The kernel keeps no peak of anonymous memory, so a thread reads it a hundred times a second.
    """

    peak: Memory  # once it was left

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._anonymous: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.empty(0, device=self._device)  # nothing is counted before the first use
            torch.cuda.reset_peak_memory_stats(self._device)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.peak = Memory(
            resident=_status_bytes("VmHWM"),
            anonymous=self._anonymous,
            device=torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None,
        )

    def _watch(self) -> None:
        while (now := _status_bytes("RssAnon")) is not None:
            self._anonymous = max(now, self._anonymous or 0)
            if self._done.wait(_SAMPLING_SECONDS):
                return


def _status_bytes(field: str) -> int | None:
    return status_bytes(_STATUS.read_text(), field) if _STATUS.exists() else None


def status_bytes(status: str, field: str) -> int | None:
    """Find a field of Linux's /proc/self/status.

    >>> status_bytes("Name:\\tpython\\nVmHWM:\\t  2048 kB\\n", "VmHWM")
    2097152
    """
    found = re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def bandwidth(device: torch.device, threads: int) -> float:
    """Measure how many bytes a second the memory moves: the best of several reads and copies.

    A read sums up the whole buffer, a copy moves one half of it to the other and counts both;
    which one is faster depends on the machine.  On a CPU so many of torch's threads take part.
    """
    buffer = torch.ones(BUFFER_BYTES // 4, device=device)
    source, target = buffer.chunk(2)

    # A GPU works on while we go on: it is done when it answers, and one answer for many
    # reads keeps the time that asking takes out of the figure.
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
        read()  # a warm-up
        return max(passes * buffer.nbytes / _seconds(work) for work in (read, copy) for _ in range(_TIMES))


def matrix_rate(device: torch.device, threads: int, dtype: torch.dtype = torch.bfloat16) -> float:
    """Measure how many multiplications and additions a second a product of large square matrices makes: the best of several."""
    size = MATRIX_SIZES[device.type]
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    passes = 1 if device.type == "cpu" else 16

    def multiply() -> None:
        for _ in range(passes):
            product = left @ right
        product[-1, -1].item()  # a GPU is done when it answers

    with torch_threads(threads):
        multiply()  # a warm-up
        return max(passes * 2 * size**3 / _seconds(multiply) for _ in range(_TIMES))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads for a while."""
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


def describe(device: torch.device) -> Machine:
    return Machine(
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
    )


def _cpu_name() -> str:
    found = re.search(r"^model name\s*: (.+)$", _CPUS.read_text(), re.MULTILINE) if _CPUS.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
