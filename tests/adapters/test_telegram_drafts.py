"""Telegram's rich drafts, and the button that stops them."""

import asyncio

import pytest

from bot.domain import Action
from tests.adapters.test_telegram_rich import SHOWN, TABLE
from tests.harness.harness import Harness
from tests.harness.servers.telegram import Refused, TelegramPlatform
from tests.harness.telegram_harness import done, replies, running


async def test_a_rich_draft_becomes_a_rich_message(harness: Harness) -> None:
    go_on = asyncio.Event()
    harness.engine.add([TABLE, go_on, " More."])
    async with TelegramPlatform(knows="blocks", drafts=True) as telegram, running(telegram, harness):
        mei = telegram.private("Mei").id
        await telegram.say("how much?", direct=True)
        await telegram.until(lambda: telegram.drafts.get(mei, [])[-1:] == [SHOWN])
        assert replies(telegram, "Mei") == []
        go_on.set()
        await done(telegram, f"{SHOWN} More.", channel="Mei")
        assert telegram.drafts == {}
        assert telegram.violations == []


async def test_refused_blocks_make_the_draft_a_text(harness: Harness) -> None:
    harness.engine.add([TABLE, asyncio.Event()])
    async with TelegramPlatform(knows="blocks", drafts=True) as telegram, running(telegram, harness):
        telegram.refuses_blocks = True
        mei = telegram.private("Mei").id
        await telegram.say("how much?", direct=True)
        await telegram.until(lambda: any("│" in draft for draft in telegram.drafts.get(mei, [])))


async def test_the_button_of_a_draft_stops_the_answer(harness: Harness) -> None:
    harness.engine.add(["half", asyncio.Event()])
    async with TelegramPlatform(knows="blocks", drafts=True) as telegram, running(telegram, harness):
        mei = telegram.private("Mei").id
        await telegram.say("hello", direct=True)
        await telegram.until(lambda: telegram.drafts.get(mei, [])[-1:] == ["half"])
        telegram.stop_draft("Mei")
        await telegram.until(lambda: [each.visible for each in replies(telegram, "Mei")] == ["half\n\n(stopped)"])
        assert replies(telegram, "Mei")[0].actions == {Action.RETRY}


async def test_another_persons_press_and_an_old_one_stop_nothing(harness: Harness) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["half", go_on, " and half"], "pong")
    async with TelegramPlatform(knows="blocks", drafts=True) as telegram, running(telegram, harness):
        mei = telegram.private("Mei").id
        await telegram.say("hello", direct=True)
        await telegram.until(lambda: telegram.drafts.get(mei, [])[-1:] == ["half"])
        (draft,) = {form["draft_id"] for name, form in telegram.calls if name == "sendMessageDraft"}
        telegram.stop_draft("Ben", draft)
        telegram.stop_draft("Mei", draft + 1)
        await telegram.say("a later update", author="Ben", direct=True)
        await done(telegram, "pong", channel="Ben")
        go_on.set()
        await done(telegram, "half and half", channel="Mei")


async def test_a_draft_that_fails_in_passing_is_shown_again(harness: Harness) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["half", go_on, " and half"])
    async with TelegramPlatform(knows="blocks", drafts=True) as telegram, running(telegram, harness):
        mei = telegram.private("Mei").id
        telegram.broken["sendMessageDraft"] = Refused(502, "Bad Gateway")
        await telegram.say("hello", direct=True)
        await telegram.until(lambda: any(name == "sendMessageDraft" for name, _ in telegram.calls))
        del telegram.broken["sendMessageDraft"]
        await telegram.until(lambda: telegram.drafts.get(mei, [])[-1:] == ["half"])
        assert replies(telegram, "Mei") == []
        go_on.set()
        await done(telegram, "half and half", channel="Mei")


@pytest.mark.parametrize("refused", [Refused(404, "Not Found"), Refused(500, "Internal Server Error")])
async def test_where_drafts_keep_failing_a_message_grows(harness: Harness, refused: Refused) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["half", go_on, " and half"])
    async with TelegramPlatform(knows="blocks", drafts=True) as telegram, running(telegram, harness):
        telegram.broken["sendMessageDraft"] = refused
        await telegram.say("hello", direct=True)
        await telegram.until(lambda: [each.actions for each in replies(telegram, "Mei")] == [{Action.STOP}])
        go_on.set()
        await done(telegram, "half and half", channel="Mei")
        assert len(replies(telegram, "Mei")) == 1
