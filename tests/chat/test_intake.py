"""The front door: what is kept, what is ignored, what is owed."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.chat.intake import ButtonResult
from bot.config.schema import AccessSection, LimitsSection
from bot.domain import Action, Answer, ChannelKey, Delta, Exchange, Finished, FinishReason, Notice, Status
from tests.harness.harness import Harness, make_harness, notice_of, set_paused, text_of
from tests.harness.messages import MEI, NOON, a_message

TOM = replace(MEI, id="2", name="Tom")


async def test_a_message_that_comes_twice_is_accepted_once(harness: Harness) -> None:
    message = a_message("hi")
    await harness.accept(message)
    assert await harness.intake.accept(message) is None


async def test_a_message_for_others_is_not_stored(tmp_path: Path) -> None:
    async with make_harness(tmp_path, access=AccessSection(deny_users=(MEI.key,))) as harness:
        message = a_message("hi")
        assert await harness.intake.accept(message) is None
        assert await harness.store.find(message.channel, message.id) is None


async def test_an_undelivered_answer_is_delivered_without_the_model(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as before:
        before.engine.add("a long answer")
        exchange = await before.accept(a_message("hi"))
        await before.events(exchange)  # killed before it was delivered
    async with make_harness(tmp_path) as after:
        (owed,) = await after.intake.recover("discord")
        assert text_of(await after.replied(owed)) == "a long answer"
        assert after.engine.requests == []
        assert await after.intake.recover("discord") == []


async def test_an_owed_answer_includes_its_notices(harness: Harness) -> None:
    exchange = await harness.accept(a_message("hi"))
    answered = await harness.exchanges.answer_with(exchange, Answer("part", "Stopped here.", FinishReason.LENGTH))
    assert await harness.replied(answered) == [Delta("part"), Notice("Stopped here."), Finished(FinishReason.LENGTH)]


async def test_questions_left_open_are_answered_in_their_order(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as before:
        for number in range(3):
            await before.accept(a_message(f"question {number}"))
    async with make_harness(tmp_path) as after:
        for exchange in await after.intake.recover("discord"):
            await after.replied(exchange)
        asked = [request.messages[-1].content for request in after.engine.requests]
    assert asked == ["question 0", "question 1", "question 2"]


async def test_backlog_messages_are_exempt_from_the_waiting_limit(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=LimitsSection(waiting_per_user=1)) as harness:
        for number in range(3):
            await harness.intake.store(a_message(f"question {number}"))
        owed = await harness.intake.recover("discord")
        answers = await asyncio.gather(*(harness.replied(exchange) for exchange in owed))
        assert [text_of(events) for events in answers] == ["ok"] * 3


async def test_a_retry_that_a_crash_interrupted_is_owed(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as before:
        before.engine.add("first")
        await before.ask(a_message("hi"))
        await before.accept(a_message("/retry"))
    async with make_harness(tmp_path) as after:
        after.engine.add("second")
        (owed,) = await after.intake.recover("discord")
        assert text_of(await after.replied(owed)) == "second"


async def test_a_refused_question_gets_a_sentence_and_frees_its_place(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=LimitsSection(requests_per_minute=1)) as harness:
        await harness.ask(a_message("one"))
        refused = await harness.ask(a_message("two"))
        assert "60 s" in notice_of(refused)
        assert refused[-1] == Finished(FinishReason.ERROR)
        harness.clock.jump(60)
        await harness.ask(a_message("three"))
    assert [request.messages[-1].content for request in harness.engine.requests] == ["one", "three"]


async def test_an_empty_message_gets_one_sentence(harness: Harness) -> None:
    assert notice_of(await harness.ask(a_message("  \n ")))
    assert harness.engine.requests == []


@pytest.mark.parametrize("text", ["a\x00b", "\ud800 hi", "\x1b[2J", "<sop>[gMASK]<eop>", "a\r\nb", "\u202etxt"])
async def test_any_text_is_answered(harness: Harness, text: str) -> None:
    assert text_of(await harness.ask(a_message(text))) == "ok"
    harness.engine.requests[0].messages[0].content.encode()


@given(text=st.text(max_size=40), name=st.text(max_size=10), quoted=st.none() | st.text(max_size=10))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_message_gets_exactly_one_reply(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str, quoted: str | None
) -> None:
    async with make_harness(tmp_path_factory.mktemp("harness")) as harness:
        events = await harness.ask(a_message(text, author=replace(MEI, name=name), quoted=quoted))
        assert [isinstance(event, Finished) for event in events].count(True) == 1
        assert text_of(events) or notice_of(events)
        assert await harness.intake.recover("discord") == []


async def test_an_edited_question_gets_a_new_answer_in_the_same_reply(harness: Harness) -> None:
    harness.engine.add("four", "six")
    question = a_message("2 + 2?")
    exchange = await harness.accept(question)
    await harness.record_part(exchange, 0, "m1")
    await harness.replied(exchange)
    again = await harness.intake.edit(replace(question, text="3 + 3?"))
    assert again is not None
    assert (again.id, again.parts) == (exchange.id, ("m1",))
    assert text_of(await harness.replied(again)) == "six"
    assert [message.content for message in harness.engine.requests[1].messages] == ["3 + 3?"]


async def test_an_edit_during_the_answer_stops_it_first(harness: Harness) -> None:
    harness.engine.add(["wrong", asyncio.Event()], "right")
    question = a_message("quesiton")
    growing = asyncio.create_task(harness.ask(question))
    await harness.engine.asked(1)
    again = await harness.intake.edit(replace(question, text="question"))
    await growing
    assert again is not None
    assert text_of(await harness.replied(again)) == "right"


async def test_an_edit_without_a_change_or_of_an_unknown_message_is_ignored(harness: Harness) -> None:
    question, command = a_message("hi"), a_message("/help")
    await harness.ask(question)
    await harness.ask(command)
    assert await harness.intake.edit(question) is None
    assert await harness.intake.edit(command) is None
    assert await harness.intake.edit(a_message("never seen")) is None


async def test_a_deleted_question_is_erased_and_its_answer_stopped(harness: Harness) -> None:
    harness.engine.add(["so", asyncio.Event()])
    question = a_message("forget this")
    growing = asyncio.create_task(harness.ask(question))
    await harness.engine.asked(1)
    await harness.intake.delete(question.channel, question.id)
    await growing
    kept = await harness.store.find(question.channel, question.id)
    assert kept is not None
    assert (kept.status, kept.message.text) == (Status.CLEARED, "")
    await harness.intake.delete(question.channel, "never seen")


@pytest.mark.parametrize(
    ("locale", "words"), [("en-GB", "Only the person who asked"), ("zh-TW", "只有提问者"), (None, "只有")]
)
async def test_a_refused_button_speaks_the_language_of_its_presser(
    harness: Harness, locale: str | None, words: str
) -> None:
    exchange = await harness.accept(a_message("你好", locale="zh-CN"))
    await harness.record_part(exchange, 0, "m1")
    refused = await harness.intake.on_button(exchange.message.channel, "m1", Action.STOP, TOM, locale=locale)
    assert refused.notice.startswith(words)


async def test_an_admin_who_asks_again_reads_why_not(tmp_path: Path) -> None:
    async with make_harness(tmp_path, access=AccessSection(admins=(TOM.key,))) as harness:
        exchange = await harness.accept(a_message("你好", locale="zh-CN"))
        await harness.record_part(exchange, 0, "m1")
        await harness.replied(exchange)
        set_paused(harness.access)
        refused = await harness.intake.on_button(exchange.message.channel, "m1", Action.RETRY, TOM, locale="en-US")
        assert refused.notice == "An admin has paused me. Please ask again later."


async def test_buttons_work_for_permitted_users(harness: Harness) -> None:
    harness.engine.add(["first", asyncio.Event()], "second")
    exchange = await harness.accept(a_message("hi"))
    await harness.record_part(exchange, 0, "m1")
    growing = asyncio.create_task(harness.replied(exchange))
    await harness.engine.asked(1)
    refused = await harness.intake.on_button(exchange.message.channel, "m1", Action.STOP, TOM)
    assert "Only the person who asked" in refused.notice
    assert not growing.done()
    assert await harness.intake.on_button(exchange.message.channel, "m1", Action.STOP, MEI) == ButtonResult()
    await growing
    pressed = await harness.intake.on_button(exchange.message.channel, "m1", Action.RETRY, MEI)
    assert pressed.again is not None
    assert text_of(await harness.replied(pressed.again)) == "second"
    assert await harness.intake.on_button(exchange.message.channel, "m2", Action.RETRY, MEI) == ButtonResult()


async def test_a_claimed_exchange_is_not_owed_until_its_release(harness: Harness) -> None:
    exchange = await harness.accept(a_message("hi"))
    await harness.intake.store(a_message("missed"))
    assert [owed.message.text for owed in await harness.intake.recover("discord")] == ["missed"]
    harness.exchanges.release(exchange)
    assert [owed.id for owed in await harness.intake.recover("discord")] == [exchange.id]


async def test_a_channels_threads_share_the_one_notice_after_a_long_time_away(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as before:
        for number in range(3):
            await before.intake.store(a_message(f"{number}", channel=ChannelKey("discord", "c1", f"t{number}")))
    async with make_harness(tmp_path, today=NOON + timedelta(hours=2)) as after:
        assert [exchange.message.text for exchange in await after.intake.recover("discord")] == ["2"]


async def test_after_a_long_time_away_each_channel_gets_one_notice(tmp_path: Path) -> None:
    elsewhere = ChannelKey("discord", "c2")
    async with make_harness(tmp_path) as before:
        for text in ("one", "two", "three"):
            await before.intake.store(a_message(text))
        await before.intake.store(a_message("other", channel=elsewhere))
        begun = await before.accept(a_message("with a placeholder", channel=elsewhere))
        await before.record_part(begun, 0, "m1")
        await before.intake.store(a_message("other again", channel=elsewhere))
        await before.intake.store(replace(a_message("fresh"), sent_at=NOON + timedelta(hours=2)))
    async with make_harness(tmp_path, today=NOON + timedelta(hours=2)) as after:
        owed = await after.intake.recover("discord")
        texts = [exchange.message.text for exchange in owed]
        assert texts == ["three", "with a placeholder", "other again", "fresh"]
        for late in (owed[0], owed[2]):
            assert "I was offline" in notice_of(await after.replied(late))
        for expected in (owed[1], owed[3]):
            assert text_of(await after.replied(expected)) == "ok"
        assert len(after.engine.requests) == 2
        assert await after.intake.recover("discord") == []


async def test_a_refused_edit_keeps_the_answer_and_gives_the_reason(harness: Harness) -> None:
    harness.engine.add("four")
    question = a_message("2 + 2? my pin is 1234")
    exchange = await harness.accept(question)
    await harness.replied(exchange)
    set_paused(harness.access)
    refused = await harness.intake.edit(replace(question, text="2 + 2?"))
    assert refused is not None
    events = await harness.replied(refused)
    assert text_of(events) == "four"
    assert "An admin has paused me" in notice_of(events)
    kept = await harness.stored(exchange)
    assert (kept.status, kept.message.text) == (Status.DELIVERED, "2 + 2?")
    assert kept.answer is not None
    assert kept.answer.text == "four"
    set_paused(harness.access, is_paused=False)
    await harness.ask(a_message("and then?"))
    assert [message.content for message in harness.engine.requests[1].messages] == ["2 + 2?", "four", "and then?"]


async def test_an_edit_refused_during_the_answer_is_refused_like_a_new_question(harness: Harness) -> None:
    harness.engine.add(["wrong", asyncio.Event()])
    question = a_message("quesiton")
    growing = asyncio.create_task(harness.ask(question))
    await harness.engine.asked(1)
    set_paused(harness.access)
    refused = await harness.intake.edit(replace(question, text="question"))
    await growing
    assert refused is not None
    events = await harness.replied(refused)
    assert text_of(events) == ""
    assert "An admin has paused me" in notice_of(events)


async def test_an_edit_counts_as_one_question(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=LimitsSection(requests_per_minute=3)) as harness:
        question = a_message("one")
        await harness.ask(question)
        for text, answer in (("two", "ok"), ("three", "ok"), ("four", "ok")):
            again = await harness.intake.edit(replace(question, text=text))
            assert again is not None
            events = await harness.replied(again)
            assert text_of(events) == answer
        assert "You are asking too fast" in notice_of(events)
    assert len(harness.engine.requests) == 3


async def test_a_refused_edit_of_a_question_that_is_cleared_meanwhile_is_dropped(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = a_message("question")
    await harness.ask(question)
    set_paused(harness.access)
    requeue = harness.store.requeue

    async def cleared_meanwhile(exchange: Exchange, text: str | None = None, *_: object) -> Exchange | None:
        requeued = await requeue(exchange, text)
        await harness.store.clear(exchange.message.channel)
        return requeued

    monkeypatch.setattr(harness.store, "requeue", cleared_meanwhile)
    assert await harness.intake.edit(replace(question, text="another question")) is None
    assert harness.exchanges.queues.in_channel(question.channel) == []
