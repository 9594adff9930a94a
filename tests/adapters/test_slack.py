"""Slack: the real library against a workspace of our own, with the real store behind it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from slack_sdk.errors import SlackApiError

from bot.adapters.slack import SCOPES, inspect, web_api
from bot.adapters.slack_errors import meaning, translated
from bot.adapters.slack_messenger import SlackMessenger
from bot.adapters.slack_settings import SlackSection
from bot.commands import COMMANDS
from bot.config import AccessSection
from bot.domain import Action, ChannelKey, Exchange, IncomingMessage, Kind, Status
from bot.errors import LoginRefused, PlatformError, PlatformUnavailable, StoreError
from bot.markup.format import Rendered
from bot.markup.reading import is_balanced, visible
from tests.adapters.platform import LoopbackPlatform, Seen, Trouble
from tests.adapters.servers.slack import SlackServer
from tests.fakes.clock import FastClock
from tests.house import House, a_house


@asynccontextmanager
async def running(house: House, server: SlackServer) -> AsyncIterator[None]:
    """The adapter, connected; what ends it is raised."""
    task = asyncio.create_task(server.adapter(FastClock()).run(house.dispatcher))
    connected = asyncio.create_task(server.connected())
    try:
        await asyncio.wait([task, connected], return_when=asyncio.FIRST_COMPLETED)
        yield
    finally:
        task.cancel()
        connected.cancel()
        await asyncio.gather(task, connected, return_exceptions=True)
    if not task.cancelled():
        task.result()


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer() as server:
        yield server
        assert server.violations == []


def bots(seen: list[Seen]) -> list[str]:
    return [message.markdown for message in seen if message.author == "bot"]


async def answered(server: SlackServer, *texts: str, channel: str = "general") -> None:
    """Wait until the bot's messages in a channel are these."""
    try:
        await server.until(lambda: bots(server.seen(channel)) == list(texts))
    except TimeoutError:
        assert bots(server.seen(channel)) == list(texts)


def asked(house: House, number: int) -> list[str]:
    """What the model was shown at its request number 0, 1, …"""
    return [message.content for message in house.engine.requests[number].messages]


def trouble_at(*numbers: int, kind: Any = "lost", seconds: float = 0.0) -> Callable[[int, str], Trouble | None]:
    return lambda number, name: Trouble(kind, seconds) if number in numbers else None


async def becomes(house: House, status: Status, channel: str, message_id: str) -> Exchange:
    """Wait until the store has this status of a message."""
    async with asyncio.timeout(10):
        while True:
            exchange = await house.store.find(ChannelKey("slack", channel), message_id)
            if exchange is not None and exchange.status is status:
                return exchange


def test_the_workspace_is_a_platform_like_the_others() -> None:
    platform: LoopbackPlatform = SlackServer()
    assert platform.name == "slack"


# Who is answered, and where


async def test_a_mention_is_answered_in_a_thread_of_its_own(house: House, server: SlackServer) -> None:
    house.engine.add("**你好**，世界")
    async with running(house, server):
        question = await server.say("hello")
        await answered(server, "**你好**，世界")
    assert server.seen()[1].reply_to == question
    assert asked(house, 0) == ["Mei: hello"]


async def test_a_direct_message_is_answered_beside_it(house: House, server: SlackServer) -> None:
    house.engine.add("one", "two")
    async with running(house, server):
        await server.say("first", direct=True)
        await answered(server, "one", channel="Mei")
        await server.say("second", direct=True)
        await answered(server, "one", "two", channel="Mei")
    assert {message.reply_to for message in server.seen("Mei")} == {None}
    assert asked(house, 1) == ["first", "one", "second"]


async def test_a_thread_with_the_bot_goes_on_without_mentions(house: House, server: SlackServer) -> None:
    house.engine.add("one", "two")
    async with running(house, server):
        thread = await server.say("first")
        await answered(server, "one")
        await server.say("second", author="Ben", thread=thread, mention=False)
        await answered(server, "one", "two")
    assert asked(house, 1) == ["Mei: first", "one", "Ben: second"]


