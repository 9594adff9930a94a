"""The front door: what is kept, what is ignored, what is owed."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.config import AccessSection, LimitsSection
from bot.domain import Answer, Delta, Finished, FinishReason, Notice, Status
from tests.house import House, a_house, notice_of, text_of
from tests.messages import MEI, a_message


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
