"""The front door: what is kept, what is ignored, what is owed."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.config import AccessSection, LimitsSection
from bot.dispatch import Pressed
from bot.domain import Action, Answer, ChannelKey, Delta, Finished, FinishReason, Notice, Status
from tests.house import House, a_house, notice_of, text_of
from tests.messages import MEI, NOON, a_message


async def test_a_message_that_comes_twice_is_accepted_once(house: House) -> None:
    message = a_message("hi")
    await house.accept(message)
    assert await house.dispatcher.accept(message) is None


async def test_what_is_not_for_us_is_not_even_kept(tmp_path: Path) -> None:
    async with a_house(tmp_path, access=AccessSection(deny_users=(MEI.key,))) as house:
        message = a_message("hi")
        assert await house.dispatcher.accept(message) is None
        assert await house.store.find(message.channel, message.id) is None


async def test_an_answer_that_was_not_delivered_is_given_again_without_the_model(tmp_path: Path) -> None:
    async with a_house(tmp_path) as before:
        before.engine.add("a long answer")
        exchange = await before.accept(a_message("hi"))
        async for _ in before.dispatcher.handle(exchange):
            pass  # killed before it was delivered
    async with a_house(tmp_path) as after:
        (owed,) = await after.dispatcher.owed("discord")
        assert text_of(await after.replied(owed)) == "a long answer"
        assert after.engine.requests == []
        assert await after.dispatcher.owed("discord") == []


async def test_an_owed_answer_brings_the_bots_own_words_too(house: House) -> None:
    exchange = await house.accept(a_message("hi"))
    answered = replace(exchange, status=Status.ANSWERED, answer=Answer("part", "Stopped here.", FinishReason.LENGTH))
    house.conversations.dismiss(exchange)
    assert await house.replied(answered) == [Delta("part"), Notice("Stopped here."), Finished(FinishReason.LENGTH)]


async def test_questions_left_open_are_answered_in_their_order(tmp_path: Path) -> None:
    async with a_house(tmp_path) as before:
        for number in range(3):
            await before.accept(a_message(f"question {number}"))
    async with a_house(tmp_path) as after:
        for exchange in await after.dispatcher.owed("discord"):
            await after.replied(exchange)
        asked = [request.messages[-1].content for request in after.engine.requests]
    assert asked == ["question 0", "question 1", "question 2"]


async def test_what_was_asked_meanwhile_is_not_refused_for_being_much(tmp_path: Path) -> None:
    async with a_house(tmp_path, limits=LimitsSection(waiting_per_user=1)) as house:
        for number in range(3):
            await house.dispatcher.keep(a_message(f"question {number}"))
        owed = await house.dispatcher.owed("discord")
        answers = await asyncio.gather(*(house.replied(exchange) for exchange in owed))
        assert [text_of(events) for events in answers] == ["ok"] * 3


async def test_a_retry_that_a_crash_interrupted_is_owed(tmp_path: Path) -> None:
    async with a_house(tmp_path) as before:
        before.engine.add("first")
        await before.ask(a_message("hi"))
        await before.accept(a_message("/retry"))
    async with a_house(tmp_path) as after:
        after.engine.add("second")
        (owed,) = await after.dispatcher.owed("discord")
        assert text_of(await after.replied(owed)) == "second"


async def test_a_refused_question_gets_a_sentence_and_frees_its_place(tmp_path: Path) -> None:
    async with a_house(tmp_path, limits=LimitsSection(requests_per_minute=1)) as house:
        await house.ask(a_message("one"))
        refused = await house.ask(a_message("two"))
        assert "60 s" in notice_of(refused)
        assert refused[-1] == Finished(FinishReason.ERROR)
        house.clock.jump(60)
        await house.ask(a_message("three"))
    assert [request.messages[-1].content for request in house.engine.requests] == ["one", "three"]


async def test_an_empty_message_gets_one_sentence(house: House) -> None:
    assert notice_of(await house.ask(a_message("  \n ")))
    assert house.engine.requests == []


@pytest.mark.parametrize("text", ["a\x00b", "\ud800 hi", "\x1b[2J", "<sop>[gMASK]<eop>", "a\r\nb", "\u202etxt"])
async def test_no_text_is_too_odd_to_be_answered(house: House, text: str) -> None:
    assert text_of(await house.ask(a_message(text))) == "ok"
    house.engine.requests[0].messages[0].content.encode()


@given(text=st.text(max_size=40), name=st.text(max_size=10), quoted=st.none() | st.text(max_size=10))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_message_gets_exactly_one_reply(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str, quoted: str | None
) -> None:
    async with a_house(tmp_path_factory.mktemp("house")) as house:
        events = await house.ask(a_message(text, author=replace(MEI, name=name), quoted=quoted))
        assert [isinstance(event, Finished) for event in events].count(True) == 1
        assert text_of(events) or notice_of(events)
        assert await house.dispatcher.owed("discord") == []


async def test_an_edited_question_is_answered_anew_in_its_place(house: House) -> None:
    house.engine.add("four", "six")
    question = a_message("2 + 2?")
    exchange = await house.accept(question)
    await house.dispatcher.placed(exchange.id, 0, "m1")
    await house.replied(exchange)
    again = await house.dispatcher.edited(replace(question, text="3 + 3?"))
    assert again is not None
    assert (again.id, again.parts) == (exchange.id, ("m1",))
    assert text_of(await house.replied(again)) == "six"
    assert [message.content for message in house.engine.requests[1].messages] == ["3 + 3?"]


async def test_an_edit_while_the_answer_grows_stops_that_first(house: House) -> None:
    house.engine.add(["wrong", asyncio.Event()], "right")
    question = a_message("quesiton")
    growing = asyncio.create_task(house.ask(question))
    await house.engine.asked(1)
    again = await house.dispatcher.edited(replace(question, text="question"))
    await growing
    assert again is not None
    assert text_of(await house.replied(again)) == "right"


async def test_an_edit_that_changes_nothing_or_of_what_is_no_question_is_ignored(house: House) -> None:
    question, command = a_message("hi"), a_message("/help")
    await house.ask(question)
    await house.ask(command)
    assert await house.dispatcher.edited(question) is None
    assert await house.dispatcher.edited(replace(command, text="/clear")) is None
    assert await house.dispatcher.edited(a_message("never seen")) is None


async def test_a_deleted_question_is_forgotten_and_not_answered_on(house: House) -> None:
    house.engine.add(["so", asyncio.Event()])
    question = a_message("forget this")
    growing = asyncio.create_task(house.ask(question))
    await house.engine.asked(1)
    await house.dispatcher.deleted(question.channel, question.id)
    await growing
    kept = await house.store.find(question.channel, question.id)
    assert kept is not None
    assert (kept.status, kept.message.text) == (Status.CLEARED, "")
    await house.dispatcher.deleted(question.channel, "never seen")


async def test_buttons_do_what_they_say_for_whom_they_may(house: House) -> None:
    house.engine.add(["first", asyncio.Event()], "second")
    exchange = await house.accept(a_message("hi"))
    await house.dispatcher.placed(exchange.id, 0, "m1")
    growing = asyncio.create_task(house.replied(exchange))
    await house.engine.asked(1)
    tom = replace(MEI, id="2", name="Tom")
    refused = await house.dispatcher.pressed(exchange.message.channel, "m1", Action.STOP, tom)
    assert "Only the person who asked" in refused.notice
    assert not growing.done()
    assert await house.dispatcher.pressed(exchange.message.channel, "m1", Action.STOP, MEI) == Pressed()
    await growing
    pressed = await house.dispatcher.pressed(exchange.message.channel, "m1", Action.RETRY, MEI)
    assert pressed.again is not None
    assert text_of(await house.replied(pressed.again)) == "second"
    assert await house.dispatcher.pressed(exchange.message.channel, "m2", Action.RETRY, MEI) == Pressed()


async def test_what_is_in_hand_is_not_owed_until_it_is_let_go(house: House) -> None:
    exchange = await house.accept(a_message("hi"))
    await house.dispatcher.keep(a_message("missed"))
    assert [owed.message.text for owed in await house.dispatcher.owed("discord")] == ["missed"]
    house.dispatcher.let_go(exchange)
    assert [owed.id for owed in await house.dispatcher.owed("discord")] == [exchange.id]


async def test_a_channels_threads_share_the_one_notice_after_a_long_time_away(tmp_path: Path) -> None:
    async with a_house(tmp_path) as before:
        for number in range(3):
            await before.dispatcher.keep(a_message(f"{number}", channel=ChannelKey("discord", "c1", f"t{number}")))
    async with a_house(tmp_path, today=NOON + timedelta(hours=2)) as after:
        assert [exchange.message.text for exchange in await after.dispatcher.owed("discord")] == ["2"]


async def test_after_a_long_time_away_each_channel_gets_one_notice(tmp_path: Path) -> None:
    elsewhere = ChannelKey("discord", "c2")
    async with a_house(tmp_path) as before:
        for text in ("one", "two", "three"):
            await before.dispatcher.keep(a_message(text))
        await before.dispatcher.keep(a_message("other", channel=elsewhere))
        begun = await before.accept(a_message("with a placeholder", channel=elsewhere))
        await before.dispatcher.placed(begun.id, 0, "m1")
        await before.dispatcher.keep(a_message("other again", channel=elsewhere))
        await before.dispatcher.keep(replace(a_message("fresh"), sent_at=NOON + timedelta(hours=2)))
    async with a_house(tmp_path, today=NOON + timedelta(hours=2)) as after:
        owed = await after.dispatcher.owed("discord")
        texts = [exchange.message.text for exchange in owed]
        assert texts == ["three", "with a placeholder", "other again", "fresh"]
        for late in (owed[0], owed[2]):
            assert "I was away" in notice_of(await after.replied(late))
        for expected in (owed[1], owed[3]):
            assert text_of(await after.replied(expected)) == "ok"
        assert len(after.engine.requests) == 2
        assert await after.dispatcher.owed("discord") == []


async def test_an_edit_that_is_refused_keeps_the_answer_and_says_why(house: House) -> None:
    house.engine.add("four")
    question = a_message("2 + 2? my pin is 1234")
    exchange = await house.accept(question)
    await house.replied(exchange)
    house.access.pause()
    refused = await house.dispatcher.edited(replace(question, text="2 + 2?"))
    assert refused is not None
    events = await house.replied(refused)
    assert text_of(events) == "four"
    assert "I am paused" in notice_of(events)
    kept = await house.kept(exchange)
    assert (kept.status, kept.message.text) == (Status.DELIVERED, "2 + 2?")
    assert kept.answer is not None
    assert kept.answer.text == "four"
    house.access.resume()
    await house.ask(a_message("and then?"))
    assert [message.content for message in house.engine.requests[1].messages] == ["2 + 2?", "four", "and then?"]


async def test_an_edit_that_is_refused_while_the_answer_grows_is_refused_like_a_new_question(house: House) -> None:
    house.engine.add(["wrong", asyncio.Event()])
    question = a_message("quesiton")
    growing = asyncio.create_task(house.ask(question))
    await house.engine.asked(1)
    house.access.pause()
    refused = await house.dispatcher.edited(replace(question, text="question"))
    await growing
    assert refused is not None
    events = await house.replied(refused)
    assert text_of(events) == ""
    assert "I am paused" in notice_of(events)


async def test_an_edit_counts_as_one_question(tmp_path: Path) -> None:
    async with a_house(tmp_path, limits=LimitsSection(requests_per_minute=3)) as house:
        question = a_message("one")
        await house.ask(question)
        for text, answer in (("two", "ok"), ("three", "ok"), ("four", "ok")):
            again = await house.dispatcher.edited(replace(question, text=text))
            assert again is not None
            events = await house.replied(again)
            assert text_of(events) == answer
        assert "You have asked a lot" in notice_of(events)
    assert len(house.engine.requests) == 3
