"""/forget me, and what else is deleted while others work on it: no byte of it stays."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bot.config.schema import LimitsSection
from bot.domain import Action, Author, ChannelKey, Scope, SettingChange, Status
from tests.harness.harness import Harness, make_harness, notice_of, text_of
from tests.harness.messages import CHANNEL, MEI, a_message
from tests.storage import bytes_in
from tests.storage.forensics import KeptFiles

TOM = Author("discord", "2", "Tom")
ELSEWHERE = ChannelKey("discord", "c2", "t1")


async def test_forget_me_leaves_no_byte_of_the_user(harness: Harness, tmp_path: Path) -> None:
    mei = replace(MEI, id="id-of-hers", name="Mei Zhang")
    harness.engine.add("swordfish it is", "swordfish, too", "for Tom")
    await harness.ask(a_message("my password", author=mei))
    await harness.ask(a_message("my other password", author=mei, channel=ELSEWHERE))
    await harness.ask(a_message("what did she say?", author=TOM, quoted="my  password"))
    kept = KeptFiles(tmp_path)
    kept.copy()
    assert b"swordfish" in kept.decrypted()
    assert "2" in notice_of(await harness.ask(a_message("/forget me", author=mei)))
    left = kept.decrypted()
    assert [word for word in (b"swordfish", b"password", b"id-of-hers", b"Mei Zhang") if word in left] == []
    assert b"for Tom" in left, "others are remembered"


@pytest.mark.parametrize("command", ["/clear", "/forget me"])
async def test_a_deletion_says_so_if_the_keys_cannot_be_overwritten(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    await harness.ask(a_message("my password"))
    monkeypatch.setattr(os, "pwrite", failing)
    said = notice_of(await harness.ask(a_message(command)))
    assert "1" in said
    assert "still contain" in said


async def test_a_deletion_of_no_question_says_so_too(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    persona = Scope("channel", str(CHANNEL)), "persona", None, "always call me the queen of Spain"
    await harness.store.record_setting(SettingChange(*persona, MEI, harness.intake.today()))
    await harness.ask(a_message("/help", author=TOM))
    monkeypatch.setattr(os, "pwrite", failing)
    for author, command in ((MEI, "/forget me"), (TOM, "/clear")):
        assert "still contain" in notice_of(await harness.ask(a_message(command, author=author)))
    stranger = Author("discord", "3", "Ann")
    assert notice_of(await harness.ask(a_message("/forget me", author=stranger))) == "I have no messages of yours."


async def test_a_forgotten_message_is_not_answered_on_redelivery(harness: Harness) -> None:
    question, command = a_message("hi"), a_message("forget me")
    await harness.ask(question)
    await harness.ask(command)
    assert await harness.intake.accept(question) is None
    assert await harness.intake.accept(command) is None


async def test_forget_without_an_argument_explains_itself_and_deletes_nothing(harness: Harness) -> None:
    await harness.ask(a_message("one"))
    assert "`forget me`" in notice_of(await harness.ask(a_message("/forget")))
    await harness.ask(a_message("two"))
    assert len(harness.engine.requests[-1].messages) == 3


async def test_forgetting_ends_running_answers_in_all_channels_and_stores_nothing(
    harness: Harness, tmp_path: Path
) -> None:
    harness.engine.add(["half a secret", asyncio.Event()])
    growing = asyncio.create_task(harness.ask(a_message("tell", channel=ELSEWHERE)))
    await harness.engine.asked(1)
    waiting = asyncio.create_task(harness.ask(a_message("and tell on", channel=ELSEWHERE)))
    await harness.clock.settle()
    await harness.ask(a_message("/forget me"))
    await growing
    await waiting
    assert len(harness.engine.requests) == 1
    assert b"secret" not in bytes_in(tmp_path)
    assert b"tell" not in bytes_in(tmp_path)


async def test_a_forget_request_interrupted_by_a_crash_is_completed_without_a_trace(tmp_path: Path) -> None:
    mei = replace(MEI, id="id-of-hers")
    async with make_harness(tmp_path) as before:
        await before.ask(a_message("my secret", author=mei))
        exchange = await before.accept(a_message("/forget me", author=mei))
        await before.events(exchange)  # killed before it was delivered
    async with make_harness(tmp_path) as after:
        (owed,) = await after.intake.recover("discord")
        assert "1" in notice_of(await after.replied(owed))
        assert await after.intake.recover("discord") == []
        assert b"id-of-hers" not in bytes_in(tmp_path)


async def test_messages_after_a_clear_are_not_cleared(harness: Harness) -> None:
    await harness.ask(a_message("before"))
    clear, after = await harness.accept(a_message("/clear")), await harness.accept(a_message("after"))
    assert "1" in notice_of(await harness.replied(clear))
    assert text_of(await harness.replied(after)) == "ok"


async def test_a_question_cleared_while_it_waits_is_not_sent_to_the_model(harness: Harness) -> None:
    exchange = await harness.accept(a_message("hi"))
    await harness.store.clear(CHANNEL)
    await harness.replied(exchange)
    assert harness.engine.requests == []
    assert (await harness.stored(exchange)).status is Status.CLEARED


async def test_a_retry_that_is_refused_costs_no_answer(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=LimitsSection(requests_per_minute=1)) as harness:
        exchange = await harness.accept(a_message("hi"))
        await harness.record_part(exchange, 0, "m1")
        await harness.replied(exchange)
        pressed = await harness.intake.on_button(CHANNEL, "m1", Action.RETRY, MEI)
        assert "60 s" in pressed.notice
        assert "60 s" in notice_of(await harness.ask(a_message("/retry")))
        kept = await harness.stored(exchange)
        assert kept.answer is not None
        assert kept.answer.text == "ok"


async def test_threads_and_other_channels_do_not_bypass_the_limits(tmp_path: Path) -> None:
    async with make_harness(tmp_path, limits=LimitsSection(waiting_per_user=2)) as harness:
        harness.engine.go_on.clear()
        places = [ChannelKey("discord", "c1", f"t{number}") for number in range(2)]
        asked = [asyncio.create_task(harness.ask(a_message(channel=place))) for place in places]
        await harness.engine.asked(2)
        assert "2 questions waiting" in notice_of(await harness.ask(a_message(channel=ELSEWHERE)))
        harness.engine.go_on.set()
        await asyncio.gather(*asked)
    async with make_harness(tmp_path, limits=LimitsSection(requests_per_minute_channel=1)) as harness:
        await harness.ask(a_message(channel=places[0]))
        assert "60 s" in notice_of(await harness.ask(a_message(author=TOM, channel=places[1])))


async def test_a_channels_tokens_and_a_persons_commands_are_counted(tmp_path: Path) -> None:
    async with make_harness(
        tmp_path, limits=LimitsSection(requests_per_minute=1, tokens_per_hour_channel=1)
    ) as harness:
        await harness.ask(a_message("hi"))
        assert "60 min" in notice_of(await harness.ask(a_message("hi", author=TOM)))
        await harness.ask(a_message("/help"))
        assert "60 s" in notice_of(await harness.ask(a_message("/help")))