async def test_threads_may_be_left_alone(house: House) -> None:
    async with SlackServer(threads=False) as server, running(house, server):
        thread = await server.say("first")
        await answered(server, "ok")
        await server.say("among us", thread=thread, mention=False)
        await server.say("again", thread=thread)
        await answered(server, "ok", "ok")
    assert asked(house, 1) == ["Mei: first", "ok", "Mei: again"]


async def test_what_is_not_said_to_the_bot_is_not_answered(house: House, server: SlackServer) -> None:
    async with running(house, server):
        thread = await server.say("a talk among people", mention=False)
        await server.say("more of it", thread=thread, mention=False)
        await server.say("@bot from a bot", author="HelperBot")
        await server.say("hello")
        await answered(server, "ok")
    assert len(house.engine.requests) == 1


async def test_who_calls_the_bot_into_a_thread_quotes_what_it_is_about(house: House, server: SlackServer) -> None:
    async with running(house, server):
        thread = await server.say("The moon is made of cheese &amp; rock.", author="Ben", mention=False)
        await server.say("is that so?", thread=thread)
        await answered(server, "ok")
    assert asked(house, 0) == ["> The moon is made of cheese & rock.\n\nMei: is that so?"]


async def test_a_thread_under_an_answer_quotes_it(house: House, server: SlackServer) -> None:
    async with running(house, server):
        await server.say("hello", direct=True)
        await answered(server, "ok", channel="Mei")
        answer = server.seen("Mei")[1].id
        await server.say("why?", direct=True, reply_to=answer)
        await answered(server, "ok", "ok", channel="Mei")
    assert asked(house, 1) == ["> ok\n\nwhy?"]


async def test_a_quotation_that_cannot_be_read_is_left_out(house: House, server: SlackServer) -> None:
    server.refused["conversations.replies"] = "missing_scope"
    async with running(house, server):
        thread = await server.say("something", author="Ben", mention=False)
        await server.say("is that so?", thread=thread)
        await answered(server, "ok")
    assert asked(house, 0) == ["Mei: is that so?"]


async def test_slacks_notation_is_read_as_people_read_it(house: House, server: SlackServer) -> None:
    ben = server.room.user("Ben")
    async with running(house, server):
        await server.say(f"tell <@{ben}> in <#C9|news> that 1 &lt; 2, see <https://a.b|this> <!here> <@UBOT>")
        await answered(server, "ok")
    assert asked(house, 0) == ["Mei: tell @Ben in #news that 1 < 2, see this (https://a.b) @here"]


async def test_a_mention_without_text_gets_a_sentence(house: House, server: SlackServer) -> None:
    async with running(house, server):
        await server.say("")
        await server.until(lambda: "I can only read text" in "".join(bots(server.seen())))
    assert house.engine.requests == []


async def test_own_words_are_in_the_askers_language(house: House, server: SlackServer) -> None:
    server.room.locales["Mei"] = "zh-CN"
    async with running(house, server):
        await server.say("")
        await server.until(lambda: "我只能" in "".join(bots(server.seen())) or "文字" in "".join(bots(server.seen())))


async def test_who_cannot_be_looked_up_is_called_by_their_id(house: House, server: SlackServer) -> None:
    server.refused["users.info"] = "missing_scope"
    async with running(house, server):
        await server.say("hello")
        await answered(server, "ok")
    assert asked(house, 0) == [f"{server.room.user('Mei')}: hello"]


async def test_people_are_looked_up_once(house: House, server: SlackServer) -> None:
    async with running(house, server):
        for number in range(3):
            await server.say("hello", channel=f"c{number}")
            await answered(server, "ok", channel=f"c{number}")
    assert server.calls.count("users.info") == 1


# Commands


