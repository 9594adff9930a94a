"""A monitor of the event loop: the CPU time of each callback on the loop's own thread.

In a test: `with LoopMonitor() as monitor: …` and `assert monitor.slow == []`; where the bot shares its event loop with what
tests it, `LoopMonitor(only_bots=True)` and `start_bot`.  For a bot process start the module `tests.harness.loop_monitor` in
place of `bot`: each slow callback after readiness becomes an error in its log.
"""

import asyncio
import gc
import itertools
import json
import logging
import os
import resource
import runpy
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar, copy_context
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# Seconds of CPU time that a callback may take, unless this variable says another number.
LIMIT = 0.02
LIMIT_VARIABLE = "LOOP_MONITOR_LIMIT"
# A process replaces this file with its longest callback, as JSON; MODULE is the program that it runs, `bot` if unset.
REPORT = "LOOP_MONITOR_REPORT"
MODULE = "LOOP_MONITOR_MODULE"

# Seconds between two samples of the loop's stack; a sample may be taken from a later part of the callback.
_SAMPLE_SECONDS = 0.004

# Set in the contexts of bots that share the loop: whether the bot is ready.
_is_bot_ready: ContextVar[Callable[[], bool]] = ContextVar("is_bot_ready")

_log = logging.getLogger("tests.loop_monitor")


def longest_allowed() -> float:
    """Return the seconds of CPU time that a callback may take."""
    return float(os.environ.get(LIMIT_VARIABLE, LIMIT))


def start_bot(work: Coroutine[Any, Any, None], is_ready: Callable[[], bool]) -> asyncio.Task[None]:
    """Run a bot in a task; its callbacks, and those of all that it starts, are known as a bot's."""
    context = copy_context()
    context.run(_is_bot_ready.set, is_ready)
    return asyncio.create_task(work, context=context)


@dataclass(frozen=True, slots=True)
class Callback:
    """A measured callback: seconds of CPU time, of the clock, and those of collector and kernel among the first."""

    cpu: float
    wall: float
    collecting: float
    kernel: float  # such as page faults of a machine that is short of memory
    name: str
    stack: str  # the innermost frames of a sample

    def __str__(self) -> str:
        return (
            f"{1000 * self.cpu:.1f} ms of CPU time on the event loop ({1000 * self.wall:.1f} ms by the clock, "
            f"{1000 * self.collecting:.1f} ms of garbage collection, {1000 * self.kernel:.1f} ms of the kernel): "
            f"{self.name}\n{self.stack}"
        )


NONE = Callback(0.0, 0.0, 0.0, 0.0, "no callback", "")


