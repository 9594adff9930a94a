"""The commands, as anybody on any platform uses them."""

import asyncio
from pathlib import Path

import pytest

from bot.commands import menu, parse
from bot.config import AccessSection
from bot.domain import Author, ChannelKey, Kind, Status
from tests.house import House, a_house, notice_of, text_of
from tests.messages import a_message

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
def test_a_question_is_no_command(text: str) -> None:
    assert parse(text) is None


async def test_clear_forgets_and_says_how_much(house: House) -> None:
    await house.ask(a_message("one"))
    await house.ask(a_message("two"))
    assert "2" in notice_of(await house.ask(a_message("/clear")))
    await house.ask(a_message("three"))
    assert len(house.engine.requests[-1].messages) == 1
    assert "nothing" in notice_of(await house.ask(a_message("/clear", channel=ChannelKey("discord", "empty"))))


@pytest.mark.parametrize("text", ["/clear the table, please", "/stop now", "/retry it", "/status please"])
async def test_where_more_follows_a_command_nothing_happens(house: House, text: str) -> None:
    await house.ask(a_message("one"))
    assert "I did nothing" in notice_of(await house.ask(a_message(text)))
    await house.ask(a_message("two"))
    assert len(house.engine.requests[-1].messages) == 3
    assert "/clear" in notice_of(await house.ask(a_message("/help clear")))


async def test_clear_leaves_no_byte_of_what_was_said(house: House, tmp_path: Path) -> None:
    house.engine.add("The password is swordfish, 密码是剑鱼.")
    await house.ask(a_message("tell me the password 请告诉我密码"))
    await house.ask(a_message("/clear"))
    for file in tmp_path.iterdir():
        for word in ("swordfish", "剑鱼", "tell me the password", "请告诉我密码"):
            assert word.encode() not in file.read_bytes(), f"{word} is still in {file.name}"


async def test_a_command_is_kept_and_answered_once_but_is_no_history(house: House) -> None:
    message = a_message("/help")
    exchange = await house.accept(message)
    await house.replied(exchange)
    kept = await house.kept(exchange)
    assert (kept.kind, kept.status) == (Kind.COMMAND, Status.DELIVERED)
    assert await house.dispatcher.accept(message) is None
    await house.ask(a_message("hi"))
    assert len(house.engine.requests[0].messages) == 1


async def test_clear_itself_is_answered_once_even_after_a_crash(tmp_path: Path) -> None:
    async with a_house(tmp_path) as before:
        await before.ask(a_message("one"))
        exchange = await before.accept(a_message("/clear"))
        async for _ in before.dispatcher.handle(exchange):
            pass
    async with a_house(tmp_path) as after:
        (owed,) = await after.dispatcher.owed("discord")
        assert "1" in notice_of(await after.replied(owed))


async def test_only_admins_clear_where_the_operator_wants_it_so(tmp_path: Path) -> None:
    async with a_house(tmp_path, access=AccessSection(clear_by="admins", admins=("discord:9",))) as house:
        await house.ask(a_message("one"))
        assert "Only admins" in notice_of(await house.ask(a_message("/clear")))
        assert "1" in notice_of(await house.ask(a_message("/clear", author=ADA)))


async def growing(house: House) -> asyncio.Task[object]:
    """An answer to Mei that will not end by itself."""
    house.engine.add(["growing ", asyncio.Event()])
    asked = len(house.engine.requests)
    task = asyncio.create_task(house.ask(a_message("hi")))
    await house.engine.asked(asked + 1)
    return task


async def test_stop_ends_the_askers_own_answer(house: House) -> None:
    task = await growing(house)
    assert "Stopped" in notice_of(await house.ask(a_message("/stop")))
    await task


async def test_others_may_not_stop_it_but_admins_may(tmp_path: Path) -> None:
    async with a_house(tmp_path, access=AccessSection(admins=("discord:9",))) as house:
        task = await growing(house)
        assert "Only the person" in notice_of(await house.ask(a_message("/stop", author=TOM)))
        assert not task.done()
        assert "Stopped" in notice_of(await house.ask(a_message("/stop", author=ADA)))
        await task


async def test_stop_says_when_there_is_nothing_to_stop(house: House) -> None:
    assert "Nothing" in notice_of(await house.ask(a_message("/stop")))


async def test_retry_answers_the_last_question_again_in_its_place(house: House) -> None:
    house.engine.add("first try", "second try")
    question = await house.accept(a_message("hi"))
    await house.dispatcher.placed(question.id, 0, "m1")
    await house.replied(question)
    again = await house.accept(a_message("/retry"))
    assert (again.id, again.parts) == (question.id, ("m1",))
    assert again.seed != question.seed
    assert text_of(await house.replied(again)) == "second try"
    first, second = house.engine.requests
    assert first.messages == second.messages, "the first answer is no history of its own question"
    assert await house.dispatcher.owed("discord") == []


async def test_retry_stops_an_answer_that_still_grows(house: House) -> None:
    task = await growing(house)
    house.engine.add("better")
    assert text_of(await house.ask(a_message("/retry"))) == "better"
    await task


async def test_retry_takes_ones_own_question_and_an_admin_any(tmp_path: Path) -> None:
    async with a_house(tmp_path, access=AccessSection(admins=("discord:9",))) as house:
        await house.ask(a_message("Mei's"))
        assert "no question of yours" in notice_of(await house.ask(a_message("/retry", author=TOM)))
        assert text_of(await house.ask(a_message("/retry", author=ADA))) == "ok"


async def test_status_tells_model_load_and_version(house: House) -> None:
    notice = notice_of(await house.ask(a_message("/status")))
    assert "scripted" in notice
    assert "2048" in notice
    assert "Python" not in notice


async def test_help_lists_every_command_in_the_askers_language(house: House) -> None:
    english = notice_of(await house.ask(a_message("/help", locale="en-GB")))
    chinese = notice_of(await house.ask(a_message("/help", locale="zh-CN")))
    assert all(f"`/{each.name}`" in english and f"`/{each.name}`" in chinese for each in menu())
    assert english != chinese


async def test_an_unknown_command_is_told_its_nearest(house: House) -> None:
    assert "/clear" in notice_of(await house.ask(a_message("/claer")))
    assert "/help" in notice_of(await house.ask(a_message("/xyzzy")))
