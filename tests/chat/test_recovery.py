"""Recovery after downtime: each owed exchange is answered once, in order."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from bot.chat.intake import ButtonResult
from bot.domain import Action, Exchange, IncomingMessage, Status
from bot.errors import StoreError
from tests.harness.harness import Harness, make_harness, notice_of, set_paused, text_of
from tests.harness.messages import CHANNEL, MEI, NOON, a_message
from tests.harness.platform import TIMEOUT


async def owed(harness: Harness) -> list[Exchange]:
    """Ask for it, and fail instead of waiting for ever."""
    async with asyncio.timeout(TIMEOUT):
        return await harness.intake.recover("discord")


async def said_while_away(harness: Harness, *texts: str) -> list[IncomingMessage]:
    messages = [a_message(text) for text in texts]
    for message in messages:
        await harness.intake.store(message)
    return messages


async def status(harness: Harness, message: IncomingMessage) -> Status:
    kept = await harness.store.find(message.channel, message.id)
    assert kept is not None
    return kept.status


async def test_a_retry_of_a_question_that_is_owed_itself_waits_for_nothing(harness: Harness) -> None:
    _, retry = await said_while_away(harness, "question", "/retry")
    (exchange,) = await owed(harness)
    assert exchange.message.text == "question"
    assert text_of(await harness.replied(exchange)) == "ok"
    assert await status(harness, retry) is Status.DELIVERED
    assert await owed(harness) == []


async def test_a_command_without_a_slash_is_still_one_after_a_restart(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as harness:
        await said_while_away(harness, "question", "Retry", "status")
    async with make_harness(tmp_path) as harness:
        question, status = await owed(harness)
        assert text_of(await harness.replied(question)) == "ok"
        assert "Model:" in notice_of(await harness.replied(status))


async def test_a_question_after_a_retry_is_owed_once(harness: Harness) -> None:
    retry, _ = await said_while_away(harness, "/retry", "question")
    assert [exchange.message.text for exchange in await owed(harness)] == ["question"]
    assert await status(harness, retry) is Status.DELIVERED


async def test_two_retries_answer_an_old_question_once(harness: Harness) -> None:
    harness.engine.add("first", "second")
    await harness.ask(a_message("question"))
    await said_while_away(harness, "/retry", "/retry")
    (exchange,) = await owed(harness)
    assert text_of(await harness.replied(exchange)) == "second"
    assert await owed(harness) == []
    assert text_of(await harness.ask(a_message("the next one"))) == "ok"


async def test_a_retry_with_nothing_to_retry_says_so(harness: Harness) -> None:
    await said_while_away(harness, "/retry")
    (exchange,) = await owed(harness)
    assert notice_of(await harness.replied(exchange))


async def test_a_retry_after_a_long_time_away_brings_the_late_question_back(tmp_path: Path) -> None:
    later = NOON + timedelta(hours=2)
    async with make_harness(tmp_path, today=later) as harness:
        await said_while_away(harness, "question")
        await harness.intake.store(replace(a_message("/retry"), sent_at=later))
        (exchange,) = await owed(harness)
        assert text_of(await harness.replied(exchange)) == "ok"


async def test_a_refused_retry_keeps_the_old_answer_and_gives_the_reason(harness: Harness) -> None:
    harness.engine.add("a good answer")
    question = a_message("question")
    await harness.ask(question)
    await said_while_away(harness, "/retry")
    set_paused(harness.access)
    (exchange,) = await owed(harness)
    assert "paused" in notice_of(await harness.replied(exchange))
    kept = await harness.store.find(CHANNEL, question.id)
    assert kept is not None
    assert kept.answer is not None
    assert kept.answer.text == "a good answer"


async def test_a_retry_of_an_answer_that_is_still_shown_is_owed(harness: Harness) -> None:
    shown = await harness.accept(a_message("question"))
    await harness.events(shown)  # kept, and not delivered yet
    await said_while_away(harness, "/retry")
    (exchange,) = await owed(harness)
    assert (exchange.id, exchange.answer) == (shown.id, None)


async def test_an_edit_while_others_may_be_missing_waits_for_its_place(harness: Harness) -> None:
    _, second = await said_while_away(harness, "first", "secnod")
    await harness.intake.store_edit(replace(second, text="second"))
    await harness.intake.store_edit(replace(second, text="second"))  # which changes nothing
    assert [exchange.message.text for exchange in await owed(harness)] == ["first", "second"]


async def test_an_edit_during_an_answer_is_owed(harness: Harness) -> None:
    harness.engine.add(["wrong", asyncio.Event()], "right")
    question = a_message("quesiton")
    growing = asyncio.create_task(harness.ask(question))
    await harness.engine.asked(1)
    await harness.intake.store_edit(replace(question, text="question"))
    await growing
    (exchange,) = await owed(harness)
    assert text_of(await harness.replied(exchange)) == "right"


async def test_an_old_question_that_was_edited_just_now_is_not_late(tmp_path: Path) -> None:
    async with make_harness(tmp_path, today=NOON + timedelta(hours=2)) as harness:
        question = a_message("quesiton")
        await harness.ask(question)
        await harness.intake.store_edit(replace(question, text="question"))
        (exchange,) = await owed(harness)
        assert text_of(await harness.replied(exchange)) == "ok"


async def test_an_edit_stored_despite_a_reported_failure_is_answered_on_the_next_attempt(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = a_message("quesiton")
    await harness.ask(question)
    shield = harness.store._shield

    async def losing_the_acknowledgement(name: str, work: Coroutine[Any, Any, object]) -> object:
        result = await shield(name, work)
        if name == "requeue":
            raise StoreError("the connection was lost")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(harness.store, "_shield", losing_the_acknowledgement)
        with pytest.raises(StoreError):
            await harness.intake.edit(replace(question, text="question"))
    again = await harness.intake.edit(replace(question, text="question"))
    assert again is not None
    assert text_of(await harness.replied(again)) == "ok"
    assert await harness.intake.edit(replace(question, text="question")) is None


@pytest.mark.parametrize("is_edit", [False, True], ids=["retry", "edit"])
async def test_an_old_question_requeued_before_a_crash_is_answered(tmp_path: Path, *, is_edit: bool) -> None:
    question = a_message("what is it?")
    async with make_harness(tmp_path, today=NOON + timedelta(hours=2)) as harness:
        exchange = await harness.accept(question)
        await harness.record_part(exchange, 0, "m1")
        await harness.replied(exchange)
        if is_edit:
            assert await harness.intake.edit(replace(question, text="what is that?"))
        else:
            assert (await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI)).again
    async with make_harness(tmp_path, today=NOON + timedelta(hours=2)) as harness:
        (exchange,) = await owed(harness)
        assert text_of(await harness.replied(exchange)) == "ok"


async def test_a_retry_pressed_while_others_may_be_missing_waits_for_its_place(harness: Harness) -> None:
    await said_while_away(harness, "first")
    second = await harness.accept(a_message("second"))
    await harness.record_part(second, 0, "m1")
    await harness.replied(second)
    harness.exchanges.release(second)
    pressed = await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI, later=True)
    assert pressed == ButtonResult()
    assert [exchange.message.text for exchange in await owed(harness)] == ["first", "second"]


@pytest.mark.parametrize(("sent_ago", "is_answered"), [(1, True), (90, False)])
async def test_a_host_clock_that_is_ahead_makes_no_question_too_old(
    tmp_path: Path, sent_ago: int, is_answered: bool
) -> None:
    async with make_harness(tmp_path, today=NOON + timedelta(hours=3)) as harness:
        harness.intake.recovery.saw_date("discord", format_datetime(NOON, usegmt=True))
        await harness.intake.store(replace(a_message("question"), sent_at=NOON - timedelta(minutes=sent_ago)))
        (exchange,) = await owed(harness)
        assert bool(text_of(await harness.replied(exchange))) == is_answered


async def test_a_date_that_is_none_changes_nothing(tmp_path: Path) -> None:
    async with make_harness(tmp_path, today=NOON + timedelta(hours=3)) as harness:
        for date in ("", "soon", "Fri, 99 Nov 2026 12:00:00 GMT"):
            harness.intake.recovery.saw_date("discord", date)
        await said_while_away(harness, "question")
        (exchange,) = await owed(harness)
        assert "offline" in notice_of(await harness.replied(exchange))
