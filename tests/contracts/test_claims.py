"""Contract of a Store's claims: the table of bot/lifecycle.py, and lost acknowledgements."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from bot.domain import Answer, Attachment, Exchange, IncomingMessage, Kind, Status
from bot.errors import StoreError
from bot.lifecycle import TRANSITIONS, ClaimEffect, Transition
from bot.storage.base import Store
from bot.storage.sql import SqlStore
from tests.contracts.test_store import Reopened, begun, found, reopened
from tests.storage import MEI, NOON, ROOM, THREAD, message

__all__ = ["reopened"]

Perform = Callable[[Store, Exchange], Awaitable[object]]


@pytest.fixture
async def store(reopened: Reopened) -> AsyncIterator[Store]:
    async with reopened() as store:
        yield store


async def release_now(store: Store, exchange: Exchange) -> None:
    """Release the claim, and make a claiming call that voids it."""
    store.release(exchange)
    await store.claim_owed("another platform")


# How the transitions of the table are performed through the seam.
PERFORM: dict[str, Perform] = {
    "claim": lambda store, exchange: store.claim(exchange),
    "release": release_now,
    "record_part": lambda store, exchange: store.record_part(exchange, 0, "m1"),
    "move": lambda store, exchange: store.move(exchange, THREAD),
    "record_files": lambda store, exchange: store.record_files(exchange, [Attachment("a.txt", text="read")]),
    "answer": lambda store, exchange: store.record_answer(exchange, Answer("again")),
    "complete": lambda store, exchange: store.complete(exchange),
    "fail": lambda store, exchange: store.fail(exchange, "gone"),
    "requeue": lambda store, exchange: store.requeue(exchange),
    "clear": lambda store, exchange: store.erase(exchange),
    "expire": lambda store, exchange: store.expire(NOON + timedelta(days=1)),
}


async def exchange_in(store: Store, status: Status) -> Exchange:
    """Return an exchange in this status, claimed as far as that status allows."""
    exchange = await begun(store, message(1))
    match status:
        case Status.OPEN:
            pass
        case Status.ANSWERED:
            await store.record_answer(exchange, Answer("hi"))
        case Status.DELIVERED:
            await store.record_answer(exchange, Answer("hi"))
            await store.complete(exchange)
        case Status.FAILED:
            await store.fail(exchange, "gone")
        case Status.CLEARED:
            await store.erase(exchange)
    return await found(store, exchange)


def test_every_transition_of_the_table_is_performed_here() -> None:
    assert PERFORM.keys() == TRANSITIONS.keys()


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("name", TRANSITIONS)
async def test_a_transition_changes_the_status_as_the_table_says_or_nothing(
    store: Store, name: str, status: Status
) -> None:
    transition = TRANSITIONS[name]
    before = await exchange_in(store, status)
    if name == "claim" and status in transition.origins:
        await release_now(store, before)
    await PERFORM[name](store, before)
    after = await found(store, before)
    if status in transition.origins:
        assert after.status is (transition.target or status)
        assert after.fence - before.fence == _fences(transition)
    else:
        assert after == before


def _fences(transition: Transition) -> int:
    return int(transition.claim in (ClaimEffect.TAKE, ClaimEffect.REVOKE))


@pytest.mark.parametrize("status", [Status.OPEN, Status.ANSWERED])
@pytest.mark.parametrize("name", [name for name, transition in TRANSITIONS.items() if transition.needs_claim])
async def test_a_worker_whose_claim_was_revoked_changes_nothing(store: Store, name: str, status: Status) -> None:
    stale = await exchange_in(store, status)
    await store.requeue(stale)
    before = await found(store, stale)
    assert await PERFORM[name](store, stale) in (False, None)
    assert await found(store, stale) == before
    assert await store.claim(stale) is None


async def test_a_claimed_exchange_is_not_claimed_again(store: Store) -> None:
    exchange = await begun(store, message(1))
    assert await store.enqueue(message(1), Kind.CHAT) is None
    assert await store.claim(exchange) is None
    assert await store.claim_owed("slack") == []


async def test_a_message_of_the_backlog_is_stored_unclaimed(store: Store) -> None:
    assert await store.enqueue(message(1), Kind.CHAT, claim=False) is None
    assert await store.enqueue(message(1), Kind.CHAT, claim=False) is None
    [owed] = await store.claim_owed("slack")
    assert (owed.message, owed.fence) == (message(1), 1)


async def test_a_redelivered_message_is_claimed_if_it_is_owed(store: Store) -> None:
    exchange = await begun(store, message(1, "question"))
    store.release(exchange)
    again = await store.enqueue(message(1, "another text"), Kind.COMMAND)
    assert again == replace(exchange, fence=2)


async def test_a_release_of_an_older_claim_leaves_the_newer_one(store: Store) -> None:
    exchange = await begun(store, message(1))
    requeued = await store.requeue(exchange)
    assert requeued is not None
    await release_now(store, exchange)
    assert await store.claim_owed("slack") == []
    assert await store.record_answer(requeued, Answer("hi"))


async def test_claims_of_an_earlier_process_are_void(reopened: Reopened) -> None:
    async with reopened() as store:
        answered, open_, delivered = [await begun(store, message(number)) for number in range(3)]
        await store.record_answer(answered, Answer("hi"))
        await store.record_answer(delivered, Answer("hi"))
        await store.complete(delivered)
    async with reopened() as store:
        assert [owed.id for owed in await store.claim_owed("slack")] == [answered.id, open_.id]


@pytest.mark.parametrize("way", ["enqueue", "claim_owed", "claim", "requeue"])
async def test_a_claim_whose_caller_was_cancelled_is_void(store: Store, way: str) -> None:
    exchange = await begun(store, message(1))
    store.release(exchange)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "enqueue": lambda: store.enqueue(message(1), Kind.CHAT),
        "claim_owed": lambda: store.claim_owed("slack"),
        "claim": lambda: store.claim(exchange),
        "requeue": lambda: store.requeue(exchange),
    }
    call = asyncio.ensure_future(calls[way]())
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [owed.id for owed in await store.claim_owed("slack")] == [exchange.id]


@pytest.mark.parametrize("way", ["enqueue", "claim_owed", "requeue"])
async def test_a_claim_whose_acknowledgement_was_lost_is_void(
    store: Store, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(store, SqlStore)
    exchange = await begun(store, message(1))
    store.release(exchange)
    shield = store._shield

    async def losing(name: str, work: object) -> object:
        await shield(name, work)  # type: ignore[arg-type]
        raise StoreError("the connection was lost while it was committed")

    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "enqueue": lambda: store.enqueue(message(1), Kind.CHAT),
        "claim_owed": lambda: store.claim_owed("slack"),
        "requeue": lambda: store.requeue(exchange),
    }
    with monkeypatch.context() as patch:
        patch.setattr(store, "_shield", losing)
        with pytest.raises(StoreError):
            await calls[way]()
    again = await store.enqueue(IncomingMessage("1", ROOM, MEI, "again", NOON), Kind.CHAT)
    assert again is not None
    assert again.id == exchange.id


async def test_a_requeued_exchange_keeps_its_parts_and_revokes_the_claim(store: Store) -> None:
    exchange = await begun(store, message(1))
    await store.record_part(exchange, 0, "m1")
    requeued = await store.requeue(exchange, "another text")
    assert requeued is not None
    assert (requeued.parts, requeued.fence, requeued.message.text) == (("m1",), 2, "another text")
    assert not await store.record_answer(exchange, Answer("to the old text"))


async def test_a_claim_that_is_abandoned_before_it_runs_is_void_after_it_has_run(store: Store) -> None:
    exchange = await begun(store, message(1))
    store.release(exchange)
    first = asyncio.ensure_future(store.enqueue(message(2), Kind.CHAT))
    between = asyncio.ensure_future(store.claim_owed("another platform"))
    cancelled = asyncio.ensure_future(store.claim_owed("slack"))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(first, between, cancelled, return_exceptions=True)
    assert [owed.id for owed in await store.claim_owed("slack")] == [exchange.id]
