"""Calls that go on after their caller was cancelled."""

import asyncio

import pytest

from bot.util.aio import detach_on_cancel


async def test_the_error_of_a_call_without_a_caller_is_reported() -> None:
    may_fail, reported = asyncio.Event(), asyncio.Queue[BaseException]()

    async def work() -> None:
        await may_fail.wait()
        raise TypeError("'int' object is not a mapping")

    caller = asyncio.create_task(detach_on_cancel(asyncio.create_task(work()), reported.put_nowait))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    may_fail.set()
    assert isinstance(await reported.get(), TypeError)


async def test_the_error_of_a_call_with_a_caller_is_raised_only() -> None:
    reported: list[BaseException] = []

    async def work() -> None:
        raise TypeError

    with pytest.raises(TypeError):
        await detach_on_cancel(asyncio.create_task(work()), reported.append)
    assert reported == []