async def test_clear_outside_a_thread_clears_the_channel_and_its_threads(house: House, server: SlackServer) -> None:
    async with running(house, server):
        thread = await server.say("remember me")
        await answered(server, "ok")
        clear = await server.say("clear")
        await answered(server, "ok", "Forgotten: everything said here (1).")
        assert server.seen()[-1].reply_to == clear
        await server.say("who am I?", thread=thread)
        await answered(server, "ok", "ok", "Forgotten: everything said here (1).")
    assert asked(house, 1) == ["Mei: who am I?"]


async def test_clear_within_a_thread_clears_it_alone(house: House, server: SlackServer) -> None:
    async with running(house, server):
        await server.say("elsewhere")
        await answered(server, "ok")
        thread = await server.say("here")
        await answered(server, "ok", "ok")
        await server.say("clear", thread=thread)
        await answered(server, "ok", "ok", "Forgotten: everything said here (1).")


async def test_a_slash_command_is_answered_to_who_used_it_alone(house: House, server: SlackServer) -> None:
    async with running(house, server):
        await server.say("remember me")
        await answered(server, "ok")
        await server.command("clear")
        await answered(server, "ok", "Forgotten: everything said here (1).")
    assert server.room.messages[server.seen()[-1].id].for_user == server.room.user("Mei")


@pytest.mark.parametrize(
    ("typed", "sentence"), [("", "/help"), ("hlep", "did you mean /help?"), ("/Status", "scripted")]
)
async def test_what_is_typed_behind_the_slash_command_is_read_kindly(
    house: House, server: SlackServer, typed: str, sentence: str
) -> None:
    async with running(house, server):
        await server.command(typed)
        await server.until(lambda: sentence in "".join(bots(server.seen())))


async def test_a_slash_command_from_before_a_restart_is_answered(tmp_path: Path, server: SlackServer) -> None:
    async with a_house(tmp_path) as house, running(house, server):
        server.script = lambda number, name: Trouble("500") if name == "response_url" else None
        await server.command("status")
        await server.until(lambda: server.refusals > 0)
    server.script = lambda number, name: None
    async with a_house(tmp_path) as house, running(house, server):
        await server.until(lambda: "scripted" in "".join(bots(server.seen())))
    assert "chat.postEphemeral" in server.calls


async def test_stop_and_retry_by_slash_mean_the_thread_one_spoke_in(house: House, server: SlackServer) -> None:
    house.engine.add(["half", asyncio.Event()], "whole")
    async with running(house, server):
        await server.say("tell me all")
        await answered(server, "half")
        await server.command("stop")
        await answered(server, "half\n\n(stopped)", "Stopped.")
        await server.command("retry")
        await answered(server, "whole", "Stopped.")


async def test_each_command_may_have_a_slash_of_its_own(house: House, server: SlackServer) -> None:
    server.slash = "/glm-status"
    async with running(house, server):
        await server.command("")
        await server.until(lambda: "scripted" in "".join(bots(server.seen())))


# Buttons, edits, deletions


async def test_a_button_stops_and_another_answers_anew(house: House, server: SlackServer) -> None:
    house.engine.add(["half", asyncio.Event()], "whole")
    async with running(house, server):
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
    async with a_house(tmp_path, access=AccessSection(admins=(admin,))) as house, running(house, server):
        house.engine.add("one", "two")
        await server.say("hello")
        await server.until(lambda: bool(server.seen()[1:]) and server.seen()[1].actions == {Action.RETRY})
        answer = server.seen()[1].id
        await server.press(answer, Action.RETRY, author="Ben")
        await answered(server, "one", "Only the person who asked, and admins, may do that.")
        assert server.room.messages[server.seen()[-1].id].for_user == server.room.user("Ben")
        await server.press(answer, Action.RETRY, author="Root")
        await server.until(lambda: bots(server.seen())[0] == "two")


