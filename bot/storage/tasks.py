"""Tasks of the store that outlive the cancellation of whoever waits for them."""

import asyncio
from typing import Any, TypeVar

import structlog

Result = TypeVar("Result")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def result_of(task: asyncio.Task[Result]) -> Result:
    """Wait for the task; if cancelled meanwhile, leave at once and let the task go on."""
    try:
        await asyncio.wait([task])  # unlike `await task`, this passes no cancellation on
    except asyncio.CancelledError:
        task.add_done_callback(_report_failure)
        raise
    return task.result()


async def to_the_end(task: asyncio.Task[None]) -> None:
    """Wait for the task even if cancelled meanwhile; be cancelled afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
    task.result()
    if cancelled is not None:
        raise cancelled


def _report_failure(task: asyncio.Task[Any]) -> None:
    """Say what went wrong, now that the caller is gone."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a cancelled call has failed", call=task.get_name(), error=str(error))