class LoopMonitor:
    """Measures the callbacks of all event loops of this thread inside the block, from when `is_ready` is true.

    `on_longest` is called with each callback that is longer than all before.  With `only_bots`, only callbacks of `start_bot`
    count, without garbage collection: the objects are mostly those of the tests.
    """

    def __init__(
        self,
        limit: float | None = None,
        is_ready: Callable[[], bool] = lambda: True,
        on_longest: Callable[[Callback], object] = lambda callback: None,
        on_slow: Callable[[Callback], object] = lambda callback: None,
        *,
        only_bots: bool = False,
    ) -> None:
        self.slow: list[Callback] = []
        self.longest = NONE
        self.longest_wall = 0.0
        self.count = 0
        self._limit = longest_allowed() if limit is None else limit
        self._is_ready = is_ready
        self._on_longest = on_longest
        self._on_slow = on_slow
        self._only_bots = only_bots
        self._is_armed = False
        self._thread = threading.get_ident()
        self._began: float | None = None  # by the clock, of the callback that runs now
        self._sample = ""
        self._collecting = 0.0
        self._collection_began = 0.0
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        self._original: Callable[[asyncio.Handle], None] = asyncio.Handle._run
        monitor, original = self, self._original

        def run(handle: asyncio.Handle) -> None:
            if threading.get_ident() == monitor._thread:
                monitor._measure(handle, original)
            else:
                original(handle)

        asyncio.Handle._run = run  # type: ignore[method-assign, assignment]
        gc.callbacks.append(self._on_collection)
        threading.Thread(target=self._take_samples, name="loop monitor", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.Handle._run = self._original  # type: ignore[method-assign, assignment]
        gc.callbacks.remove(self._on_collection)
        self._stop.set()

    def _measure(self, handle: asyncio.Handle, run: Callable[[asyncio.Handle], None]) -> None:
        self._is_armed = self._is_armed or self._is_ready()
        if not self._is_armed or (self._only_bots and not _is_of_bot(handle)):
            return run(handle)
        self._sample, self._collecting = "", 0.0
        self._began = wall = time.perf_counter()
        kernel = _kernel_time()
        cpu = time.thread_time()
        try:
            run(handle)
        finally:
            cpu = time.thread_time() - cpu - (self._collecting if self._only_bots else 0.0)
            wall = time.perf_counter() - wall
            self._began = None
            self.count += 1
            self.longest_wall = max(self.longest_wall, wall)
            if cpu > min(self._limit, self.longest.cpu):  # the rest only for these: most callbacks take microseconds
                self._note(Callback(cpu, wall, self._collecting, _kernel_time() - kernel, _name(handle), self._sample))

    def _note(self, found: Callback) -> None:
        if found.cpu > self.longest.cpu:
            self.longest = found
            self._on_longest(found)
        if found.cpu > self._limit:
            self.slow.append(found)
            self._on_slow(found)

    def _take_samples(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            began = self._began
            if began is not None and time.perf_counter() - began > self._limit / 2:
                # Without the sources' lines, whose first reading takes longer than a callback.
                frames = itertools.islice(traceback.walk_stack(sys._current_frames().get(self._thread)), 6)
                with suppress(AttributeError):  # CPython 3.11: a frame of another thread may end while it is read
                    self._sample = "\n".join(
                        f"  {f.f_code.co_filename}:{line} {f.f_code.co_name}" for f, line in frames
                    )

    def _on_collection(self, phase: str, info: dict[str, Any]) -> None:
        if threading.get_ident() == self._thread:
            if phase == "start":
                self._collection_began = time.thread_time()
            else:
                self._collecting += time.thread_time() - self._collection_began


def _kernel_time() -> float:
    """Return the seconds that this thread has spent in the kernel; zero where a thread's are not counted."""
    thread = getattr(resource, "RUSAGE_THREAD", None)
    return 0.0 if thread is None else resource.getrusage(thread).ru_stime


def _is_of_bot(handle: asyncio.Handle) -> bool:
    is_ready = handle._context.get(_is_bot_ready)  # type: ignore[attr-defined]
    return is_ready is not None and is_ready()


def _name(handle: asyncio.Handle) -> str:
    callback = handle._callback  # type: ignore[attr-defined]
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return f"{task.get_name()}: {getattr(task.get_coro(), '__qualname__', '')}"
    return str(getattr(callback, "__qualname__", None) or type(callback).__name__)


class _Readiness:
    """Whether all platforms of the program have been connected at once, as /readyz tells."""

    def __init__(self) -> None:
        self._made: list[Any] = []
        self._is_watching = False

    def __call__(self) -> bool:
        app: Any = sys.modules.get("bot.app")
        if app is not None and not self._is_watching and hasattr(app, "Components"):
            # The first callback of the loop: the program's task has not run yet.
            self._is_watching = True
            made, components = self._made, app.Components

            def make() -> Any:
                made.append(components())
                return made[-1]

            app.Components = make
        return any(
            components.adapters and all(adapter.is_connected for adapter in components.adapters.values())
            for components in self._made
        )


def main() -> None:
    """Run a program with its arguments, its event loop monitored."""

    def write(callback: Callback) -> None:
        if path := os.environ.get(REPORT):
            Path(path).write_text(json.dumps(asdict(callback)), encoding="utf-8")

    def report(callback: Callback) -> None:
        _log.error("%s", callback)

    with LoopMonitor(is_ready=_Readiness(), on_longest=write, on_slow=report):
        runpy.run_module(os.environ.get(MODULE, "bot"), run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
