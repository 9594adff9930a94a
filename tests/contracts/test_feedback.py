"""Contract of a Store's votes: one per person and answer, deleted with the answer or the person's messages."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest

from bot.domain import Answer, Author, Exchange, Kind, Vote, VoteResult
from bot.storage.base import Store
from tests.contracts.test_store import Reopened, begun, found, reopened
from tests.storage import BEN, MEI, NOON, ROOM, message

__all__ = ["reopened"]


@pytest.fixture
async def store(reopened: Reopened) -> AsyncIterator[Store]:
    async with reopened() as store:
        yield store


async def answered(store: Store, number: int = 1, author: Author = MEI) -> Exchange:
    exchange = await begun(store, message(number, author=author))
    await store.record_answer(exchange, Answer("hi", model="big", persona="pirate"))
    await store.complete(exchange)
    return await found(store, exchange)


async def test_a_person_has_one_vote_which_may_change(store: Store) -> None:
    exchange = await answered(store)
    assert await store.vote(exchange, BEN, Vote.UP, NOON) is VoteResult.UP
    assert await store.vote(exchange, BEN, Vote.DOWN, NOON) is VoteResult.DOWN
    assert await store.vote(exchange, BEN, Vote.DOWN, NOON) is VoteResult.TAKEN_BACK
    assert await store.vote(exchange, BEN, Vote.DOWN, NOON) is VoteResult.DOWN


async def test_a_press_that_is_delivered_again_changes_nothing(store: Store) -> None:
    first, second = await answered(store, 1), await answered(store, 2)
    for press, result in [("p1", VoteResult.UP), ("p2", VoteResult.TAKEN_BACK), ("p3", VoteResult.UP)]:
        assert await store.vote(first, BEN, Vote.UP, NOON, press) is result
    for press in ("p1", "p2", "p3"):
        assert await store.vote(first, BEN, Vote.UP, NOON, press) is VoteResult.REPEATED
    assert await store.vote(first, MEI, Vote.DOWN, NOON, "p4") is VoteResult.DOWN
    assert await store.own_votes(BEN, [first.id, second.id]) == {first.id: Vote.UP}
    assert await store.own_votes(MEI, [first.id, second.id]) == {first.id: Vote.DOWN}
    assert await store.own_votes(MEI, []) == {}
    assert await store.last_message_ids("slack") == {ROOM: "2"}


async def test_a_reaction_that_is_delivered_again_changes_nothing(store: Store) -> None:
    exchange = await answered(store)
    for vote, is_added, result in [
        (Vote.DOWN, False, VoteResult.REPEATED),
        (Vote.UP, True, VoteResult.UP),
        (Vote.UP, True, VoteResult.REPEATED),
        (Vote.DOWN, False, VoteResult.REPEATED),  # of a vote that it no longer is
        (Vote.DOWN, True, VoteResult.DOWN),
        (Vote.UP, False, VoteResult.REPEATED),
        (Vote.DOWN, False, VoteResult.TAKEN_BACK),
    ]:
        assert await store.react(exchange, BEN, vote, NOON, is_added=is_added) is result
    assert await store.own_votes(BEN, [exchange.id]) == {}
    assert await store.requeue(exchange)
    assert await store.react(exchange, BEN, Vote.UP, NOON, is_added=True) is VoteResult.NO_ANSWER


async def test_people_vote_independently_on_each_answer(store: Store) -> None:
    first, second = await answered(store, 1), await answered(store, 2)
    for exchange in (first, second):
        for person in (MEI, BEN):
            assert await store.vote(exchange, person, Vote.UP, NOON) is VoteResult.UP
    assert await store.vote(second, BEN, Vote.UP, NOON) is VoteResult.TAKEN_BACK
    assert await store.vote(first, BEN, Vote.UP, NOON) is VoteResult.TAKEN_BACK


async def test_only_a_question_that_is_answered_has_votes(store: Store) -> None:
    question = await begun(store, message(1))
    assert await store.vote(question, BEN, Vote.UP, NOON) is VoteResult.NO_ANSWER
    command = await store.enqueue(message(2), Kind.COMMAND)
    assert command is not None
    await store.record_answer(command, Answer("", "done"))
    assert await store.vote(command, BEN, Vote.UP, NOON) is VoteResult.NO_ANSWER


@pytest.mark.parametrize("text", [None, "another question"])
async def test_an_answer_that_is_made_again_begins_without_votes(store: Store, text: str | None) -> None:
    old = await answered(store)
    await store.vote(old, BEN, Vote.UP, NOON)
    requeued = await store.requeue(old, text)
    assert requeued is not None
    assert await store.vote(old, BEN, Vote.UP, NOON) is VoteResult.NO_ANSWER
    await store.record_answer(requeued, Answer("again"))
    assert await store.vote(old, BEN, Vote.UP, NOON) is VoteResult.NO_ANSWER, "it is a vote on the old answer"
    assert await store.vote(requeued, BEN, Vote.UP, NOON) is VoteResult.UP, "the old vote is deleted"


DELETIONS: dict[str, Callable[[Store, Exchange], Awaitable[object]]] = {
    "clear": lambda store, exchange: store.clear(ROOM),
    "forget": lambda store, exchange: store.forget(MEI),
    "erase": lambda store, exchange: store.erase(exchange),
    "delete_messages": lambda store, exchange: store.delete_messages(ROOM, ["1"]),
    "expire": lambda store, exchange: store.expire(NOON + timedelta(days=1)),
}


@pytest.mark.parametrize("deletion", DELETIONS)
async def test_an_answer_that_is_deleted_has_no_votes(store: Store, deletion: str) -> None:
    exchange = await answered(store)
    await store.vote(exchange, BEN, Vote.UP, NOON)
    await DELETIONS[deletion](store, exchange)
    assert await store.vote(exchange, BEN, Vote.UP, NOON) is VoteResult.NO_ANSWER
    assert (await found(store, exchange)).answer is None


async def test_a_person_who_is_forgotten_has_not_voted_and_not_agreed(store: Store) -> None:
    exchange = await answered(store)
    for person in (MEI, BEN):
        await store.vote(exchange, person, Vote.UP, NOON)
        await store.record_consent(person, NOON)
    await store.forget(BEN)
    assert await store.vote(exchange, BEN, Vote.UP, NOON) is VoteResult.UP
    assert await store.vote(exchange, MEI, Vote.UP, NOON) is VoteResult.TAKEN_BACK
    assert (await store.has_consented(MEI), await store.has_consented(BEN)) == (True, False)


async def test_votes_stay_with_a_channel_that_is_renamed(store: Store) -> None:
    exchange = await answered(store)
    await store.vote(exchange, BEN, Vote.UP, NOON)
    await store.rename_channel(ROOM, "C2")
    assert await store.vote(exchange, BEN, Vote.UP, NOON) is VoteResult.TAKEN_BACK


async def test_nobody_has_agreed_until_they_say_so_and_each_may_take_it_back(store: Store) -> None:
    assert not await store.has_consented(MEI)
    await store.record_consent(MEI, NOON)
    await store.record_consent(MEI, NOON + timedelta(days=1))
    assert (await store.has_consented(MEI), await store.has_consented(BEN)) == (True, False)
    await store.record_consent(MEI, None)
    assert not await store.has_consented(MEI)


async def test_an_answer_keeps_the_names_of_its_model_and_persona(store: Store) -> None:
    exchange = await answered(store)
    assert exchange.answer == Answer("hi", model="big", persona="pirate")
    requeued = await store.requeue(exchange)
    assert requeued is not None
    await store.record_answer(requeued, Answer("hi"))
    assert (await found(store, requeued)).answer == Answer("hi")