async def test_a_button_does_its_work_where_nobody_can_be_told(house: House, server: SlackServer) -> None:
    server.refused["chat.postEphemeral"] = "user_not_in_channel"
    async with running(house, server):
        await server.say("hello")
        await server.until(lambda: bool(server.seen()[1:]) and server.seen()[1].actions == {Action.RETRY})
        await server.press(server.seen()[1].id, Action.RETRY, author="Ben")
        await server.until(lambda: "chat.postEphemeral" in server.calls and server.is_quiet)
        await server.press(server.seen()[1].id, Action.RETRY)
        await server.until(lambda: len(house.engine.requests) == 2)


async def test_an_edited_question_is_answered_anew_in_the_same_reply(house: House, server: SlackServer) -> None:
    house.engine.add("one", "two")
    async with running(house, server):
        question = await server.say("frist")
        await answered(server, "one")
        await server.edit(question, "first")
        await answered(server, "two")
    assert [asked(house, number) for number in (0, 1)] == [["Mei: frist"], ["Mei: first"]]


async def test_a_question_whose_link_unfurls_is_not_answered_again(house: House, server: SlackServer) -> None:
    async with running(house, server):
        question = await server.say("hello")
        await answered(server, "ok")
        server.unfurl(question)
        await server.until(lambda: server.is_quiet)
    assert len(house.engine.requests) == 1


async def test_a_deleted_question_is_stopped_and_forgotten(house: House, server: SlackServer) -> None:
    house.engine.add(["half", asyncio.Event()])
    async with running(house, server):
        question = await server.say("a secret")
        await answered(server, "half")
        await server.delete(question)
        await answered(server, "half\n\n(stopped)")
        exchange = await becomes(house, Status.CLEARED, server.room.channel("general"), question)
    assert exchange.message.text == ""


async def test_a_deleted_question_without_replies_is_forgotten(house: House, server: SlackServer) -> None:
    async with running(house, server):
        question = await server.say("a secret", direct=True)
        await answered(server, "ok", channel="Mei")
        await server.delete(question)
        await becomes(house, Status.CLEARED, server.room.direct("Mei"), question)


# What is shown


async def test_an_answer_grows_by_edits_of_one_message(house: House, server: SlackServer) -> None:
    go_on = asyncio.Event()
    house.engine.add(["one ", go_on, "two"])
    async with running(house, server):
        await server.say("count")
        await answered(server, "one ")
        first = server.seen()[1].id
        go_on.set()
        await answered(server, "one two")
    assert server.seen()[1].id == first
    assert server.calls.count("chat.postMessage") == 1


async def test_a_long_answer_goes_on_in_further_messages(house: House, server: SlackServer) -> None:
    text = "第一段。\n\n```py\n" + "print('你好')\n" * 2000 + "```\n\n完了。"
    house.engine.add(text)
    async with running(house, server):
        await server.say("a long one")
        await server.until(lambda: "".join(map(visible, bots(server.seen()))) == visible(text))
    assert len(bots(server.seen())) == 3
    assert all(map(is_balanced, bots(server.seen())))


PINGS = "All: <!channel> <!here|here> <!EVERYONE> <!subteam^S1> <@U001> <#C001> <!date^1^x|y> `<!channel>` x < y && <b>"


async def test_what_the_model_says_calls_nobody(house: House, server: SlackServer) -> None:
    house.engine.add(PINGS)
    async with running(house, server):
        await server.say("shout")
        await server.until(lambda: len(server.seen()) > 1 and server.seen()[1].actions == {Action.RETRY})
    assert server.room.pings == []
    assert server.seen()[1].visible == visible(PINGS)


async def test_refused_markup_is_sent_plain(house: House, server: SlackServer) -> None:
    server.room.refuses_markdown = True
    house.engine.add("**bold** & <!channel>")
    async with running(house, server):
        await server.say("hello")
        await server.until(lambda: len(server.seen()) > 1 and server.seen()[1].actions == {Action.RETRY})
    assert bots(server.seen()) == ["**bold** & <!channel>"]
    assert server.room.messages[server.seen()[1].id].blocks == []
    assert server.room.pings == []


# Trouble on the way


