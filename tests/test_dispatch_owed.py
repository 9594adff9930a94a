"""What is owed after a time away: each exchange once, and nobody waits for what only comes afterwards."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bot.dispatch import Pressed
from bot.domain import Action, Exchange, IncomingMessage, Status
from bot.errors import StoreError
from tests.house import House, a_house, notice_of, text_of
from tests.messages import CHANNEL, MEI, NOON, a_message


async def owed(house: House) -> list[Exchange]:
    """Ask for it, and fail instead of waiting for ever."""
    async with asyncio.timeout(5):
        return await house.dispatcher.owed("discord")


async def said_while_away(house: House, *texts: str) -> list[IncomingMessage]:
    messages = [a_message(text) for text in texts]
    for message in messages:
        await house.dispatcher.keep(message)
    return messages


async def status(house: House, message: IncomingMessage) -> Status:
    kept = await house.store.find(message.channel, message.id)
    assert kept is not None
    return kept.status


async def test_a_retry_of_a_question_that_is_owed_itself_waits_for_nothing(house: House) -> None:
    _, retry = await said_while_away(house, "question", "/retry")
    (exchange,) = await owed(house)
    assert exchange.message.text == "question"
    assert text_of(await house.replied(exchange)) == "ok"
    assert await status(house, retry) is Status.DELIVERED
    assert await owed(house) == []


async def test_a_question_after_a_retry_is_owed_once(house: House) -> None:
    retry, _ = await said_while_away(house, "/retry", "question")
    assert [exchange.message.text for exchange in await owed(house)] == ["question"]
    assert await status(house, retry) is Status.DELIVERED


async def test_two_retries_have_an_old_question_answered_anew_once(house: House) -> None:
    house.engine.add("first", "second")
    await house.ask(a_message("question"))
    await said_while_away(house, "/retry", "/retry")
    (exchange,) = await owed(house)
    assert text_of(await house.replied(exchange)) == "second"
    assert await owed(house) == []
    assert text_of(await house.ask(a_message("the next one"))) == "ok"


async def test_a_retry_with_nothing_to_retry_says_so(house: House) -> None:
    await said_while_away(house, "/retry")
    (exchange,) = await owed(house)
    assert notice_of(await house.replied(exchange))


async def test_a_retry_after_a_long_time_away_brings_the_late_question_back(tmp_path: Path) -> None:
    later = NOON + timedelta(hours=2)
    async with a_house(tmp_path, today=later) as house:
        await said_while_away(house, "question")
        await house.dispatcher.keep(replace(a_message("/retry"), sent_at=later))
        (exchange,) = await owed(house)
        assert text_of(await house.replied(exchange)) == "ok"


async def test_a_retry_that_is_refused_is_told_and_the_old_answer_stays(house: House) -> None:
    house.engine.add("a good answer")
    question = a_message("question")
    await house.ask(question)
    await said_while_away(house, "/retry")
    house.access.pause()
    (exchange,) = await owed(house)
    assert "paused" in notice_of(await house.replied(exchange))
    kept = await house.store.find(CHANNEL, question.id)
    assert kept is not None
    assert kept.answer is not None
    assert kept.answer.text == "a good answer"


async def test_a_retry_of_an_answer_that_is_still_shown_is_owed(house: House) -> None:
    shown = await house.accept(a_message("question"))
    async for _ in house.dispatcher.handle(shown):
        pass  # kept, and not delivered yet
    await said_while_away(house, "/retry")
    (exchange,) = await owed(house)
    assert (exchange.id, exchange.answer) == (shown.id, None)


async def test_an_edit_while_others_may_be_missing_waits_for_its_place(house: House) -> None:
    _, second = await said_while_away(house, "first", "secnod")
    await house.dispatcher.keep_edit(replace(second, text="second"))
    await house.dispatcher.keep_edit(replace(second, text="second"))  # which changes nothing
    assert [exchange.message.text for exchange in await owed(house)] == ["first", "second"]


async def test_an_edit_of_an_answer_that_still_grows_is_owed_too(house: House) -> None:
    house.engine.add(["wrong", asyncio.Event()], "right")
    question = a_message("quesiton")
    growing = asyncio.create_task(house.ask(question))
    await house.engine.asked(1)
    await house.dispatcher.keep_edit(replace(question, text="question"))
    await growing
    (exchange,) = await owed(house)
    assert text_of(await house.replied(exchange)) == "right"


async def test_an_old_question_that_was_edited_just_now_is_not_late(tmp_path: Path) -> None:
    async with a_house(tmp_path, today=NOON + timedelta(hours=2)) as house:
        question = a_message("quesiton")
        await house.ask(question)
        await house.dispatcher.keep_edit(replace(question, text="question"))
        (exchange,) = await owed(house)
        assert text_of(await house.replied(exchange)) == "ok"


async def test_an_edit_that_was_written_down_and_told_to_have_failed_is_answered_by_the_next_try(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = a_message("quesiton")
    await house.ask(question)
    reopen = house.store.reopen

    async def losing_the_answer(exchange: int, text: str | None = None) -> Exchange | None:
        await reopen(exchange, text)
        raise StoreError("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(house.store, "reopen", losing_the_answer)
        with pytest.raises(StoreError):
            await house.dispatcher.edited(replace(question, text="question"))
    again = await house.dispatcher.edited(replace(question, text="question"))
    assert again is not None
    assert text_of(await house.replied(again)) == "ok"
    assert await house.dispatcher.edited(replace(question, text="question")) is None


@pytest.mark.parametrize("is_edit", [False, True], ids=["retry", "edit"])
async def test_an_old_question_that_was_to_be_answered_anew_before_a_crash_is(tmp_path: Path, *, is_edit: bool) -> None:
    question = a_message("what is it?")
    async with a_house(tmp_path, today=NOON + timedelta(hours=2)) as house:
        exchange = await house.accept(question)
        await house.dispatcher.placed(exchange.id, 0, "m1")
        await house.replied(exchange)
        if is_edit:
            assert await house.dispatcher.edited(replace(question, text="what is that?"))
        else:
            assert (await house.dispatcher.pressed(CHANNEL, "m1", Action.RETRY, MEI)).again
    async with a_house(tmp_path, today=NOON + timedelta(hours=2)) as house:
        (exchange,) = await owed(house)
        assert text_of(await house.replied(exchange)) == "ok"


async def test_a_retry_pressed_while_others_may_be_missing_waits_for_its_place(house: House) -> None:
    await said_while_away(house, "first")
    second = await house.accept(a_message("second"))
    await house.dispatcher.placed(second.id, 0, "m1")
    await house.replied(second)
    house.dispatcher.let_go(second)
    pressed = await house.dispatcher.pressed(CHANNEL, "m1", Action.RETRY, MEI, later=True)
    assert pressed == Pressed()
    assert [exchange.message.text for exchange in await owed(house)] == ["first", "second"]
