"""Each owed exchange is claimed by one worker, whatever happens while its rows travel."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import ParamSpec, TypeVar

import pytest

from bot.chat.worker import Worker
from bot.domain import Action, Author, ChannelKey, Exchange, Part
from bot.errors import ClaimLost
from tests.harness.harness import Harness, text_of
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
    await harness.record_part(exchange, 0, "m1")
    await harness.replied(exchange)
    harness.exchanges.release(exchange)
    return exchange


async def test_an_exchange_delivered_during_the_query_is_not_owed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = await harness.accept(a_message("question"))
    reading = Slow(monkeypatch, harness, "claim_owed")
    owed = asyncio.create_task(harness.intake.recover("discord"))
    await reading.is_done.wait()
    await harness.replied(exchange)
    harness.exchanges.release(exchange)
    reading.may_arrive.set()
    assert await owed == []


async def test_a_message_stored_but_not_yet_started_is_not_owed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = Slow(monkeypatch, harness, "enqueue")
    accepting = asyncio.create_task(harness.accept(a_message("question")))
    await beginning.is_done.wait()
    assert await harness.intake.recover("discord") == []
    beginning.may_arrive.set()
    await harness.replied(await accepting)
    assert len(harness.engine.requests) == 1


async def test_an_exchange_accepted_and_completed_during_the_query_is_not_owed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = Slow(monkeypatch, harness, "enqueue")
    accepting = asyncio.create_task(harness.accept(a_message("question")))
    await beginning.is_done.wait()
    reading = Slow(monkeypatch, harness, "claim_owed")
    owed = asyncio.create_task(harness.intake.recover("discord"))
    await reading.is_done.wait()
    beginning.may_arrive.set()
    exchange = await accepting
    await harness.replied(exchange)
    harness.exchanges.release(exchange)
    reading.may_arrive.set()
    assert await owed == []


@pytest.mark.parametrize("way", ["edit", "button", "retry"])
async def test_a_requeued_exchange_is_not_owed_before_it_starts(
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
    harness.exchanges.release(taken_up)
    assert await harness.intake.recover("discord") == []


async def test_a_renamed_channel_goes_on_in_order_with_its_history(harness: Harness) -> None:
    go_on, new = asyncio.Event(), ChannelKey("discord", "c9")
    harness.engine.add(["the", go_on, " first"], "second", "third")
    first = await harness.accept(a_message("one"))
    events = asyncio.create_task(harness.events(first))
    await harness.engine.asked(1)
    second = asyncio.create_task(harness.events(await harness.accept(a_message("two"))))
    await harness.clock.settle()
    await harness.intake.rename_channel(CHANNEL, "c9")
    third = asyncio.create_task(
        harness.events(await harness.accept(a_message("three", channel=new, author=Author("discord", "2", "Jo"))))
    )
    assert [each.message.text for each in harness.exchanges.queues.in_channel(new)] == ["one", "two", "three"]
    await harness.clock.settle()
    assert len(harness.engine.requests) == 1, "the others wait for the first"
    go_on.set()
    await asyncio.gather(events, second, third)
    said = [message.content for message in harness.engine.requests[2].messages]
    assert said[-5:] == ["one", "the first", "two", "second", "three"]


async def test_the_messages_of_a_renamed_channel_are_not_those_of_the_new_one(harness: Harness) -> None:
    exchange = await harness.accept(a_message("question"))
    worker = harness.exchanges.worker(exchange)
    worker.parts.append(Part("m1", is_recorded=True))
    await harness.intake.rename_channel(CHANNEL, "c9")
    assert [part.id for part in worker.parts] == ["c1 m1"]
    assert await harness.intake.exchanges.clear(ChannelKey("discord", "c9")) == 1
    assert worker.is_stopped


async def test_two_concurrent_recoveries_return_an_owed_exchange_once(harness: Harness) -> None:
    await harness.intake.store(a_message("question"))
    first, second = await asyncio.gather(harness.intake.recover("discord"), harness.intake.recover("discord"))
    assert len(first) + len(second) == 1


async def test_an_interrupted_reply_is_owed_again(harness: Harness) -> None:
    exchange = await harness.accept(a_message("question"))
    assert await harness.intake.recover("discord") == []
    harness.exchanges.release(exchange)
    assert [owed.id for owed in await harness.intake.recover("discord")] == [exchange.id]


async def test_two_requeues_at_once_leave_one_worker_and_one_place_in_the_channel(harness: Harness) -> None:
    exchange = await answered(harness)
    first, second = await asyncio.gather(harness.exchanges.requeue(exchange), harness.exchanges.requeue(exchange))
    claimed = [each for each in (first, second) if each is not None and harness.exchanges.find(each)]
    assert len(claimed) == 1
    assert [each.id for each in harness.exchanges.queues.in_channel(CHANNEL)] == [exchange.id]
    assert text_of(await harness.replied(claimed[0])) == "ok"
    assert harness.exchanges.queues.in_channel(CHANNEL) == []
    assert text_of(await harness.ask(a_message("next"))) == "ok"


async def test_a_worker_that_lost_its_claim_stores_nothing_and_ends(harness: Harness) -> None:
    harness.engine.add(["old ", asyncio.Event()], "new")
    exchange = await harness.accept(a_message("question"))
    old = asyncio.create_task(harness.events(exchange))
    await harness.engine.asked(1)
    requeued = await harness.exchanges.requeue(exchange)
    assert requeued is not None
    with pytest.raises(ClaimLost):
        await old
    assert text_of(await harness.replied(requeued)) == "new"
    stored = await harness.stored(exchange)
    assert stored.answer is not None
    assert stored.answer.text == "new"


async def test_a_requeued_exchange_keeps_the_messages_that_its_last_worker_has_sent(harness: Harness) -> None:
    exchange = await harness.accept(a_message("question"))
    worker = harness.exchanges.worker(exchange)
    worker.parts.append(Part("m1"))  # sent, and not recorded yet
    requeued = await harness.exchanges.requeue(exchange)
    assert requeued is not None
    assert harness.exchanges.worker(requeued).parts == [Part("m1")]


async def test_a_worker_starts_after_the_one_before_it_has_ended(harness: Harness) -> None:
    exchange = await harness.accept(a_message("question"))
    steps: list[str] = []

    async def call_platform(worker: Worker) -> None:
        steps.append(f"{worker.exchange.fence} begins")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append(f"{worker.exchange.fence} ends")

    async def go_on(worker: Worker) -> None:
        steps.append(f"{worker.exchange.fence} begins")

    harness.exchanges.start(exchange, call_platform)
    await harness.clock.settle()
    await harness.exchanges.requeue(exchange)  # never started
    again = await harness.exchanges.requeue(exchange)
    assert again is not None
    task = harness.exchanges.start(again, go_on)
    assert task is not None
    await task
    assert steps == ["1 begins", "1 ends", "3 begins"]


async def test_an_exchange_whose_claim_was_lost_is_not_started(harness: Harness) -> None:
    exchange = await harness.accept(a_message("question"))
    await harness.exchanges.requeue(exchange)
    assert harness.exchanges.start(exchange, lambda worker: asyncio.sleep(0)) is None


async def test_a_recovery_that_is_cancelled_leaves_nothing_claimed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.intake.store(a_message("/retry"))
    await harness.intake.store(a_message("question", channel=ChannelKey("discord", "c2")))
    latest = Slow(monkeypatch, harness, "latest")
    recovering = asyncio.create_task(harness.intake.recover("discord"))
    await latest.is_done.wait()
    recovering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recovering
    latest.may_arrive.set()
    assert len(await harness.intake.recover("discord")) == 2
