"""Slack: whom the bot answers there, and what it does when told to."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.config.schema import AccessSection
from bot.domain import Action, Status
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import LoopbackPlatform, Trouble
from tests.harness.servers.slack import SlackServer
from tests.harness.slack_harness import answered, asked, becomes, bots, running


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer() as server:
        yield server
        assert server.violations == []


def test_the_workspace_is_a_platform_like_the_others() -> None:
    platform: LoopbackPlatform = SlackServer()
    assert platform.name == "slack"


# Who is answered, and where


async def test_a_mention_is_answered_in_a_thread_of_its_own(harness: Harness, server: SlackServer) -> None:
    harness.engine.add("**你好**，世界")
    async with running(harness, server):
        question = await server.say("hello")
        await answered(server, "**你好**，世界")
    assert server.seen()[1].reply_to == question
    assert asked(harness, 0) == ["Mei: hello"]


async def test_a_direct_message_is_answered_beside_it(harness: Harness, server: SlackServer) -> None:
    harness.engine.add("one", "two")
    async with running(harness, server):
        await server.say("first", direct=True)
        await answered(server, "one", channel="Mei")
        await server.say("second", direct=True)
        await answered(server, "one", "two", channel="Mei")
    assert {message.reply_to for message in server.seen("Mei")} == {None}
    assert asked(harness, 1) == ["first", "one", "second"]


async def test_a_thread_with_the_bot_goes_on_without_mentions(harness: Harness, server: SlackServer) -> None:
    harness.engine.add("one", "two")
    async with running(harness, server):
        thread = await server.say("first")
        await answered(server, "one")
        await server.say("second", author="Ben", thread=thread, mention=False)
        await answered(server, "one", "two")
    assert asked(harness, 1) == ["Mei: first", "one", "Ben: second"]


async def test_threads_may_be_left_alone(harness: Harness) -> None:
    async with SlackServer(threads=False) as server, running(harness, server):
        thread = await server.say("first")
        await answered(server, "ok")
        await server.say("among us", thread=thread, mention=False)
        await server.say("again", thread=thread)
        await answered(server, "ok", "ok")
    assert asked(harness, 1) == ["Mei: first", "ok", "Mei: again"]


async def test_what_is_not_said_to_the_bot_is_not_answered(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        thread = await server.say("a talk among people", mention=False)
        await server.say("more of it", thread=thread, mention=False)
        await server.say("@bot from a bot", author="HelperBot")
        await server.say("hello")
        await answered(server, "ok")
    assert len(harness.engine.requests) == 1


async def test_who_calls_the_bot_into_a_thread_quotes_what_it_is_about(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        thread = await server.say("The moon is made of cheese &amp; rock.", author="Ben", mention=False)
        await server.say("is that so?", thread=thread)
        await answered(server, "ok")
    assert asked(harness, 0) == ["> The moon is made of cheese & rock.\n\nMei: is that so?"]


async def test_a_thread_under_an_answer_quotes_it(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        await server.say("hello", direct=True)
        await answered(server, "ok", channel="Mei")
        answer = server.seen("Mei")[1].id
        await server.say("why?", direct=True, reply_to=answer)
        await answered(server, "ok", "ok", channel="Mei")
    assert asked(harness, 1) == ["> ok\n\nwhy?"]


async def test_a_quotation_that_cannot_be_read_is_left_out(harness: Harness, server: SlackServer) -> None:
    server.refused["conversations.replies"] = "missing_scope"
    async with running(harness, server):
        thread = await server.say("something", author="Ben", mention=False)
        await server.say("is that so?", thread=thread)
        await answered(server, "ok")
    assert asked(harness, 0) == ["Mei: is that so?"]


async def test_slacks_notation_is_read_as_people_read_it(harness: Harness, server: SlackServer) -> None:
    ben = server.room.user("Ben")
    async with running(harness, server):
        await server.say(f"tell <@{ben}> in <#C9|news> that 1 &lt; 2, see <https://a.b|this> <!here> <@UBOT>")
        await answered(server, "ok")
    assert asked(harness, 0) == ["Mei: tell @Ben in #news that 1 < 2, see this (https://a.b) @here"]


async def test_a_mention_without_text_gets_a_sentence(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        await server.say("")
        await server.until(lambda: "I can only read text" in "".join(bots(server.seen())))
    assert harness.engine.requests == []


async def test_own_words_are_in_the_askers_language(harness: Harness, server: SlackServer) -> None:
    server.room.locales["Mei"] = "zh-CN"
    async with running(harness, server):
        await server.say("")
        await server.until(lambda: "我只能" in "".join(bots(server.seen())) or "文字" in "".join(bots(server.seen())))


async def test_who_cannot_be_looked_up_is_called_by_their_id(harness: Harness, server: SlackServer) -> None:
    server.refused["users.info"] = "missing_scope"
    async with running(harness, server):
        await server.say("hello")
        await answered(server, "ok")
    assert asked(harness, 0) == [f"{server.room.user('Mei')}: hello"]


async def test_people_are_looked_up_once(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        for number in range(3):
            await server.say("hello", channel=f"c{number}")
            await answered(server, "ok", channel=f"c{number}")
    assert server.calls.count("users.info") == 1


# Commands


async def test_clear_outside_a_thread_clears_the_channel_and_its_threads(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        thread = await server.say("remember me")
        await answered(server, "ok")
        clear = await server.say("clear")
        await answered(server, "ok", "Forgotten: everything said here (1).")
        assert server.seen()[-1].reply_to == clear
        await server.say("who am I?", thread=thread)
        await answered(server, "ok", "ok", "Forgotten: everything said here (1).")
    assert asked(harness, 1) == ["Mei: who am I?"]


async def test_clear_within_a_thread_clears_it_alone(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        await server.say("elsewhere")
        await answered(server, "ok")
        thread = await server.say("here")
        await answered(server, "ok", "ok")
        await server.say("clear", thread=thread)
        await answered(server, "ok", "ok", "Forgotten: everything said here (1).")


async def test_a_slash_command_is_answered_to_who_used_it_alone(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        await server.say("remember me")
        await answered(server, "ok")
        await server.command("clear")
        await answered(server, "ok", "Forgotten: everything said here (1).")
    assert server.room.messages[server.seen()[-1].id].for_user == server.room.user("Mei")


@pytest.mark.parametrize(
    ("typed", "sentence"), [("", "/help"), ("hlep", "did you mean /help?"), ("/Status", "scripted")]
)
async def test_what_is_typed_behind_the_slash_command_is_read_kindly(
    harness: Harness, server: SlackServer, typed: str, sentence: str
) -> None:
    async with running(harness, server):
        await server.command(typed)
        await server.until(lambda: sentence in "".join(bots(server.seen())))


async def test_a_slash_command_from_before_a_restart_is_answered(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        server.script = lambda number, name: Trouble("500") if name == "response_url" else None
        await server.command("status")
        await server.until(lambda: server.refusals > 0)
    server.script = lambda number, name: None
    async with make_harness(tmp_path) as harness, running(harness, server):
        await server.until(lambda: "scripted" in "".join(bots(server.seen())))
    assert "chat.postEphemeral" in server.calls


async def test_stop_and_retry_by_slash_mean_the_thread_one_spoke_in(harness: Harness, server: SlackServer) -> None:
    harness.engine.add(["half", asyncio.Event()], "whole")
    async with running(harness, server):
        await server.say("tell me all")
        await answered(server, "half")
        await server.command("stop")
        await answered(server, "half\n\n(stopped)", "Stopped.")
        await server.command("retry")
        await answered(server, "whole", "Stopped.")


async def test_each_command_may_have_a_slash_of_its_own(harness: Harness, server: SlackServer) -> None:
    server.slash = "/glm-status"
    async with running(harness, server):
        await server.command("")
        await server.until(lambda: "scripted" in "".join(bots(server.seen())))


# Buttons, edits, deletions


async def test_a_button_stops_and_another_answers_anew(harness: Harness, server: SlackServer) -> None:
    harness.engine.add(["half", asyncio.Event()], "whole")
    async with running(harness, server):
        await server.say("tell me all")
        await answered(server, "half")
        answer = server.seen()[1]
        assert answer.actions == {Action.STOP}
        await server.press(answer.id, Action.STOP)
        await server.until(lambda: server.seen()[1].actions == {Action.RETRY})
        assert server.seen()[1].markdown == "half\n\n(stopped)"
        await server.press(answer.id, Action.RETRY)
        await answered(server, "whole")
    assert server.seen()[1].id == answer.id


async def test_only_the_asker_and_admins_may_press(tmp_path: Path, server: SlackServer) -> None:
    admin = f"slack:{server.room.user('Root')}"
    async with make_harness(tmp_path, access=AccessSection(admins=(admin,))) as harness, running(harness, server):
        harness.engine.add("one", "two")
        await server.say("hello")
        await server.until(lambda: bool(server.seen()[1:]) and server.seen()[1].actions == {Action.RETRY})
        answer = server.seen()[1].id
        await server.press(answer, Action.RETRY, author="Ben")
        await answered(server, "one", "Only the person who asked, and admins, may do that.")
        assert server.room.messages[server.seen()[-1].id].for_user == server.room.user("Ben")
        await server.press(answer, Action.RETRY, author="Root")
        await server.until(lambda: bots(server.seen())[0] == "two")


async def test_a_button_does_its_work_where_nobody_can_be_told(harness: Harness, server: SlackServer) -> None:
    server.refused["chat.postEphemeral"] = "user_not_in_channel"
    async with running(harness, server):
        await server.say("hello")
        await server.until(lambda: bool(server.seen()[1:]) and server.seen()[1].actions == {Action.RETRY})
        await server.press(server.seen()[1].id, Action.RETRY, author="Ben")
        await server.until(lambda: "chat.postEphemeral" in server.calls and server.is_quiet)
        await server.press(server.seen()[1].id, Action.RETRY)
        await server.until(lambda: len(harness.engine.requests) == 2)


async def test_an_edited_question_is_answered_anew_in_the_same_reply(harness: Harness, server: SlackServer) -> None:
    harness.engine.add("one", "two")
    async with running(harness, server):
        question = await server.say("frist")
        await answered(server, "one")
        await server.edit(question, "first")
        await answered(server, "two")
    assert [asked(harness, number) for number in (0, 1)] == [["Mei: frist"], ["Mei: first"]]


async def test_a_question_whose_link_unfurls_is_not_answered_again(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        question = await server.say("hello")
        await answered(server, "ok")
        server.unfurl(question)
        await server.until(lambda: server.is_quiet)
    assert len(harness.engine.requests) == 1


async def test_a_deleted_question_is_stopped_and_forgotten(harness: Harness, server: SlackServer) -> None:
    harness.engine.add(["half", asyncio.Event()])
    async with running(harness, server):
        question = await server.say("a secret")
        await answered(server, "half")
        await server.delete(question)
        await answered(server, "half\n\n(stopped)")
        exchange = await becomes(harness, Status.CLEARED, server.room.channel("general"), question)
    assert exchange.message.text == ""


async def test_a_deleted_question_without_replies_is_forgotten(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        question = await server.say("a secret", direct=True)
        await answered(server, "ok", channel="Mei")
        await server.delete(question)
        await becomes(harness, Status.CLEARED, server.room.direct("Mei"), question)
