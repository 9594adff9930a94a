"""Slack: which messages are answered, commands, buttons, edits, deletions."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from bot.adapters.slack.messenger import SlackMessenger
from bot.chat.command_table import COMMANDS, CommandContext
from bot.config.schema import AccessSection
from bot.domain import Action, ChannelKey, Status
from tests.harness.harness import Harness, make_harness, set_paused
from tests.harness.platform import TIMEOUT, Fault, LoopbackPlatform
from tests.harness.servers.slack import SlackServer
from tests.harness.slack_harness import answered, asked, becomes, bots, running


def test_the_slack_server_is_a_loopback_platform() -> None:
    platform: LoopbackPlatform = SlackServer()
    assert platform.name == "slack"


# Addressing


async def test_a_mention_is_answered_in_a_new_thread(harness: Harness, server: SlackServer) -> None:
    harness.engine.add("**你好**，世界")
    async with running(harness, server):
        question = await server.say("hello")
        await answered(server, "**你好**，世界")
    assert server.seen()[1].reply_to == question
    assert asked(harness, 0) == ["Mei: hello"]


async def test_a_direct_message_is_answered_outside_threads(harness: Harness, server: SlackServer) -> None:
    harness.engine.add("one", "two")
    async with running(harness, server):
        await server.say("first", direct=True)
        await answered(server, "one", channel="Mei")
        await server.say("second", direct=True)
        await answered(server, "one", "two", channel="Mei")
    assert {message.reply_to for message in server.seen("Mei")} == {None}
    assert asked(harness, 1) == ["first", "one", "second"]


async def test_a_thread_with_the_bot_continues_without_mentions(harness: Harness, server: SlackServer) -> None:
    harness.engine.add("one", "two")
    async with running(harness, server):
        thread = await server.say("first")
        await answered(server, "one")
        await server.say("second", author="Ben", thread=thread, mention=False)
        await answered(server, "one", "two")
    assert asked(harness, 1) == ["Mei: first", "one", "Ben: second"]


async def test_without_the_threads_setting_only_mentions_are_answered(harness: Harness) -> None:
    async with SlackServer(threads=False) as server, running(harness, server):
        thread = await server.say("first")
        await answered(server, "ok")
        await server.say("among us", thread=thread, mention=False)
        await server.say("again", thread=thread)
        await answered(server, "ok", "ok")
    assert asked(harness, 1) == ["Mei: first", "ok", "Mei: again"]


async def test_messages_that_do_not_address_the_bot_are_ignored(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        thread = await server.say("a talk among people", mention=False)
        await server.say("more of it", thread=thread, mention=False)
        await server.say("@bot from a bot", author="HelperBot")
        await server.say("hello")
        await answered(server, "ok")
    assert len(harness.engine.requests) == 1


async def test_a_mention_inside_a_thread_quotes_its_first_message(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        thread = await server.say("The moon is made of cheese &amp; rock.", author="Ben", mention=False)
        await server.say("is that so?", thread=thread)
        await answered(server, "ok")
    assert asked(harness, 0) == ["> The moon is made of cheese & rock.\n\nMei: is that so?"]


async def test_after_a_refused_mention_the_next_one_quotes_the_first_message(
    harness: Harness, server: SlackServer
) -> None:
    async with running(harness, server):
        thread = await server.say("The library closes at six.", author="Ben", mention=False)
        set_paused(harness.intake.access)
        await server.say("when exactly?", thread=thread)
        await server.until(lambda: len(server.seen()) == 3)
        place = ChannelKey("slack", server.workspace.channel("general"), thread)
        async with asyncio.timeout(TIMEOUT):
            while not await harness.intake.quotes_root(place):
                pass  # the refusal is shown before it is stored
        set_paused(harness.intake.access, is_paused=False)
        await server.say("when exactly?", thread=thread)
        await server.until(lambda: len(harness.engine.requests) == 1)
        await server.until(lambda: len(server.seen()) == 5)
        await server.say("and on Sundays?", thread=thread)
        await server.until(lambda: len(harness.engine.requests) == 2)
    assert asked(harness, 0) == ["> The library closes at six.\n\nMei: when exactly?"]
    assert asked(harness, 1)[-1] == "Mei: and on Sundays?"


async def test_a_thread_under_an_answer_quotes_it(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        await server.say("hello", direct=True)
        await answered(server, "ok", channel="Mei")
        answer = server.seen("Mei")[1].id
        await server.say("why?", direct=True, reply_to=answer)
        await answered(server, "ok", "ok", channel="Mei")
    assert asked(harness, 1) == ["> ok\n\nwhy?"]


async def test_a_quote_that_cannot_be_fetched_is_left_out(harness: Harness, server: SlackServer) -> None:
    server.refused["conversations.replies"] = "missing_scope"
    async with running(harness, server):
        thread = await server.say("something", author="Ben", mention=False)
        await server.say("is that so?", thread=thread)
        await answered(server, "ok")
    assert asked(harness, 0) == ["Mei: is that so?"]


async def test_slack_markup_is_converted_to_plain_text(harness: Harness, server: SlackServer) -> None:
    ben = server.workspace.user("Ben")
    async with running(harness, server):
        await server.say(f"tell <@{ben}> in <#C9|news> that 1 &lt; 2, see <https://a.b|this> <!here> <@UBOT>")
        await answered(server, "ok")
    assert asked(harness, 0) == ["Mei: tell @Ben in #news that 1 < 2, see this (https://a.b) @here"]


async def test_a_mention_without_text_gets_a_notice(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        await server.say("")
        await server.until(lambda: "I can only read text" in "".join(bots(server.seen())))
    assert harness.engine.requests == []


async def test_notices_are_in_the_authors_language(harness: Harness, server: SlackServer) -> None:
    server.workspace.locales["Mei"] = "zh-CN"
    async with running(harness, server):
        await server.say("")
        await server.until(lambda: "我只能" in "".join(bots(server.seen())) or "文字" in "".join(bots(server.seen())))


async def test_a_user_whose_lookup_fails_is_named_by_id(harness: Harness, server: SlackServer) -> None:
    server.refused["users.info"] = "missing_scope"
    async with running(harness, server):
        await server.say("hello")
        await answered(server, "ok")
    assert asked(harness, 0) == [f"{server.workspace.user('Mei')}: hello"]


async def test_users_are_looked_up_once(harness: Harness, server: SlackServer) -> None:
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
        await answered(server, "ok", "Deleted: everything said here (1).")
        assert server.seen()[-1].reply_to == clear
        await server.say("who am I?", thread=thread)
        await answered(server, "ok", "ok", "Deleted: everything said here (1).")
    assert asked(harness, 1) == ["Mei: who am I?"]


async def test_clear_inside_a_thread_clears_only_that_thread(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        await server.say("elsewhere")
        await answered(server, "ok")
        thread = await server.say("here")
        await answered(server, "ok", "ok")
        await server.say("clear", thread=thread)
        await answered(server, "ok", "ok", "Deleted: everything said here (1).")


async def test_a_slash_command_gets_an_ephemeral_reply(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        await server.say("remember me")
        await answered(server, "ok")
        await server.command("clear")
        await answered(server, "ok", "Deleted: everything said here (1).")
    assert server.workspace.messages[server.seen()[-1].id].for_user == server.workspace.user("Mei")


@pytest.mark.parametrize("is_url_taken", [True, False])
async def test_a_long_reply_to_a_slash_command_is_ephemeral_to_its_end(
    harness: Harness, server: SlackServer, monkeypatch: pytest.MonkeyPatch, is_url_taken: bool
) -> None:
    async def run(context: CommandContext) -> str:
        return "word " * 5000

    monkeypatch.setitem(COMMANDS, "usage", replace(COMMANDS["usage"], run=run))
    if not is_url_taken:
        monkeypatch.setattr(SlackMessenger, "expect_slash", lambda self, message_id, response_url: None)
    async with running(harness, server):
        await server.command("usage")
        await server.until(lambda: " ".join(bots(server.seen())).split() == ["word"] * 5000)
    shown = [server.workspace.messages[each.id] for each in server.seen()]
    assert len(shown) == 3
    assert {each.for_user for each in shown} == {server.workspace.user("Mei")}
    assert ("chat.postEphemeral" in server.calls) != is_url_taken


@pytest.mark.parametrize(
    ("typed", "sentence"), [("", "/help"), ("hlep", "did you mean /help?"), ("/Status", "scripted")]
)
async def test_the_text_of_a_slash_command_names_the_command(
    harness: Harness, server: SlackServer, typed: str, sentence: str
) -> None:
    async with running(harness, server):
        await server.command(typed)
        await server.until(lambda: sentence in "".join(bots(server.seen())))


async def test_a_slash_command_from_before_a_restart_is_answered(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        server.script = lambda number, name: Fault("500") if name == "response_url" else None
        await server.command("status")
        await server.until(lambda: server.refusals > 0)
    server.script = lambda number, name: None
    async with make_harness(tmp_path) as harness, running(harness, server):
        await server.until(lambda: "scripted" in "".join(bots(server.seen())))
    assert "chat.postEphemeral" in server.calls


async def test_slash_stop_and_retry_apply_to_the_authors_last_thread(harness: Harness, server: SlackServer) -> None:
    harness.engine.add(["half", asyncio.Event()], "whole")
    async with running(harness, server):
        await server.say("tell me all")
        await answered(server, "half")
        await server.command("stop")
        await answered(server, "half\n\n(stopped)", "Stopped.")
        await server.command("retry")
        await answered(server, "whole", "Stopped.")


async def test_a_command_can_have_its_own_slash_command(harness: Harness, server: SlackServer) -> None:
    server.slash = "/glm-status"
    async with running(harness, server):
        await server.command("")
        await server.until(lambda: "scripted" in "".join(bots(server.seen())))


# Buttons, edits, deletions


async def test_the_stop_button_stops_and_the_retry_button_answers_again(harness: Harness, server: SlackServer) -> None:
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


async def test_only_the_author_and_admins_can_use_buttons(tmp_path: Path, server: SlackServer) -> None:
    admin = f"slack:{server.workspace.user('Root')}"
    async with make_harness(tmp_path, access=AccessSection(admins=(admin,))) as harness, running(harness, server):
        harness.engine.add("one", "two")
        await server.say("hello")
        await server.until(lambda: bool(server.seen()[1:]) and server.seen()[1].actions == {Action.RETRY})
        answer = server.seen()[1].id
        await server.press(answer, Action.RETRY, author="Ben")
        await answered(server, "one", "Only the person who asked, and admins, may do that.")
        assert server.workspace.messages[server.seen()[-1].id].for_user == server.workspace.user("Ben")
        await server.press(answer, Action.RETRY, author="Root")
        await server.until(lambda: bots(server.seen())[0] == "two")


async def test_a_button_works_although_its_notice_cannot_be_shown(harness: Harness, server: SlackServer) -> None:
    server.refused["chat.postEphemeral"] = "user_not_in_channel"
    async with running(harness, server):
        await server.say("hello")
        await server.until(lambda: bool(server.seen()[1:]) and server.seen()[1].actions == {Action.RETRY})
        await server.press(server.seen()[1].id, Action.RETRY, author="Ben")
        await server.until(lambda: "chat.postEphemeral" in server.calls and server.is_quiet)
        await server.press(server.seen()[1].id, Action.RETRY)
        await server.until(lambda: len(harness.engine.requests) == 2)


async def test_an_edited_question_is_answered_again_in_the_same_reply(harness: Harness, server: SlackServer) -> None:
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


async def test_a_deleted_question_is_stopped_and_erased(harness: Harness, server: SlackServer) -> None:
    harness.engine.add(["half", asyncio.Event()])
    async with running(harness, server):
        question = await server.say("a secret")
        await answered(server, "half")
        await server.delete(question)
        await answered(server, "half\n\n(stopped)")
        exchange = await becomes(harness, Status.CLEARED, server.workspace.channel("general"), question)
    assert exchange.message.text == ""


async def test_a_deleted_question_without_replies_is_erased(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        question = await server.say("a secret", direct=True)
        await answered(server, "ok", channel="Mei")
        await server.delete(question)
        await becomes(harness, Status.CLEARED, server.workspace.direct("Mei"), question)


@pytest.mark.parametrize("text", ["<@U999> have you seen this?", "<!here> look", " ", "<!subteam^S1|@team> yours?"])
async def test_in_a_thread_what_is_for_another_person_is_left_alone(
    harness: Harness, server: SlackServer, text: str
) -> None:
    async with running(harness, server):
        root = await server.say("hello")
        await answered(server, "ok")
        await server.say(text, thread=root, mention=False)
        await server.say("and you?", thread=root, mention=False)
        await answered(server, "ok", "ok")
    assert [request.messages[-1].content for request in harness.engine.requests] == ["Mei: hello", "Mei: and you?"]
