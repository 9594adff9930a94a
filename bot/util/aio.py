"""Asyncio helpers: race, shielding from cancellation, background tasks."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def race(one: Awaitable[object], other: Awaitable[object]) -> None:
    """Wait until one of the two is done and cancel the other; exceptions are ignored."""
    both = [asyncio.ensure_future(one), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)


class Occasions:
    """Counts what happens again and again, for those that wait for the next time."""

    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def add(self) -> None:
        self.count += 1
        self._next.set()
        self._next.clear()  # those that wait are woken all the same

    async def after(self, count: int) -> None:
        """Wait until `self.count` is higher."""
        while self.count <= count:
            await self._next.wait()


async def finish_before_cancel(work: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    """Run `work` to completion, delaying cancellations of the caller until it has ended, or for `seconds`.

    A platform call that is cut off may or may not have arrived.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            _, running = await asyncio.wait([task], timeout=None if cancelled is None else seconds)
            if running:
                task.cancel()
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is None:
        task.result()
    else:
        await asyncio.gather(task, return_exceptions=True)
        raise cancelled


async def detach_on_cancel(task: asyncio.Task[T], report: Callable[[BaseException], None] | None = None) -> T:
    """Wait for the task; on cancellation return at once and leave the task running.

    `report` is then called with the error that ends it, which is logged otherwise.
    """
    try:
        await asyncio.wait([task])  # unlike `await task`, this passes no cancellation on
    except asyncio.CancelledError:
        task.add_done_callback(partial(_report_failure, report))
        raise
    return task.result()


async def join_task(task: asyncio.Task[None]) -> None:
    """Wait for the task to end, delaying a cancellation of the caller until then."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
    task.result()
    if cancelled is not None:
        raise cancelled


class BackgroundTasks:
    """Background tasks that are cancelled and awaited on exit."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _report_failure(report: Callable[[BaseException], None] | None, task: asyncio.Task[Any]) -> None:
    # The caller was cancelled, so this is the only place left to report the error.
    if not task.cancelled() and (error := task.exception()) is not None:
        if report is None:
            log.error("a cancelled call has failed", call=task.get_name(), error=str(error))
        else:
            report(error)
