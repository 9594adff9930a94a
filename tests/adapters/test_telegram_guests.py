"""Telegram's guest mode, and inline queries."""

import asyncio
from pathlib import Path

import pytest

from tests.adapters.test_telegram_rich import SHOWN, TABLE
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import Fault
from tests.harness.servers.telegram import TelegramPlatform
from tests.harness.telegram_harness import done, replies, running, texts


async def test_a_mention_where_the_bot_is_no_member_is_answered(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("four", "five")
    async with running(telegram, harness):
        telegram.guest("2 + 2?")
        await done(telegram, "four", channel="elsewhere")
        telegram.guest("2 + 3?", author="Ben")
        await done(telegram, "four", "five", channel="elsewhere")
    assert [request.messages[-1].content for request in harness.engine.requests] == ["Mei: 2 + 2?", "Ben: 2 + 3?"]
    assert all(not reply.actions for reply in replies(telegram, "elsewhere"))


async def test_an_answer_of_a_guest_is_rich(harness: Harness) -> None:
    harness.engine.add(TABLE)
    async with TelegramPlatform(knows="blocks") as telegram, running(telegram, harness):
        telegram.guest("how much?")
        await done(telegram, SHOWN, channel="elsewhere")
        assert telegram.violations == []


async def test_a_chat_of_a_guest_has_a_history_of_its_own(telegram: TelegramPlatform, harness: Harness) -> None:
    harness.engine.add("a secret", "four")
    async with running(telegram, harness):
        await telegram.say("tell me", channel="elsewhere")
        await done(telegram, "a secret", channel="elsewhere")
        telegram.guest("2 + 2?", author="Ben")
        await done(telegram, "a secret", "four", channel="elsewhere")
    assert len(harness.engine.requests[-1].messages) == 1


@pytest.mark.parametrize("kind", ["429", "500", "timeout"])
async def test_a_refused_answer_of_a_guest_is_sent_again(
    telegram: TelegramPlatform, harness: Harness, kind: str
) -> None:
    fault = Fault(kind, 1)  # type: ignore[arg-type]
    telegram.script = lambda number, name: fault if number in (0, 2) else None
    async with running(telegram, harness):
        telegram.guest("hello")
        await done(telegram, "ok", channel="elsewhere")


async def test_a_query_that_was_answered_is_not_answered_again(telegram: TelegramPlatform, harness: Harness) -> None:
    telegram.script = lambda number, name: Fault("lost") if number == 0 else None
    async with running(telegram, harness):
        telegram.guest("hello")
        await telegram.until(lambda: sum(name == "answerGuestQuery" for name, _ in telegram.calls) == 2)
        telegram.guest("and now?")
        await done(telegram, "…", "ok", channel="elsewhere")


async def test_after_a_restart_the_message_of_a_guest_is_continued(tmp_path: Path) -> None:
    async with TelegramPlatform() as telegram:
        async with make_harness(tmp_path) as before, running(telegram, before):
            before.engine.add(["half", asyncio.Event()])
            telegram.guest("hello")
            await telegram.until(lambda: texts(telegram, "elsewhere") == ["half"])
        async with make_harness(tmp_path) as after, running(telegram, after):
            await done(telegram, "ok", channel="elsewhere")


async def test_an_inline_query_points_to_the_private_chat(telegram: TelegramPlatform, harness: Harness) -> None:
    async with running(telegram, harness):
        telegram.language = "zh"
        query = telegram.write_inline("2 + 2?")
        await telegram.until(lambda: query in telegram.inline_answers)
        answer = telegram.inline_answers[query]
        assert (answer["results"], answer["button"]["start_parameter"]) == ([], "ask")
        await telegram.say("/start ask", direct=True)
        await telegram.until(lambda: any("/clear" in text for text in texts(telegram, "Mei")))
    assert harness.engine.requests == []
