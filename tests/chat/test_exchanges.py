"""What is owed is taken up by one alone, whatever happens while its rows travel."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import ParamSpec, TypeVar

import pytest

from bot.chat.hands import Hands
from bot.domain import Action, Exchange
from tests.harness.harness import Harness
from tests.harness.messages import CHANNEL, MEI, a_message

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Slow:
    """Lets what a database call brings arrive late: on a busy machine, or from a server far away."""

    def __init__(self, patch: pytest.MonkeyPatch, harness: Harness, method: str) -> None:
        self.is_done = asyncio.Event()
        self.may_arrive = asyncio.Event()
        patch.setattr(harness.store, method, self._late(getattr(harness.store, method)))

    def _late(self, call: Callable[Arguments, Awaitable[Result]]) -> Callable[Arguments, Awaitable[Result]]:
        async def late(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            result = await call(*args, **kwargs)
            self.is_done.set()
            await self.may_arrive.wait()
            return result

        return late


async def answered(harness: Harness, text: str = "question") -> Exchange:
    exchange = await harness.accept(a_message(text))
    await harness.intake.record_part(exchange.id, 0, "m1")
    await harness.replied(exchange)
    harness.intake.release(exchange)
    return exchange


async def test_what_is_delivered_while_the_rows_travel_is_not_owed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = await harness.accept(a_message("question"))
    reading = Slow(monkeypatch, harness, "owed")
    owed = asyncio.create_task(harness.intake.recover("discord"))
    await reading.is_done.wait()
    await harness.replied(exchange)
    harness.intake.release(exchange)
    reading.may_arrive.set()
    assert await owed == []


async def test_a_message_whose_row_is_there_before_it_is_taken_up_is_not_owed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = Slow(monkeypatch, harness, "enqueue")
    accepting = asyncio.create_task(harness.accept(a_message("question")))
    await beginning.is_done.wait()
    assert await harness.intake.recover("discord") == []
    beginning.may_arrive.set()
    await harness.replied(await accepting)
    assert len(harness.engine.requests) == 1


async def test_what_was_accepted_and_done_while_the_rows_travel_is_not_owed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = Slow(monkeypatch, harness, "enqueue")
    accepting = asyncio.create_task(harness.accept(a_message("question")))
    await beginning.is_done.wait()
    reading = Slow(monkeypatch, harness, "owed")
    owed = asyncio.create_task(harness.intake.recover("discord"))
    await reading.is_done.wait()
    beginning.may_arrive.set()
    exchange = await accepting
    await harness.replied(exchange)
    harness.intake.release(exchange)
    reading.may_arrive.set()
    assert await owed == []


@pytest.mark.parametrize("way", ["edit", "button", "retry"])
async def test_what_is_reopened_is_not_owed_before_it_is_taken_up(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    exchange = await answered(harness)
    reopening = Slow(monkeypatch, harness, "requeue")

    async def again() -> Exchange | None:
        match way:
            case "edit":
                return await harness.intake.edit(replace(exchange.message, text="another question"))
            case "button":
                return (await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI)).again
            case _:
                return await harness.accept(a_message("/retry"))

    reopened = asyncio.create_task(again())
    await reopening.is_done.wait()
    assert await harness.intake.recover("discord") == []
    reopening.may_arrive.set()
    taken_up = await reopened
    assert taken_up is not None
    assert taken_up.id == exchange.id
    await harness.replied(taken_up)
    harness.intake.release(taken_up)
    assert await harness.intake.recover("discord") == []


async def test_who_asks_twice_at_once_what_is_owed_gets_it_once(harness: Harness) -> None:
    await harness.intake.store(a_message("question"))
    first, second = await asyncio.gather(harness.intake.recover("discord"), harness.intake.recover("discord"))
    assert len(first) + len(second) == 1


async def test_a_reply_that_is_broken_off_is_owed_again(harness: Harness) -> None:
    exchange = await harness.accept(a_message("question"))
    assert await harness.intake.recover("discord") == []
    harness.conversations.dismiss(exchange)
    harness.intake.release(exchange)
    assert [owed.id for owed in await harness.intake.recover("discord")] == [exchange.id]


async def test_a_row_of_what_was_held_or_came_and_went_on_its_way_is_not_free(harness: Harness) -> None:
    hands = Hands()
    held, passing, free = [await answered(harness, f"question {number}") for number in range(3)]
    hands.take(held)

    async def rows() -> list[Exchange]:
        hands.take(passing)
        for exchange in (held, passing):
            hands.let_go(exchange)
        return [held, passing, free]

    assert await hands.free(rows()) == [free]
    assert await hands.free(asyncio.sleep(0, [held, passing, free])) == [held, passing, free]