async def test_a_wait_is_obeyed_and_the_last_edit_lands(house: House, server: SlackServer) -> None:
    house.engine.add([*"abcdef"])
    server.script = trouble_at(0, 2, 3, kind="429", seconds=5)
    async with running(house, server):
        await server.say("spell")
        await answered(server, "abcdef")


@pytest.mark.parametrize("kind", ["500", "timeout", "lost"])
@pytest.mark.parametrize("direct", [False, True])
async def test_whatever_gets_lost_a_reply_is_sent_once(
    house: House, server: SlackServer, kind: str, direct: bool
) -> None:
    server.script = trouble_at(0, 2, 4, kind=kind)
    house.engine.add("字" * 15_000)
    place = "Mei" if direct else "general"
    async with running(house, server):
        await server.say("long", direct=direct)
        await server.until(lambda: len(server.seen(place)) > 2 and server.seen(place)[-1].actions == {Action.RETRY})
        await server.until(lambda: "".join(bots(server.seen(place))) == "字" * 15_000)
    assert len(bots(server.seen(place))) == 2


async def test_a_message_sent_before_a_crash_is_found_again(tmp_path: Path, server: SlackServer) -> None:
    async with a_house(tmp_path) as house:

        async def crash(exchange: int, part: int, message_id: str) -> None:
            raise StoreError("the disk is full")

        house.dispatcher.placed = crash  # type: ignore[method-assign]  # the id is lost between send and store
        async with running(house, server):
            await server.say("some words before", mention=False)
            await server.say("hello")
            await answered(server, "…")
    async with a_house(tmp_path) as house, running(house, server):
        await answered(server, "ok")


async def test_what_could_not_be_kept_comes_again(house: House, server: SlackServer) -> None:
    begin, failures = house.store.begin, [StoreError("the database is locked")] * 2

    async def failing(message: IncomingMessage, kind: Kind) -> Exchange | None:
        if failures:
            raise failures.pop()
        return await begin(message, kind)

    house.store.begin = failing  # type: ignore[method-assign]  # a database that is locked for a moment
    server.patience = 0.3
    async with running(house, server):
        await server.say("hello", direct=True)
        await answered(server, "ok", channel="Mei")
        await server.until(lambda: server.is_quiet)
    assert len(server.deliveries) == 3
    assert len(house.engine.requests) == 1


async def test_a_channel_that_is_gone_ends_the_exchange(house: House, server: SlackServer) -> None:
    server.refused["chat.postMessage"] = "is_archived"
    async with running(house, server):
        question = await server.say("hello")
        await becomes(house, Status.FAILED, server.room.channel("general"), question)


FUZZ: list[dict[str, Any]] = [
    {"type": "message"},
    {"type": "message", "subtype": "message_changed"},
    {"type": "message", "subtype": "message_changed", "message": "?"},
    {"type": "message", "subtype": "message_deleted", "channel": 7},
    {"type": "message", "channel": "C001", "user": "U001", "ts": "yesterday", "text": "<@UBOT> hi"},
    {"type": "message", "channel": "C001", "user": {"id": "U001"}, "ts": "1.1", "text": "<@UBOT> hi"},
    {"type": "message", "channel": "C001", "user": "U001", "ts": "1.1", "text": None, "thread_ts": 5},
    {"type": "message", "channel": "C001", "user": "UBOT", "ts": "1.1", "text": "<@UBOT> hi"},
    {"type": "message", "channel": "C001", "subtype": "bot_message", "bot_id": "B9", "ts": "1.1", "text": "<@UBOT>"},
    {"type": "message", "channel": "C001", "subtype": "channel_join", "user": "U001", "ts": "1.1", "text": "<@UBOT>"},
    {"type": "reaction_added", "user": "U001"},
]


async def test_strange_events_do_no_harm(house: House) -> None:
    async with SlackServer(retries=(), patience=0.3) as server:
        async with running(house, server):
            for event in FUZZ:
                server.emit({"event_ts": "1.1", "ts": "1.1", **event})
            await server.until(lambda: server.is_quiet)
            await server.say("hello")
            await answered(server, "ok")
        assert len(house.engine.requests) == 1


