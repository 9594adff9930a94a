"""Contract of a Store's ledger: each answer is counted once, for its author, channel, server and platform."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date, timedelta

import pytest

from bot.domain import Answer, ChannelKey, FinishReason, Scope, Usage, UsageSum
from bot.storage.base import Store
from tests.contracts.test_store import Reopened, begun, reopened
from tests.storage import BEN, MEI, NOON, ROOM, THREAD, message

__all__ = ["reopened"]

TODAY = NOON.date()
ANSWER = Answer("hi", usage=Usage(7, 3))
ONE = UsageSum(1, 7, 3, 20)


@pytest.fixture
async def store(reopened: Reopened) -> AsyncIterator[Store]:
    async with reopened() as store:
        yield store


async def used(store: Store, level: str, id: str) -> dict[date, UsageSum]:
    return await store.usage(Scope(level, id), date(2000, 1, 1))  # type: ignore[arg-type]


async def test_an_answer_is_counted_for_each_that_it_belongs_to(store: Store) -> None:
    for number, (channel, author) in enumerate([(ROOM, MEI), (THREAD, MEI), (ROOM, BEN)]):
        asked = replace(message(number, channel=channel, author=author), server="T1")
        assert await store.record_answer(await begun(store, asked), ANSWER, TODAY, 20)
    assert await used(store, "user", MEI.key) == {TODAY: ONE + ONE}
    assert await used(store, "user", BEN.key) == {TODAY: ONE}
    for level, id in (("channel", str(ROOM)), ("server", "slack:T1"), ("platform", "slack")):
        assert await used(store, level, id) == {TODAY: ONE + ONE + ONE}


async def test_an_answer_that_is_stored_again_is_counted_once(store: Store) -> None:
    exchange = await begun(store, message(1))
    for _ in range(3):  # acknowledgements were lost
        assert await store.record_answer(exchange, ANSWER, TODAY, 20)
    await store.complete(exchange)
    assert await used(store, "user", MEI.key) == {TODAY: ONE}


async def test_another_attempt_after_a_kill_is_counted_once_and_another_question_again(reopened: Reopened) -> None:
    async with reopened() as store:
        await begun(store, message(1))
    async with reopened() as store:
        [owed] = await store.claim_owed("slack")
        await store.record_answer(owed, ANSWER, TODAY, 20)
    async with reopened() as store:
        [owed] = await store.claim_owed("slack")
        assert owed.answer == ANSWER, "it is delivered, and not made again"
        await store.complete(owed)
        assert await used(store, "user", MEI.key) == {TODAY: ONE}
        again = await store.requeue(owed)
        assert again is not None
        await store.record_answer(again, ANSWER, TODAY + timedelta(days=1), 20)
        assert await used(store, "user", MEI.key) == {TODAY: ONE, TODAY + timedelta(days=1): ONE}


async def test_a_sentence_costs_nothing_and_an_answer_that_is_cut_before_its_first_word_counts(store: Store) -> None:
    refused = await begun(store, message(1))
    await store.record_answer(refused, Answer("", "no", FinishReason.ERROR), TODAY, 20)
    assert await used(store, "user", MEI.key) == {}
    stopped = await begun(store, message(2))
    await store.record_answer(stopped, Answer("", "", FinishReason.CANCELLED, Usage(7, 0)), TODAY, 20)
    assert await used(store, "user", MEI.key) == {TODAY: UsageSum(1, 7, 0, 20)}


async def test_what_a_deleted_or_edited_question_has_used_is_counted(store: Store) -> None:
    deleted, edited = await begun(store, message(1)), await begun(store, message(2))
    await store.erase(deleted)
    await store.requeue(edited, "another text")
    assert not await store.record_answer(deleted, ANSWER, TODAY, 20)
    assert not await store.record_answer(edited, ANSWER, TODAY, 20)
    assert await used(store, "user", MEI.key) == {TODAY: ONE + ONE}


async def test_deletions_of_texts_keep_the_sums(store: Store) -> None:
    await store.record_answer(await begun(store, message(1)), ANSWER, TODAY, 20)
    await store.clear(ROOM)
    await store.forget(MEI)
    await store.expire(NOON + timedelta(days=1))
    for level, id in (("user", MEI.key), ("channel", str(ROOM))):
        assert await used(store, level, id) == {TODAY: ONE}


async def test_ended_periods_are_deleted(store: Store) -> None:
    days = [TODAY + timedelta(days=number) for number in range(3)]
    for number, day in enumerate(days):
        await store.record_answer(await begun(store, message(number)), ANSWER, day, 20)
    await store.end_usage(days[1])
    assert list(await used(store, "user", MEI.key)) == days[1:]
    assert list(await used(store, "channel", str(ROOM))) == days
    await store.end_usage(days[2], days[1])
    assert list(await used(store, "channel", str(ROOM))) == days[1:]


async def test_a_short_retention_keeps_the_days_of_a_period_that_runs(store: Store) -> None:
    days = [TODAY + timedelta(days=number) for number in range(3)]
    for number, day in enumerate(days):
        asked = replace(message(number), server="T1")
        await store.record_answer(await begun(store, asked), ANSWER, day, 20)
    await store.end_usage(days[1], days[2])
    for level, id in (("user", MEI.key), ("channel", str(ROOM)), ("server", "slack:T1"), ("platform", "slack")):
        assert list(await used(store, level, id)) == days[1:], level


async def test_a_renamed_channel_takes_its_sums_to_those_that_it_has_there(store: Store) -> None:
    there = ChannelKey("slack", "C9")
    for number, channel in enumerate((ROOM, there)):
        await store.record_answer(await begun(store, message(number, channel=channel)), ANSWER, TODAY, 20)
    await store.rename_channel(ROOM, "C9")
    assert await used(store, "channel", str(there)) == {TODAY: ONE + ONE}
    assert await used(store, "channel", str(ROOM)) == {}


async def test_a_group_that_is_its_own_server_takes_the_sums_of_the_server_too(store: Store) -> None:
    async def answer(number: int, channel: str) -> None:
        asked = replace(message(number, channel=ChannelKey("slack", channel)), server=channel)
        await store.record_answer(await begun(store, asked), ANSWER, TODAY, 20)

    await answer(1, "group")
    await answer(2, "supergroup")
    owed = await begun(store, replace(message(3, channel=ChannelKey("slack", "group")), server="group"))
    await store.rename_channel(ChannelKey("slack", "group"), "supergroup")
    [*_, moved] = await store.said_in(ChannelKey("slack", "supergroup"), 9)
    assert (moved.id, moved.message.server) == (owed.id, "supergroup")
    for level in ("channel", "server"):
        assert await used(store, level, "slack:supergroup") == {TODAY: ONE + ONE}
        assert await used(store, level, "slack:group") == {}


async def test_the_channel_of_a_direct_chat_is_not_counted(store: Store) -> None:
    await store.record_answer(await begun(store, replace(message(1), is_direct=True)), ANSWER, TODAY, 20)
    assert await used(store, "user", MEI.key) == {TODAY: ONE}
    assert await used(store, "channel", str(ROOM)) == {}
