"""Contract of Store."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.chat.files import MOST_FILES
from bot.config.schema import FilesSection
from bot.domain import (
    Answer,
    Attachment,
    Author,
    ChannelKey,
    Exchange,
    FinishReason,
    FurtherKind,
    FurtherMessage,
    IncomingMessage,
    Kind,
    Status,
    Usage,
)
from bot.errors import StoreError
from bot.storage import conditions
from bot.storage.base import Store
from tests.harness.platform import TIMEOUT
from tests.harness.postgres import PostgresServer
from tests.storage import BEN, MEI, NOON, ROOM, THREAD, message, temporary_store

Reopened = Callable[[], AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["sqlite", "postgresql"])
def reopened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopened]:
    """Opens the same database again when it is called again."""
    if request.param == "sqlite":
        yield partial(temporary_store, tmp_path)
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        with server.lent() as database:
            yield partial(server.store, database)


@pytest.fixture
async def store(reopened: Reopened) -> AsyncIterator[Store]:
    async with reopened() as store:
        yield store


async def begun(store: Store, incoming: IncomingMessage, kind: Kind = Kind.CHAT) -> Exchange:
    exchange = await store.enqueue(incoming, kind)
    assert exchange is not None
    return exchange


async def answered(store: Store, incoming: IncomingMessage, answer: str = "hi", kind: Kind = Kind.CHAT) -> Exchange:
    exchange = await begun(store, incoming, kind)
    assert await store.record_answer(exchange, Answer(answer))
    return await found(store, exchange)


async def found(store: Store, exchange: Exchange) -> Exchange:
    now = await store.find(exchange.message.channel, exchange.message.id)
    assert now is not None
    return now


async def texts_before(store: Store, exchange: Exchange, limit: int = 100) -> list[str]:
    return [past.message.text for past in (await store.history(exchange, limit)).exchanges]


async def test_a_check_of_a_store_that_works_changes_nothing(store: Store) -> None:
    exchange = await begun(store, message(1))
    await store.check()
    assert await found(store, exchange) == exchange


# Opening an exchange.


async def test_an_exchange_begins_open_and_without_an_answer(store: Store) -> None:
    exchange = await begun(store, message(1))
    assert exchange.message == message(1)
    assert (exchange.kind, exchange.status, exchange.answer, exchange.parts) == (Kind.CHAT, Status.OPEN, None, ())
    assert 0 <= exchange.seed < 2**63


async def test_all_fields_of_a_message_are_stored(store: Store) -> None:
    whole = IncomingMessage(
        id="1718.2",
        channel=THREAD,
        author=replace(MEI, is_bot=True),
        text="你好 🙂\n\tworld",
        sent_at=datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC),
        server="T1",
        is_direct=True,
        locale="zh-CN",
        reply_address="token:a-secret",
        quoted="谁说的？",
        quoted_id="1718.1",
        quotes_bot=True,
    )
    exchange = await begun(store, whole, Kind.COMMAND)
    assert exchange.message == whole
    assert await found(store, exchange) == exchange


async def test_a_moment_comes_back_with_its_time_zone(store: Store) -> None:
    in_china = datetime(2026, 1, 2, 20, tzinfo=timezone(timedelta(hours=8)))
    sent_at = (await begun(store, replace(message(1), sent_at=in_china))).message.sent_at
    assert sent_at == in_china
    assert sent_at.utcoffset() == timedelta(0)


async def test_a_moment_without_a_time_zone_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="time zone"):
        await store.enqueue(replace(message(1), sent_at=NOON.replace(tzinfo=None)), Kind.CHAT)


async def test_a_redelivered_message_creates_no_exchange(store: Store) -> None:
    first = await begun(store, message(1, "first"))
    assert await store.enqueue(message(1, "again"), Kind.CHAT) is None
    assert await store.enqueue(message(1, "again"), Kind.COMMAND) is None
    assert await found(store, first) == first


async def test_a_part_of_a_question_that_comes_again_creates_no_exchange(store: Store) -> None:
    asked = await begun(store, message(1))
    part = FurtherMessage("2", ROOM.channel, MEI, "and more", NOON, FurtherKind.CONTINUATION)
    assert await store.join(asked, part) is not None
    assert await store.enqueue(message(2), Kind.CHAT) is None
    assert await store.enqueue(message(2), Kind.CHAT, claim=False) is None
    assert await store.find(ROOM, "2") is None
    following = await begun(store, message(3))
    assert [[each.text for each in asked.message.further] for asked in await store.said_in(ROOM, 10)] == [
        ["and more"],
        [],
    ]
    assert following.id > asked.id


async def test_of_many_copies_at_once_exactly_one_is_claimed(store: Store) -> None:
    copies = [store.enqueue(message(1), Kind.CHAT) for _ in range(64)]
    claimed = [exchange for exchange in await asyncio.gather(*copies) if exchange is not None]
    assert len(claimed) == 1


async def test_the_same_id_elsewhere_is_another_message(store: Store) -> None:
    channels = [ROOM, ChannelKey("slack", "C2"), ChannelKey("discord", "C1"), ChannelKey("slack", "17.1")]
    ids = {(await begun(store, message(1, channel=channel))).id for channel in channels}
    assert len(ids) == len(channels)


async def test_exchanges_are_numbered_in_the_order_they_began(store: Store) -> None:
    ids = [(await begun(store, message(number))).id for number in (9, 1, 5)]
    assert ids == sorted(ids)


async def test_messages_are_numbered_in_the_order_they_came_however_many_wait(store: Store) -> None:
    dice = random.Random(3)
    calls = []
    for number in range(200):
        calls.append(asyncio.create_task(store.enqueue(message(number), Kind.CHAT)))
        # Others end meanwhile, and what they held comes free: a newcomer must not take it.
        for _ in range(dice.randrange(25)):
            await asyncio.sleep(0)
    ids = [exchange.id for exchange in await asyncio.gather(*calls) if exchange is not None]
    assert ids == sorted(ids)


async def test_texts_of_a_megabyte_are_kept(store: Store) -> None:
    text = "长🙂" * 150_000
    exchange = await answered(store, message(1, text), answer=text)
    assert exchange.message.text == text
    assert exchange.answer == Answer(text)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
async def test_any_text_is_kept(store: Store, text: str) -> None:
    exchange = await begun(store, message(uuid4().hex, text))
    assert exchange.message.text == text.replace("\0", "\ufffd")


async def test_halves_of_characters_are_replaced(store: Store) -> None:
    exchange = await begun(store, message(1, "a\ud83db\0c\ud83d\ude42"))
    assert exchange.message.text == "a\ufffdb\ufffdc🙂"


async def test_characters_that_no_database_stores_are_handled_in_every_field(store: Store) -> None:
    odd = "\0\ud83d'\"\\%_"
    channel = ChannelKey("slack", odd, odd)
    author = Author("slack", odd, odd, frozenset({odd}))
    asked = replace(message(odd, odd, channel, author), server=odd, locale=odd, quoted=odd)
    exchange = await answered(store, asked, odd)
    assert await store.enqueue(asked, Kind.CHAT) is None
    await store.record_part(exchange, 0, odd)
    shown = await store.find_by_reply(channel, odd)
    assert shown is not None
    assert shown.id == exchange.id
    assert shown.message.author.roles == {odd}
    await store.fail(exchange, odd)
    assert await store.forget(author) == 1


# Where the test's server stands, in Shanghai, clocks were 8:05:43 ahead in 1900.
@pytest.mark.parametrize("moment", ["0001-01-01T00:00Z", "1900-01-01T04:00Z", "9999-12-31T23:59:59.999999Z"])
async def test_any_time_is_stored(store: Store, moment: str) -> None:
    asked = replace(message(1), sent_at=datetime.fromisoformat(moment))
    assert (await begun(store, asked)).message == asked


# The way of an exchange.


async def test_parts_are_kept_in_order_and_can_be_replaced(store: Store) -> None:
    exchange = await begun(store, message(1))
    for part, message_id in [(0, "m1"), (1, "m2"), (0, "m3"), (2, "m4")]:
        await store.record_part(exchange, part, message_id)
    assert (await found(store, exchange)).parts == ("m3", "m2", "m4")


async def test_a_part_that_skips_one_is_refused(store: Store) -> None:
    exchange = await begun(store, message(1))
    with pytest.raises(StoreError, match="part 1"):
        await store.record_part(exchange, 1, "m2")
    assert not await store.record_part(replace(exchange, id=exchange.id + 1), 0, "m1")


async def test_an_answer_is_kept_whole(store: Store) -> None:
    answer = Answer("你好", "the oldest 2 turns were left out", FinishReason.LENGTH, Usage(12, 34))
    exchange = await begun(store, message(1))
    assert await store.record_answer(exchange, answer)
    now = await found(store, exchange)
    assert (now.status, now.answer) == (Status.ANSWERED, answer)


async def test_an_answer_can_be_stored_again_after_a_lost_acknowledgement(store: Store) -> None:
    exchange = await answered(store, message(1), "first")
    assert await store.record_answer(exchange, Answer("first"))
    assert await found(store, exchange) == exchange


async def test_an_exchange_that_does_not_exist_is_not_answered(store: Store) -> None:
    exchange = await begun(store, message(1))
    assert not await store.record_answer(replace(exchange, id=99), Answer("who?"))


async def test_only_an_answered_exchange_can_be_completed(store: Store) -> None:
    exchange = await begun(store, message(1))
    await store.complete(exchange)
    assert (await found(store, exchange)).status is Status.OPEN
    await store.record_answer(exchange, Answer("hi"))
    await store.complete(exchange)
    assert (await found(store, exchange)).status is Status.DELIVERED


@pytest.mark.parametrize("is_answered", [False, True])
async def test_a_failed_exchange_is_not_owed(store: Store, is_answered: bool) -> None:
    exchange = await (answered if is_answered else begun)(store, message(1))
    await store.fail(exchange, "the channel is gone")
    assert (await found(store, exchange)).status is Status.FAILED
    assert await store.claim_owed("slack") == []
    assert not await store.record_answer(exchange, Answer("late"))


async def test_a_delivered_exchange_cannot_fail(store: Store) -> None:
    exchange = await answered(store, message(1))
    await store.complete(exchange)
    await store.fail(exchange, "too late")
    assert (await found(store, exchange)).status is Status.DELIVERED


async def test_reopening_forgets_the_answer_and_keeps_the_parts(store: Store) -> None:
    exchange = await answered(store, message(1, "hello"))
    await store.record_part(exchange, 0, "m1")
    await store.complete(exchange)
    again = await store.requeue(exchange)
    assert again is not None
    assert (again.status, again.answer, again.parts) == (Status.OPEN, None, ("m1",))
    assert again.message == exchange.message
    assert again.seed != exchange.seed
    assert await found(store, exchange) == again
    assert await store.record_answer(again, Answer("better"))


async def test_an_edited_message_is_reopened_with_its_new_text(store: Store) -> None:
    exchange = await answered(store, message(1, "helo"))
    again = await store.requeue(exchange, "hello")
    assert again is not None
    assert again.message == message(1, "hello")


@pytest.mark.parametrize("locale", ["zh-CN", None])
async def test_a_requeued_exchange_is_answered_at_another_address(store: Store, locale: str | None) -> None:
    file = Attachment("notes.txt", "text/plain", 3, "https://x.invalid/1", text="abc")
    asked = replace(message(1, "hello"), locale=locale, files=(file,), reply_address="token:old", quoted="said before")
    exchange = await begun(store, asked, Kind.COMMAND)
    again = await store.requeue(exchange, reply_address="token:new")
    assert again is not None
    assert (again.kind, again.message) == (Kind.COMMAND, replace(asked, reply_address="token:new"))
    assert await found(store, exchange) == again
    same = await store.requeue(again)
    assert same is not None
    assert same.message == again.message


async def test_failed_and_open_exchanges_can_be_requeued(store: Store) -> None:
    exchange = await begun(store, message(1))
    requeued = await store.requeue(exchange)
    assert requeued is not None
    assert await store.fail(requeued, "gone")
    again = await store.requeue(exchange)
    assert again is not None
    assert again.status is Status.OPEN


async def test_a_cleared_or_unknown_exchange_cannot_be_requeued(store: Store) -> None:
    exchange = await begun(store, message(1))
    await store.clear(ROOM)
    assert await store.requeue(exchange, "new text") is None
    assert (await found(store, exchange)).message.text == ""
    assert await store.requeue(replace(exchange, id=99)) is None


# Looking back.


async def test_history_has_earlier_exchanges_oldest_first(store: Store) -> None:
    for number in range(4):
        await answered(store, message(number, f"question {number}"), f"answer {number}")
    third = await found(store, await answered(store, message(4, "question 4")))
    await answered(store, message(5, "question 5"))
    history = await store.history(third, limit=10)
    assert [past.message.text for past in history.exchanges] == [f"question {number}" for number in range(4)]
    assert [past.answer for past in history.exchanges] == [Answer(f"answer {number}") for number in range(4)]


async def test_history_is_cut_to_its_newest(store: Store) -> None:
    for number in range(5):
        await answered(store, message(number, f"question {number}"))
    now = await begun(store, message(5))
    history = await store.history(now, limit=2)
    assert [past.message.text for past in history.exchanges] == ["question 3", "question 4"]
    nothing = await store.history(now, limit=0)
    assert nothing.exchanges == ()


async def test_a_persons_own_history_has_no_turns_of_others(store: Store) -> None:
    for number, author in enumerate((MEI, BEN, MEI, BEN, MEI)):
        await answered(store, message(number, f"question {number}", author=author))
    await answered(store, message(5, "elsewhere", channel=THREAD))
    now = await begun(store, message(6))
    for limit, numbers in ((10, (0, 2, 4)), (2, (2, 4))):
        history = await store.history(now, limit, is_own=True)
        assert [past.message.text for past in history.exchanges] == [f"question {number}" for number in numbers]


async def test_a_persons_own_history_is_looked_for_in_the_last_rows_of_the_channel(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "SEARCHED_FOR_OWN", 3)
    for number, author in enumerate((MEI, MEI, BEN, BEN)):
        await answered(store, message(number, f"question {number}", author=author))
        await answered(store, message(f"{number}t", "elsewhere", channel=THREAD, author=author))
    history = await store.history(await begun(store, message(4)), 10, is_own=True)
    assert [past.message.text for past in history.exchanges] == ["question 1"]


async def test_that_turns_are_left_out_is_told_again_after_a_clear(store: Store) -> None:
    asked = [await begun(store, message(number, channel=channel)) for number, channel in enumerate((ROOM, THREAD))]
    for exchange in asked:
        assert not (await store.history(exchange, 5)).is_shortening_told
        await store.record_shortening(exchange.message.channel)
        assert (await store.history(exchange, 5)).is_shortening_told
    await store.clear(ROOM)  # its threads too
    for exchange in asked:
        assert not (await store.history(exchange, 5)).is_shortening_told


async def test_history_has_only_chats_answered_by_the_model(store: Store) -> None:
    await answered(store, message(1, "stays"), "yes")
    await store.complete(await answered(store, message(2, "delivered"), "yes"))
    await answered(store, message(3, "/status"), "fine", kind=Kind.COMMAND)
    await begun(store, message(4, "still open"))
    await store.fail((await answered(store, message(5, "failed"))), "gone")
    await store.erase(await answered(store, message(6, "erased")))
    for number, answer in [
        (7, Answer("", "the queue is full")),
        (8, Answer("half an answ", reason=FinishReason.ERROR)),
        (9, Answer("stopped", reason=FinishReason.CANCELLED)),
    ]:
        await store.record_answer((await begun(store, message(number, f"message {number}"))), answer)
    assert await texts_before(store, await begun(store, message(10))) == ["stays", "delivered", "message 9"]


async def test_channels_and_threads_with_the_same_ids_never_mix(store: Store) -> None:
    places = [
        ROOM,
        THREAD,
        ChannelKey("slack", "C1", "17.2"),
        ChannelKey("slack", "17.1"),
        ChannelKey("slack", "17.1", "C1"),
        ChannelKey("discord", "C1"),
        ChannelKey("discord", "C1", "17.1"),
        ChannelKey("slack", "C1", ""),
    ]
    for number, place in enumerate(places):
        await answered(store, message(number, str(place), channel=place, author=replace(MEI, platform=place.platform)))
    for number, place in enumerate(places):
        asked = await begun(store, message(f"new {number}", channel=place))
        assert await texts_before(store, asked) == [str(place)]
        latest = await store.latest(place)
        assert latest is not None
        assert latest.message.channel == place


async def test_a_message_is_found_in_any_thread(store: Store) -> None:
    exchange = await begun(store, message(1, channel=THREAD))
    assert await store.find(THREAD, "1") == exchange
    assert await store.find(ROOM, "1") == exchange
    assert await store.find(ROOM, "2") is None
    assert await store.find(ChannelKey("slack", "C2"), "1") is None


async def test_the_latest_chat_is_found_by_its_author(store: Store) -> None:
    mine = await begun(store, message(1, author=MEI))
    theirs = await begun(store, message(2, author=BEN))
    await begun(store, message(3, author=MEI), Kind.COMMAND)
    await begun(store, message(4, channel=THREAD, author=MEI))
    assert await store.latest(ROOM) == theirs
    assert await store.latest(ROOM, MEI) == mine
    assert await store.latest(ROOM, Author("discord", MEI.id, MEI.name)) is None
    await store.erase(mine)
    assert await store.latest(ROOM, MEI) is None


async def test_the_exchange_behind_a_message_of_the_bot_is_found(store: Store) -> None:
    first, second = await begun(store, message(1)), await begun(store, message(2))
    await store.record_part(first, 0, "17")
    await store.record_part(first, 1, "18%_")
    await store.record_part(second, 0, "171")
    for shown, exchange in (("17", first), ("18%_", first), ("171", second)):
        behind = await store.find_by_reply(THREAD, shown)
        assert behind is not None
        assert behind.id == exchange.id
    assert await store.find_by_reply(ROOM, "1") is None
    assert await store.find_by_reply(ChannelKey("slack", "C2"), "17") is None


async def test_a_channel_with_messages_is_known_even_after_clearing(store: Store) -> None:
    assert not await store.has_history(THREAD)
    await begun(store, message(1, channel=THREAD))
    await store.clear(THREAD)
    assert await store.has_history(THREAD)
    assert not await store.has_history(ROOM)


async def test_a_conversation_is_read_without_its_threads_and_without_what_was_cleared(store: Store) -> None:
    await answered(store, message(1, "cleared"))
    await store.clear(ROOM)
    await begun(store, message(2, "in a thread", channel=THREAD))
    for number in (3, 4, 5):
        await begun(store, message(number, f"question {number}"))
    await begun(store, message(6, "/help"), Kind.COMMAND)
    assert [row.message.text for row in await store.said_in(ROOM, 3)] == ["question 4", "question 5", "/help"]
    assert [row.message.id for row in await store.said_in(THREAD, 3)] == ["2"]


async def test_the_threads_of_a_channel_are_listed_by_their_first_question(store: Store) -> None:
    other = replace(THREAD, thread="17.2")
    empty = replace(THREAD, thread="17.3")
    await begun(store, message(1, "outside"))
    await begun(store, message(2, "first", channel=THREAD))
    await begun(store, message(3, "second", channel=other))
    await answered(store, message(4, "cleared", channel=empty))
    await store.clear(empty)
    await begun(store, message(5, "more", channel=THREAD))
    assert [row.message.text for row in await store.openings(ROOM, 2)] == ["first", "second"]
    assert [row.message.text for row in await store.openings(ROOM, 1)] == ["first"]
    assert await store.openings(ChannelKey("slack", "C9"), 1) == []


async def test_open_and_undelivered_exchanges_are_owed_oldest_first(store: Store) -> None:
    first = await begun(store, message(3))
    await store.complete(await answered(store, message(1)))
    await store.fail((await begun(store, message(2))), "gone")
    await store.erase(await begun(store, message(5)))
    second = await answered(store, message(4, channel=THREAD), kind=Kind.COMMAND)
    await begun(store, message(1, channel=ChannelKey("discord", "D")))
    store.release(first)
    store.release(second)
    owed = await store.claim_owed("slack")
    assert owed == [replace(first, fence=2), replace(second, fence=2)]
    assert await store.claim_owed("telegram") == []


async def test_the_high_water_mark_is_the_newest_message_of_each_channel(store: Store) -> None:
    for number, channel in [(5, ROOM), (3, ROOM), (8, THREAD), (1, ChannelKey("discord", "D"))]:
        await begun(store, message(number, channel=channel))
    await store.clear(THREAD)
    assert await store.last_message_ids("slack") == {ROOM: "3", THREAD: "8"}
    assert await store.last_message_ids("telegram") == {}


# Deleting.


async def test_clearing_blanks_texts_and_names_and_keeps_the_key(store: Store) -> None:
    exchange = await answered(store, replace(message(1, "secret"), quoted="quoted", locale="zh"))
    await store.record_part(exchange, 0, "m1")
    assert await store.clear(ROOM) == 1
    blank = await found(store, exchange)
    assert blank.status is Status.CLEARED
    assert blank.answer is None
    assert blank.parts == ("m1",)
    assert blank.message == IncomingMessage("1", ROOM, Author("slack", "", ""), "", NOON)
    assert await store.enqueue(message(1, "secret"), Kind.CHAT) is None


async def test_clearing_counts_chats_and_each_only_once(store: Store) -> None:
    await answered(store, message(1))
    await begun(store, message(2))
    await begun(store, message(3, "/clear"), Kind.COMMAND)
    assert await store.clear(ROOM) == 2
    assert await store.clear(ROOM) == 0


async def test_a_running_command_survives_its_own_deletion(store: Store) -> None:
    past = await answered(store, message(1, "/status"), kind=Kind.COMMAND)
    running = await begun(store, message(2, "/clear"), Kind.COMMAND)
    assert await store.clear(ROOM) == await store.forget(MEI) == 0
    assert (await found(store, past)).status is Status.CLEARED
    assert (await found(store, running)).status is Status.OPEN
    assert await store.record_answer(running, Answer("", "Forgot nothing."))
    await store.clear(ROOM)
    assert (await found(store, running)).status is Status.CLEARED


async def test_clearing_a_channel_clears_its_threads(store: Store) -> None:
    await answered(store, message(1))
    await answered(store, message(2, channel=THREAD))
    elsewhere = await answered(store, message(3, channel=ChannelKey("slack", "C2")))
    assert await store.clear(ROOM) == 2
    assert await found(store, elsewhere) == elsewhere


async def test_clearing_what_one_person_said_leaves_the_rest(store: Store) -> None:
    hers = [await answered(store, message(1)), await answered(store, message(2, channel=THREAD))]
    his, elsewhere = (
        await answered(store, message(3, author=BEN)),
        await answered(store, message(4, channel=ChannelKey("slack", "C2"))),
    )
    command = await begun(store, message(5, "/clear"), Kind.COMMAND)
    later = await begun(store, message(6))
    assert await store.clear(ROOM, command, MEI) == 2
    assert [(await found(store, each)).status for each in hers] == [Status.CLEARED] * 2
    for kept in (his, elsewhere, later, command):
        assert await found(store, kept) == kept


async def test_clearing_a_thread_leaves_its_channel_alone(store: Store) -> None:
    outside = await answered(store, message(1))
    another = await answered(store, message(2, channel=ChannelKey("slack", "C1", "17.2")))
    await answered(store, message(3, channel=THREAD))
    assert await store.clear(THREAD) == 1
    assert await found(store, outside) == outside
    assert await found(store, another) == another


async def test_quotations_of_a_cleared_thread_are_removed(store: Store) -> None:
    await answered(store, message(1, "the password is 1234", channel=THREAD))
    beside = await begun(store, replace(message(2, "is that so?"), quoted="password is  1234"))
    other = await begun(store, replace(message(3, "and that?"), quoted="never said here"))
    await store.clear(THREAD)
    assert await found(store, beside) == replace(beside, message=replace(beside.message, quoted=None))
    assert await found(store, other) == other


async def test_deleting_a_short_message_keeps_quotations_of_other_texts(store: Store) -> None:
    short = await begun(store, message(1, "no"))
    whole = await begun(store, replace(message(2, "is that so?"), quoted="no"))
    other = await begun(store, replace(message(3, "nothing?"), quoted="I know nothing"))
    await store.erase(short)
    assert (await found(store, whole)).message.quoted is None
    assert await found(store, other) == other


async def test_quotations_of_a_cleared_channel_are_removed_also_after_the_command(store: Store) -> None:
    await answered(store, message(1, "secret"))
    command = await begun(store, message(2, "/clear"), Kind.COMMAND)
    later = await begun(store, replace(message(3, "and that?"), quoted="secret"))
    assert await store.clear(ROOM, command) == 1
    assert await found(store, later) == replace(later, message=replace(later.message, quoted=None))


async def test_an_answer_to_a_cleared_question_is_not_stored(store: Store) -> None:
    exchange = await begun(store, message(1))
    await store.clear(ROOM)
    assert not await store.record_answer(exchange, Answer("late"))
    await store.complete(exchange)
    await store.fail(exchange, "late")
    blank = await found(store, exchange)
    assert (blank.status, blank.answer) == (Status.CLEARED, None)


async def test_forgetting_a_user_covers_all_channels_and_no_other_user(store: Store) -> None:
    mine = [await answered(store, message(1)), await begun(store, message(2, channel=ChannelKey("slack", "C2")))]
    others = [
        await answered(store, message(3, author=BEN)),
        await answered(store, message(4, author=replace(MEI, platform="discord"))),
    ]
    assert await store.forget(MEI) == 2
    assert [(await found(store, exchange)).status for exchange in mine] == [Status.CLEARED] * 2
    assert [await found(store, exchange) for exchange in others] == others


async def test_exchanges_before_a_date_expire_unless_open(store: Store) -> None:
    old, waiting = (
        replace(message(1), sent_at=NOON - timedelta(days=2)),
        replace(message(2), sent_at=NOON - timedelta(days=2)),
    )
    await answered(store, old)
    still_open = await begun(store, waiting)
    new = await answered(store, message(3))
    assert await store.expire(NOON - timedelta(days=1)) == 1
    assert await store.expire(NOON - timedelta(days=1)) == 0
    assert (await found(store, still_open)).message.text == "hello"
    assert (await found(store, new)).message.text == "hello"


async def test_erasing_takes_one_exchange(store: Store) -> None:
    kept, erased = await answered(store, message(1)), await answered(store, message(2))
    await store.erase(erased)
    await store.erase(replace(erased, id=99))
    assert (await found(store, erased)).status is Status.CLEARED
    assert await found(store, kept) == kept


@pytest.mark.parametrize("is_message_deleted", [True, False])
async def test_quotations_of_question_and_answer_are_deleted_with_them(
    store: Store, *, is_message_deleted: bool
) -> None:
    asked = await answered(store, message(1, "the password is 1234"))
    await store.record_part(asked, 0, "m1")
    await store.record_part(asked, 1, "m2")
    quotes = {
        "of the question": replace(message(2), quoted="(paraphrased)", quoted_id="1"),
        "of the answer": replace(message(3, channel=THREAD), quoted="(second part)", quoted_id="m2", quotes_bot=True),
        "without an id": replace(message(6), quoted="password is 1234"),
        "of the same words elsewhere": replace(message(4), quoted="the password is 1234", quoted_id="0"),
        "of the same id elsewhere": replace(message(5, channel=ChannelKey("slack", "C2")), quoted="hi", quoted_id="1"),
    }
    stored = {name: await begun(store, quoting) for name, quoting in quotes.items()}
    await (store.delete_messages(ROOM, ["1"]) if is_message_deleted else store.erase(asked))
    left = {name for name, exchange in stored.items() if (await found(store, exchange)).message.quoted is not None}
    assert left == {"of the same words elsewhere", "of the same id elsewhere"}
    assert (await found(store, stored["of the answer"])).message == message(3, channel=THREAD)


async def test_clearing_deletes_quotations_of_answers_in_other_threads(store: Store) -> None:
    asked = await answered(store, message(1))
    await store.record_part(asked, 0, "m1")
    quoting = await begun(store, replace(message(2, channel=THREAD), quoted="hi", quoted_id="m1", quotes_bot=True))
    command = await begun(store, message(3, "/clear"), Kind.COMMAND)
    later = await begun(store, replace(message(4), quoted="hi", quoted_id="m1", quotes_bot=True))
    assert await store.clear(ChannelKey("slack", "C1"), command) == 2
    for exchange in (quoting, later):
        assert (await found(store, exchange)).message.quoted_id is None
    afterwards = replace(message(5), quoted="hi", quoted_id="m1", quotes_bot=True)
    assert (await begun(store, afterwards)).message == afterwards, "its author points at the answer after the clear"


@pytest.mark.parametrize("way", ["forget", "clear", "delete the question", "delete the part", "edit the part"])
async def test_quotations_of_a_part_of_a_question_are_deleted_with_it(store: Store, way: str) -> None:
    asked = await begun(store, message(1, "translate this:"))
    part = FurtherMessage("2", ROOM.channel, MEI, "my door code is 4711", NOON, FurtherKind.CONTINUATION)
    assert await store.join(asked, part) is not None
    quotes = {
        "by its id": replace(message(3, author=BEN), quoted="(paraphrased)", quoted_id="2"),
        "by its words": replace(message(4, author=BEN, channel=THREAD), quoted="code is 4711"),
        "of the same id elsewhere": replace(
            message(5, author=BEN, channel=ChannelKey("slack", "C2")), quoted="hi", quoted_id="2"
        ),
        "of something else": replace(message(6, author=BEN), quoted="see you at the station"),
    }
    stored = {name: await begun(store, quoting) for name, quoting in quotes.items()}
    match way:
        case "forget":
            await store.forget(MEI)
        case "clear":
            await store.clear(ROOM, await begun(store, message(9, "/clear"), Kind.COMMAND), MEI)
        case "delete the question":
            await store.delete_messages(ROOM, ["1"])
        case "delete the part":
            await store.delete_messages(ROOM, ["2"])
        case _:
            assert await store.edit_continuation(ROOM, "2", "never mind", []) is not None
    left = {name: (await found(store, exchange)).message.quoted for name, exchange in stored.items()}
    assert left == {
        "by its id": "never mind" if way == "edit the part" else None,
        "by its words": None,
        "of the same id elsewhere": "hi",
        "of something else": "see you at the station",
    }


def said(
    id: str, text: str, author: Author = MEI, *, kind: FurtherKind = FurtherKind.BEFORE, thread: str | None = None
) -> FurtherMessage:
    return FurtherMessage(id, ROOM.channel, author, text, NOON, kind, thread=thread)


async def read_by(store: Store, asked: Exchange, *messages: FurtherMessage) -> list[str]:
    assert await store.record_context(asked, messages)
    return [each.text for each in (await found(store, asked)).message.further]


async def test_a_clear_of_a_thread_deletes_what_questions_elsewhere_have_read_there(store: Store) -> None:
    of_bot = await answered(store, message("21", "@bot my PIN", channel=THREAD))
    in_thread = said("22", "the thread's secret", thread=THREAD.thread, kind=FurtherKind.LINKED)
    of_question = said("21", "@bot my PIN", kind=FurtherKind.LINKED)
    elsewhere = said("23", "said in the room", kind=FurtherKind.LINKED)
    asked = await begun(store, message(3, author=BEN))
    both = ["said in the room", "the thread's secret"]
    assert sorted(await read_by(store, asked, in_thread, elsewhere, of_question)) == ["@bot my PIN", *both]
    command = replace(message(9, "/clear", channel=THREAD), sent_at=NOON + timedelta(hours=1))
    assert await store.clear(THREAD, await begun(store, command, Kind.COMMAND)) == 1
    assert (await found(store, of_bot)).status is Status.CLEARED
    assert [each.text for each in (await found(store, asked)).message.further] == ["said in the room"]
    later = await begun(store, replace(message(10, author=BEN), sent_at=NOON + timedelta(hours=2)))
    assert await read_by(store, later, in_thread, elsewhere, of_question) == ["said in the room"]


@pytest.mark.parametrize("place", [ROOM, THREAD])
async def test_a_clear_of_ones_own_deletes_what_questions_of_others_have_read(store: Store, place: ChannelKey) -> None:
    mine = said("21", "my address is 5 Hill Road", thread=place.thread)
    of_ben = said("22", "whose address?", BEN, thread=place.thread)
    asked = await begun(store, message(3, author=BEN, channel=place))
    assert len(await read_by(store, asked, mine, of_ben)) == 2
    linking = await begun(store, message(4, author=BEN, channel=ChannelKey("slack", "C2")))
    assert len(await read_by(store, linking, replace(mine, kind=FurtherKind.LINKED))) == 1
    command = replace(message(9, "/clear", channel=place), sent_at=NOON + timedelta(hours=1))
    await store.clear(place, await begun(store, command, Kind.COMMAND), MEI)
    assert [each.text for each in (await found(store, asked)).message.further] == ["whose address?"]
    assert (await found(store, linking)).message.further == ()
    later = await begun(store, replace(message(10, author=BEN, channel=place), sent_at=NOON + timedelta(hours=2)))
    new = replace(mine, id="24", sent_at=NOON + timedelta(hours=2), text="nothing")
    assert sorted(await read_by(store, later, mine, of_ben, new)) == ["nothing", "whose address?"]
    in_another = ChannelKey("slack", "C2")
    other = await begun(store, message(11, author=BEN, channel=in_another))
    assert await read_by(store, other, replace(mine, channel="C2", thread=None)) == ["my address is 5 Hill Road"]


async def test_a_deleted_message_takes_its_quotations_also_without_an_exchange(store: Store) -> None:
    quoting = await begun(store, replace(message(2, "is that so?"), quoted="a secret", quoted_id="1"))
    await store.delete_messages(ROOM, ["1"])
    assert (await found(store, quoting)).message == message(2, "is that so?")
    in_flight = await begun(store, replace(message(3), quoted="a secret", quoted_id="1"))
    assert in_flight.message == message(3)


@pytest.mark.parametrize("is_late", [True, False])
async def test_a_deletion_covers_a_message_that_arrives_before_or_after_it(store: Store, *, is_late: bool) -> None:
    other = await answered(store, message(1, "something else"))
    await store.record_part(other, 0, "m1")
    secret = message(2, "my secret", channel=THREAD)
    if not is_late:
        await begun(store, secret)
    await store.delete_messages(ROOM, ["2"])
    assert await store.enqueue(secret, Kind.CHAT) is None
    assert await store.claim_owed("slack") == []
    assert (await store.find(THREAD, "2")) is not None
    assert await store.find_by_reply(ROOM, "m1") is not None
    assert await texts_before(store, await begun(store, message(3))) == ["something else"]


async def test_a_deletion_before_its_message_counts_only_where_one_may_come(store: Store) -> None:
    await store.delete_messages(ROOM, ["1"])
    await store.delete_messages(ROOM, ["2"], is_expected=True)
    assert await store.enqueue(message(2, "my secret"), Kind.CHAT) is None
    assert not await store.has_history(ROOM)
    assert await store.last_message_ids("slack") == {}
    assert await store.clear(ROOM) == 0
    assert await store.enqueue(message(1), Kind.CHAT) is not None


async def test_an_edit_reaches_the_quotations_of_its_message(store: Store) -> None:
    asked = await answered(store, message(1, "the capital of Frnace"))
    await store.record_part(asked, 0, "m1")
    of_question = await begun(store, replace(message(2), quoted="capital of Frnace", quoted_id="1"))
    of_answer = await begun(store, replace(message(3), quoted="hi", quoted_id="m1", quotes_bot=True))
    assert await store.requeue(asked, "the capital of France") is not None
    assert (await found(store, of_question)).message.quoted == "the capital of France"
    assert (await found(store, of_answer)).message == message(3)
    never_sent_to_us = await begun(store, replace(message(5), quoted="old", quoted_id="4"))
    await store.replace_quotes(THREAD, "4", "new")
    assert (await found(store, never_sent_to_us)).message.quoted == "new"
    await store.replace_quotes(ROOM, "4", "")
    assert (await found(store, never_sent_to_us)).message == message(5)


async def test_a_renamed_channel_keeps_its_history(store: Store) -> None:
    await answered(store, message(1, "in the room"), "hi")
    await answered(store, message(2, "in a thread", channel=THREAD))
    stays = await answered(store, message(1, channel=ChannelKey("slack", "C2")))
    assert await store.rename_channel(ROOM, "C9") == 2
    assert await store.rename_channel(ROOM, "C9") == 0
    now = await begun(store, message(3, channel=replace(ROOM, channel="C9")))
    assert await texts_before(store, now) == ["in the room"]
    in_thread = await begun(store, message(4, channel=replace(THREAD, channel="C9")))
    assert await texts_before(store, in_thread) == ["in a thread"]
    assert not await store.has_history(ROOM)
    assert await found(store, stays) == stays


async def test_messages_of_the_old_channel_differ_from_those_of_the_new_one(store: Store) -> None:
    exchange = await begun(store, message(1))
    await store.record_part(exchange, 0, "m1")
    await store.rename_channel(ROOM, "C9")
    new = replace(ROOM, channel="C9")
    assert await store.find_by_reply(new, "m1") is None
    assert await store.enqueue(message(1, channel=new), Kind.CHAT) is not None
    old = await store.find(new, "C1 1")
    assert old is not None
    assert (old.id, old.message.channel, old.message.id, old.parts) == (exchange.id, new, "C1 1", ("C1 m1",))


async def test_quotations_in_a_renamed_channel_are_of_the_messages_that_they_were_of(store: Store) -> None:
    asked = await answered(store, message(1, "the door code is 7734"))
    await store.record_part(asked, 0, "m1")
    quotes = {
        "of the question": replace(message(2, author=BEN), quoted="(paraphrased)", quoted_id="1"),
        "of the answer": replace(message(3, author=BEN, channel=THREAD), quoted="hi", quoted_id="m1", quotes_bot=True),
        "of something else": replace(message(4, author=BEN), quoted="see you at the station", quoted_id="0"),
    }
    stored = {name: await begun(store, quoting) for name, quoting in quotes.items()}
    await store.rename_channel(ROOM, "C9")
    new = replace(ROOM, channel="C9")

    async def left() -> dict[str, str | None]:
        now = {
            each.id: each.message.quoted
            for place in (new, replace(THREAD, channel="C9"))
            for each in await store.said_in(place, 10)
        }
        return {name: now[exchange.id] for name, exchange in stored.items()}

    await store.replace_quotes(new, "1", "a message of the new channel")
    await store.delete_messages(new, ["m1"])
    assert await left() == {name: quoting.quoted for name, quoting in quotes.items()}
    await store.forget(MEI)
    assert await left() == {
        "of the question": None,
        "of the answer": None,
        "of something else": "see you at the station",
    }


async def test_new_messages_do_not_collide_with_moved_ones(store: Store) -> None:
    moved = await begun(store, message(1))
    await store.rename_channel(ROOM, "C9")
    new = replace(ROOM, channel="C9")
    for id in ("1", "C1/1", "C1:1"):
        assert await store.find(new, id) is None
        assert (await begun(store, replace(message(2), id=id, channel=new))).id != moved.id


async def test_as_many_and_as_long_files_as_config_toml_allows_are_read_again(store: Store) -> None:
    most = next(each.le for each in FilesSection.model_fields["max_chars"].metadata if hasattr(each, "le"))
    text = "line\n" * (most // 5)
    own = [Attachment(f"{number}.txt", text=text) for number in range(MOST_FILES - 1)]
    quoted = Attachment("quoted.txt", text=text, is_quoted=True)
    asked = await begun(store, replace(message(1), quoted="this", quoted_id="0", files=(*own, quoted)))
    assert await store.record_files(asked, [*own, quoted])
    now = (await found(store, asked)).message
    assert (now.files, now.quoted) == (tuple(own), f"this\n\n{quoted.titled_text}")


# Life and death.


async def test_all_data_survives_a_restart(reopened: Reopened) -> None:
    async with reopened() as store:
        exchange = await answered(store, message(1, "你好"))
    async with reopened() as store:
        assert await found(store, exchange) == exchange
        assert (await begun(store, message(2))).id > exchange.id


async def test_a_cancelled_call_is_finished_before_the_store_closes(reopened: Reopened) -> None:
    async with reopened() as store:
        call = asyncio.create_task(store.enqueue(message(1), Kind.CHAT))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    async with reopened() as store:
        assert await store.find(ROOM, "1") is not None


async def test_cancelled_calls_leave_no_lock_and_no_torn_row(store: Store) -> None:
    dice = random.Random(7)

    async def talk(number: int) -> None:
        exchange = await begun(store, message(number))
        await store.record_part(exchange, 0, f"m{number}")
        await store.history(exchange, 3)
        await store.record_answer(exchange, Answer(f"answer {number}", usage=Usage(1, number)))
        await store.claim_owed("slack")
        await store.complete(exchange)

    talks = [asyncio.create_task(talk(number)) for number in range(200)]
    waiting = set(talks)
    while waiting:
        # The calls themselves are the clock: cancel somebody whenever one of them moved on.
        for victim in dice.sample(talks, 3):
            victim.cancel()
        await store.find(ROOM, "1")
        waiting = {talk for talk in waiting if not talk.done()}
    outcomes = await asyncio.gather(*talks, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) > 50

    async with asyncio.timeout(TIMEOUT):
        await begun(store, message("the lock is free"))
    for number in range(200):
        exchange = await store.find(ROOM, str(number))
        if exchange is not None:
            is_answered = exchange.status is not Status.OPEN
            assert exchange.answer == (Answer(f"answer {number}", usage=Usage(1, number)) if is_answered else None)
            assert exchange.parts in {(), (f"m{number}",)}
