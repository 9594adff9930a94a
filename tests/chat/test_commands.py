"""The commands, as anybody on any platform uses them."""

import asyncio
from pathlib import Path

import pytest

from bot.chat.commands import menu, parse
from bot.config.schema import AccessSection
from bot.domain import Author, ChannelKey, Kind, Status
from tests.harness.harness import Harness, make_harness, notice_of, text_of
from tests.harness.messages import a_message

TOM = Author("discord", "2", "Tom")
ADA = Author("discord", "9", "Ada")


@pytest.mark.parametrize(
    ("text", "name", "args"),
    [
        ("/clear", "clear", ""),
        ("  /CLEAR  ", "clear", ""),
        ("/clear@our_bot", "clear", ""),
        ("/help clear", "help", "clear"),
        ("stop", "stop", ""),
        ("/forgte", "forgte", ""),
        ("Forget  ME ", "forget", "ME"),
        ("forget", "forget", ""),
    ],
)
def test_a_command_is_found(text: str, name: str, args: str) -> None:
    called = parse(text)
    assert called is not None
    assert (called[0].name, called[1]) == (name, args)


@pytest.mark.parametrize(
    "text", ["", "/", "//", "/usr/bin is where?", "/etc/hosts", "stop it", "forget me not", "how do I /clear?"]
)
def test_a_question_is_not_a_command(text: str) -> None:
    assert parse(text) is None


async def test_clear_forgets_and_says_how_much(harness: Harness) -> None:
    await harness.ask(a_message("one"))
    await harness.ask(a_message("two"))
    assert "2" in notice_of(await harness.ask(a_message("/clear")))
    await harness.ask(a_message("three"))
    assert len(harness.engine.requests[-1].messages) == 1
    assert "nothing" in notice_of(await harness.ask(a_message("/clear", channel=ChannelKey("discord", "empty"))))


@pytest.mark.parametrize("text", ["/clear the table, please", "/stop now", "/retry it", "/status please"])
async def test_a_command_with_extra_words_does_nothing(harness: Harness, text: str) -> None:
    await harness.ask(a_message("one"))
    assert "Nothing was done" in notice_of(await harness.ask(a_message(text)))
    await harness.ask(a_message("two"))
    assert len(harness.engine.requests[-1].messages) == 3
    assert "/clear" in notice_of(await harness.ask(a_message("/help clear")))


async def test_clear_leaves_no_byte_of_the_conversation(harness: Harness, tmp_path: Path) -> None:
    harness.engine.add("The password is swordfish, 密码是剑鱼.")
    await harness.ask(a_message("tell me the password 请告诉我密码"))
    await harness.ask(a_message("/clear"))
    for file in tmp_path.iterdir():
        for word in ("swordfish", "剑鱼", "tell me the password", "请告诉我密码"):
            assert word.encode() not in file.read_bytes(), f"{word} is still in {file.name}"


async def test_a_command_is_stored_and_answered_once_but_not_in_the_history(harness: Harness) -> None:
    message = a_message("/help")
    exchange = await harness.accept(message)
    await harness.replied(exchange)
    kept = await harness.stored(exchange)
    assert (kept.kind, kept.status) == (Kind.COMMAND, Status.DELIVERED)
    assert await harness.intake.accept(message) is None
    await harness.ask(a_message("hi"))
    assert len(harness.engine.requests[0].messages) == 1


async def test_clear_itself_is_answered_once_even_after_a_crash(tmp_path: Path) -> None:
    async with make_harness(tmp_path) as before:
        await before.ask(a_message("one"))
        exchange = await before.accept(a_message("/clear"))
        await before.events(exchange)
    async with make_harness(tmp_path) as after:
        (owed,) = await after.intake.recover("discord")
        assert "1" in notice_of(await after.replied(owed))


async def test_only_admins_clear_if_configured(tmp_path: Path) -> None:
    async with make_harness(tmp_path, access=AccessSection(clear_by="admins", admins=("discord:9",))) as harness:
        await harness.ask(a_message("one"))
        assert "Only admins" in notice_of(await harness.ask(a_message("/clear")))
        assert "1" in notice_of(await harness.ask(a_message("/clear", author=ADA)))


async def growing(harness: Harness) -> asyncio.Task[object]:
    """An answer to Mei that will not end by itself."""
    harness.engine.add(["growing ", asyncio.Event()])
    asked = len(harness.engine.requests)
    task = asyncio.create_task(harness.ask(a_message("hi")))
    await harness.engine.asked(asked + 1)
    return task


async def test_stop_ends_the_askers_own_answer(harness: Harness) -> None:
    task = await growing(harness)
    assert "Stopped" in notice_of(await harness.ask(a_message("/stop")))
    await task


async def test_others_may_not_stop_it_but_admins_may(tmp_path: Path) -> None:
    async with make_harness(tmp_path, access=AccessSection(admins=("discord:9",))) as harness:
        task = await growing(harness)
        assert "Only the person" in notice_of(await harness.ask(a_message("/stop", author=TOM)))
        assert not task.done()
        assert "Stopped" in notice_of(await harness.ask(a_message("/stop", author=ADA)))
        await task


async def test_stop_says_when_there_is_nothing_to_stop(harness: Harness) -> None:
    assert "Nothing" in notice_of(await harness.ask(a_message("/stop")))


async def test_retry_replaces_the_answer_to_the_last_question(harness: Harness) -> None:
    harness.engine.add("first try", "second try")
    question = await harness.accept(a_message("hi"))
    await harness.record_part(question, 0, "m1")
    await harness.replied(question)
    again = await harness.accept(a_message("/retry"))
    assert (again.id, again.parts) == (question.id, ("m1",))
    assert again.seed != question.seed
    assert text_of(await harness.replied(again)) == "second try"
    first, second = harness.engine.requests
    assert first.messages == second.messages, "the first answer is no history of its own question"
    assert await harness.intake.recover("discord") == []


async def test_retry_stops_an_answer_in_progress(harness: Harness) -> None:
    task = await growing(harness)
    harness.engine.add("better")
    assert text_of(await harness.ask(a_message("/retry"))) == "better"
    await task


async def test_retry_repeats_the_users_question_and_for_admins_any(tmp_path: Path) -> None:
    async with make_harness(tmp_path, access=AccessSection(admins=("discord:9",))) as harness:
        await harness.ask(a_message("Mei's"))
        assert "no question here that can be answered again" in notice_of(
            await harness.ask(a_message("/retry", author=TOM))
        )
        assert text_of(await harness.ask(a_message("/retry", author=ADA))) == "ok"


async def test_status_tells_model_load_and_version(harness: Harness) -> None:
    notice = notice_of(await harness.ask(a_message("/status")))
    assert "scripted" in notice
    assert "2048" in notice
    assert "Python" not in notice


async def test_help_lists_every_command_in_the_askers_language(harness: Harness) -> None:
    english = notice_of(await harness.ask(a_message("/help", locale="en-GB")))
    chinese = notice_of(await harness.ask(a_message("/help", locale="zh-CN")))
    assert all(f"`/{each.name}`" in english and f"`/{each.name}`" in chinese for each in menu())
    assert english != chinese


async def test_an_unknown_command_gets_the_most_similar_one_as_a_suggestion(harness: Harness) -> None:
    assert "/clear" in notice_of(await harness.ask(a_message("/claer")))
    assert "/help" in notice_of(await harness.ask(a_message("/xyzzy")))