# The connection


async def test_what_was_said_while_the_bot_was_away_is_answered_in_order(tmp_path: Path, server: SlackServer) -> None:
    async with a_house(tmp_path) as house, running(house, server):
        thread = await server.say("first")
        await server.say("direct", direct=True)
        await answered(server, "ok")
        await answered(server, "ok", channel="Mei")
        await server.until(lambda: server.is_quiet)
    await server.disconnect(resumable=False)
    for number in range(5):
        await server.say(f"missed {number}", channel="general", thread=thread if number % 2 else None)
    await server.say("missed in a thread", thread=thread, mention=False)
    called_in = await server.say("among people", mention=False)
    await server.say("and you?", thread=called_in)
    await server.say("missed", direct=True)
    await server.say("a talk", mention=False)
    async with a_house(tmp_path) as house, running(house, server):
        await server.until(lambda: len(house.engine.requests) == 8)
        await server.until(lambda: bots(server.seen()) == ["ok"] * 8 and bots(server.seen("Mei")) == ["ok"] * 2)
        said = [request.messages[-1].content for request in house.engine.requests]
    in_thread = ["Mei: missed 1", "Mei: missed 3", "Mei: missed in a thread"]
    assert [text for text in said if text in in_thread] == in_thread
    assert "> among people\n\nMei: and you?" in said
    assert "Mei: a talk" not in said


async def test_a_channel_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path, server: SlackServer) -> None:
    async with a_house(tmp_path) as house, running(house, server):
        await server.say("hello")
        await server.command("status", channel="other")
        await server.until(lambda: bool(bots(server.seen())) and bool(bots(server.seen("other"))))
        await server.until(lambda: server.is_quiet)
    await server.disconnect(resumable=False)
    await server.say("missed", channel="other")
    server.gone.add(server.room.channel("general"))
    async with a_house(tmp_path) as house, running(house, server):
        await server.until(lambda: "ok" in bots(server.seen("other")))


async def test_a_lost_socket_is_replaced_and_nothing_is_missed(house: House, server: SlackServer) -> None:
    async with running(house, server):
        await server.say("one", channel="a")
        await answered(server, "ok", channel="a")
        await server.disconnect(resumable=False)
        await server.say("two", channel="a")
        await answered(server, "ok", "ok", channel="a")
        assert server.calls.count("apps.connections.open") == 2


async def test_a_refreshed_socket_goes_on(house: House, server: SlackServer) -> None:
    async with running(house, server):
        await server.refresh()
        await server.until(lambda: server.links == 2 and server.sockets == 1)
        await server.say("hello")
        await answered(server, "ok")


async def test_a_ticket_that_is_dead_is_replaced(house: House, server: SlackServer, monkeypatch: Any) -> None:
    monkeypatch.setattr("bot.adapters.slack_socket._CONNECT_SECONDS", 0.2)
    server.dead_tickets = 2
    async with running(house, server):
        await server.say("hello")
        await answered(server, "ok")
    assert server.calls.count("apps.connections.open") == 3


async def test_slack_may_be_down_at_the_start(house: House, server: SlackServer) -> None:
    server.refused |= {"auth.test": "internal_error", "apps.connections.open": "ratelimited"}
    task = asyncio.create_task(server.adapter(FastClock()).run(house.dispatcher))
    await server.until(lambda: server.calls.count("auth.test") > 2)
    del server.refused["auth.test"]
    await server.until(lambda: server.calls.count("apps.connections.open") > 0)
    server.refused.clear()
    await server.until(lambda: server.sockets == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("settings", "name"), [({"bot_token": "xoxb-no"}, "BOT_SLACK__BOT_TOKEN"), ({"app_token": "xapp-no"}, "APP_TOKEN")]
)
async def test_a_wrong_token_is_one_clear_sentence(house: House, settings: dict[str, Any], name: str) -> None:
    async with SlackServer(**settings) as server:
        with pytest.raises(LoginRefused, match=name):
            async with running(house, server):
                pass


