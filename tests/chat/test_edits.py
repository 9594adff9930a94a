"""Edits: of questions, of commands, of what others quote, and those whose acknowledgement is lost."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bot.chat.standing import OwnMessage, StandingReply
from bot.chat.worker import Worker
from bot.config.schema import AccessSection
from bot.domain import Action, Author, Exchange, IncomingMessage, Part, Status
from bot.errors import ClaimLost, StoreError
from tests.harness.harness import Harness, make_harness, notice_of, text_of
from tests.harness.messages import a_message
from tests.harness.platform import TIMEOUT
from tests.storage import bytes_in

BEN = Author("discord", "2", "Ben")


async def edited(harness: Harness, message: IncomingMessage, text: str) -> Exchange:
    again = await harness.intake.edit(replace(message, text=text))
    assert again is not None, "the edit was ignored"
    return again


async def test_an_edit_that_newly_calls_the_bot_is_a_question(harness: Harness) -> None:
    message = a_message("what is 2 + 2?")
    assert await harness.intake.edit(message) is None
    assert text_of(await harness.ask(message)) == "ok"
    assert await harness.intake.edit(message) is None, "the same edit is delivered twice"
    assert await harness.intake.accept(message) is None


async def test_an_edit_takes_the_old_words_out_of_prompt_and_file(harness: Harness, tmp_path: Path) -> None:
    secret = a_message("my door code is 7734")
    await harness.ask(secret)
    await harness.replied(await edited(harness, secret, "never mind"))
    await harness.ask(a_message("what did I say?"))
    assert [each.content for each in harness.engine.requests[-1].messages] == ["never mind", "ok", "what did I say?"]
    assert b"7734" not in bytes_in(tmp_path)


async def test_an_edit_to_no_text_drops_the_answer_too_and_can_be_edited_again(
    harness: Harness, tmp_path: Path
) -> None:
    harness.engine.add("Your door code is 7734.")
    secret = a_message("my door code is 7734")
    await harness.ask(secret)
    assert "there was none" in notice_of(await harness.replied(await edited(harness, secret, "")))
    await harness.ask(a_message("what did I say?"))
    assert [each.content for each in harness.engine.requests[-1].messages] == ["what did I say?"]
    assert text_of(await harness.replied(await edited(harness, secret, "hello"))) == "ok"
    assert b"7734" not in bytes_in(tmp_path)


async def test_a_command_edited_into_a_question_is_answered_in_the_same_reply(harness: Harness) -> None:
    command = a_message("/hlep")
    exchange = await harness.accept(command)
    await harness.record_part(exchange, 0, "m1")
    await harness.replied(exchange)
    again = await edited(harness, command, "how do I get help?")
    assert (again.id, again.parts) == (exchange.id, ("m1",))
    assert text_of(await harness.replied(again)) == "ok"


async def test_an_edit_carries_out_no_command(harness: Harness) -> None:
    await harness.ask(a_message("remember this"))
    question = a_message("clear skies today?")
    await harness.ask(question)
    assert "new messages only" in notice_of(await harness.replied(await edited(harness, question, "/clear")))
    assert "new messages only" in notice_of(await harness.replied(await edited(harness, question, "/forget me")))
    assert "new messages only" in notice_of(await harness.replied(await edited(harness, question, "Stop")))
    await harness.ask(a_message("what do you remember?"))
    assert len(harness.engine.requests[-1].messages) == 3


async def test_an_edit_to_a_word_of_small_talk_is_answered(tmp_path: Path) -> None:
    talk = replace(a_message("claer", is_direct=False), is_addressed=False)
    async with make_harness(tmp_path) as harness:
        await harness.ask(talk)
        await edited(harness, talk, "clear")  # killed before it is answered
    async with make_harness(tmp_path) as harness:
        (owed,) = await harness.intake.recover("discord")
        assert text_of(await harness.replied(owed)) == "ok"


@pytest.mark.parametrize("is_missed", [False, True], ids=["while connected", "while disconnected"])
async def test_an_edit_by_an_author_who_is_denied_since_deletes_the_old_words(tmp_path: Path, is_missed: bool) -> None:
    async with make_harness(tmp_path) as harness:
        secret = a_message("my door code is 7734")
        exchange = await harness.accept(secret)
        await harness.replied(exchange)
        harness.access.reconfigure(AccessSection(deny_users=("discord:1",)), harness.access.limits)
        edited = replace(secret, text="nothing")
        if is_missed:
            await harness.intake.store_change(await harness.stored(exchange), edited, None)
        else:
            assert await harness.intake.edit(edited) is None
        assert (await harness.stored(exchange)).status is Status.CLEARED
    assert b"7734" not in bytes_in(tmp_path)


async def test_an_edit_of_a_message_that_is_quoted_reaches_the_waiting_question(harness: Harness) -> None:
    harness.engine.go_on.clear()
    asked = asyncio.create_task(
        harness.ask(a_message("what is it?", quoted="the capital of Frnace", quoted_id="b1", author=BEN))
    )
    await harness.engine.asked(1)
    assert await harness.intake.edit(a_message("the capital of France", id="b1")) is None
    await harness.engine.asked(2)
    harness.engine.go_on.set()
    assert text_of(await asked) == "ok"
    assert harness.engine.requests[-1].messages[-1].content == "> the capital of France\n\nwhat is it?"
    assert harness.engine.closed == harness.engine.requests[:1]


async def test_an_edit_of_a_cleared_question_reaches_who_quotes_it_since(harness: Harness, tmp_path: Path) -> None:
    secret = a_message("my door code is 7734")
    await harness.ask(secret)
    await harness.ask(a_message("/clear"))
    quoting = a_message("is that so?", quoted=secret.text, quoted_id=secret.id, author=BEN)
    await harness.ask(quoting)
    assert await harness.intake.edit(replace(secret, text="never mind")) is None
    await harness.ask(a_message("really?", author=BEN))
    assert harness.engine.requests[-1].messages[0].content == "> never mind\n\nis that so?"
    assert b"7734" not in bytes_in(tmp_path)


async def test_an_edit_whose_acknowledgement_is_lost_keeps_the_messages_already_sent(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    shield = harness.store._shield
    may_send = asyncio.Event()

    async def lost(name: str, work: Coroutine[Any, Any, object]) -> object:
        await shield(name, work)
        raise StoreError("the connection broke after COMMIT")

    async def send(worker: Worker) -> None:
        await may_send.wait()
        worker.parts.append(Part("m1"))  # sent, and its id is known to this worker only
        await harness.exchanges.record_part(worker, 0, "m1")

    question = a_message("quesiton")
    exchange = await harness.accept(question)
    sending = harness.exchanges.start(exchange, send)
    assert sending is not None
    known = await harness.stored(exchange)
    with monkeypatch.context() as patch:
        patch.setattr(harness.store, "_shield", lost)
        with pytest.raises(StoreError):
            await harness.exchanges.requeue(known, "question")
    may_send.set()
    await sending
    again = await edited(harness, question, "question")
    assert harness.exchanges.worker(again).parts == [Part("m1")]
    with pytest.raises(ClaimLost):
        harness.exchanges.worker(exchange)


async def test_an_edit_of_a_message_that_waits_for_its_backfill_is_asked_with_its_new_text(harness: Harness) -> None:
    first, second = a_message("frist"), a_message("second")
    await harness.intake.store(first)
    await harness.intake.store(second)
    await harness.intake.store_edit(replace(first, text="first"))
    owed = await harness.intake.recover("discord")
    assert [exchange.message.text for exchange in owed] == ["first", "second"]
    for exchange in owed:
        await harness.replied(exchange)
    assert [request.messages[-1].content for request in harness.engine.requests] == ["first", "second"]


async def test_a_missed_edit_that_is_cut_off_while_its_answer_is_stored_blocks_no_later_question(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = a_message("what is 2 + 2?")
    exchange = await harness.accept(asked)
    await harness.replied(exchange)
    shown = OwnMessage("m1", "six", asked.sent_at, frozenset({Action.RETRY}))
    begun = asyncio.Event()

    async def hang(*_: object, **__: object) -> bool:
        begun.set()
        await asyncio.Event().wait()
        return False

    with monkeypatch.context() as patch:
        patch.setattr(harness.store, "record_answer", hang)
        known = await harness.stored(exchange)
        change = harness.intake.store_change(known, replace(asked, text="2 + 4?"), StandingReply([shown]))
        storing = asyncio.create_task(change)
        await begun.wait()
        storing.cancel()  # as when the connection is lost again
        await asyncio.gather(storing, return_exceptions=True)
    async with asyncio.timeout(TIMEOUT):
        assert text_of(await harness.ask(a_message("and now?"))) == "ok"
    assert [each.id for each in await harness.intake.recover("discord")] == [exchange.id]