# HTTP


async def test_events_commands_and_buttons_come_by_signed_requests(house: House) -> None:
    async with SlackServer(mode="http") as server, running(house, server):
        house.engine.add("one", "two")
        await server.say("hello")
        await server.until(lambda: len(server.seen()) > 1 and server.seen()[1].actions == {Action.RETRY})
        await server.press(server.seen()[1].id, Action.RETRY)
        await answered(server, "two")
        await server.command("clear")
        await answered(server, "two", "Forgotten: everything said here (1).")
        assert server.violations == []


async def test_a_request_with_a_wrong_signature_is_refused(house: House) -> None:
    async with SlackServer(mode="http") as server, running(house, server):
        body = '{"type": "event_callback", "event": {"type": "message", "channel": "D1", "user": "U1", "ts": "1.1"}}'
        assert await server.post(body, "application/json", {}, secret="guessed") == 401
    assert house.engine.requests == []


async def test_a_port_that_is_taken_is_named(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with SlackServer(mode="http", port=taken.getsockname()[1]) as server:
            with pytest.raises(PlatformError, match=r"adapters\.slack\.port"):
                await server.adapter(FastClock()).run(house.dispatcher)


# Setting up


def test_tokens_are_asked_for_as_the_mode_needs_them() -> None:
    assert SlackSection().missing() == ("bot_token", "app_token")
    assert SlackSection(mode="http").missing() == ("bot_token", "signing_secret")
    with pytest.raises(ValidationError):
        SlackSection(bot_token=SecretStr("xoxb-1"))


def test_the_manifest_asks_for_what_the_bot_uses() -> None:
    manifest = Path("docs/slack-manifest.yaml").read_text(encoding="utf-8")
    scopes = manifest.partition("    bot:\n")[2].partition("settings:")[0]
    assert {line.strip("- ") for line in scopes.split("\n") if line.strip()} == SCOPES
    assert all(name in manifest.partition("usage_hint:")[2].partition("\n")[0] for name in COMMANDS)


@pytest.mark.parametrize("wait", ["soon", None])
def test_a_wait_of_unknown_length_is_half_a_minute(wait: str | None) -> None:
    assert str(meaning(429, "ratelimited", wait)) == "the platform asks to wait 30 s"


def test_an_answer_that_is_no_json_passes() -> None:
    with pytest.raises(PlatformUnavailable), translated():
        raise SlackApiError("not JSON", object())  # type: ignore[no-untyped-call]  # the library says nothing of it


async def test_what_slack_says_for_the_first_time_is_told_as_it_is(server: SlackServer) -> None:
    server.refused["chat.postMessage"] = "moon_phase_wrong"
    async with web_api(server.settings()) as api:
        messenger = SlackMessenger(api, 1.0)
        with pytest.raises(PlatformError, match="moon_phase_wrong"):
            await messenger.send(
                ChannelKey("slack", "C1"), Rendered("hi"), reply_to=None, controls=frozenset(), nonce="1.0.0"
            )


async def found(server: SlackServer) -> list[tuple[bool, str]]:
    return [(finding.is_ok, finding.text) async for finding in inspect(server.settings())]


async def test_check_online_tells_what_is_well(server: SlackServer) -> None:
    findings = await found(server)
    assert [is_ok for is_ok, _ in findings] == [True] * 3
    assert "@chatglm" in findings[0][1]


async def test_check_online_names_missing_scopes_and_wrong_tokens(server: SlackServer) -> None:
    server.scopes -= {"users:read"}
    server.refused["apps.connections.open"] = "missing_scope"
    findings = await found(server)
    assert [is_ok for is_ok, _ in findings] == [True, False, False]
    assert "lacks users:read" in findings[1][1]
    server.refused["auth.test"] = "account_inactive"
    assert [is_ok for is_ok, _ in await found(server)] == [False]
