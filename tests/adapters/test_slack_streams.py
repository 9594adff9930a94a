"""Slack: replies that grow as streams, and what happens where a stream is refused, lost or stopped."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from bot.delivery.markdown.blocks import visible_text
from bot.domain import Action, Status
from tests.adapters.growing import grow
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import TIMEOUT
from tests.harness.servers.slack import AskingInChats, SlackServer
from tests.harness.slack_harness import answered, asked, becomes, bots, running, trouble_at

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
LONG = "第一段。 A word, `code` and **bold**.\n\n" * 60


@pytest.fixture
async def agent() -> AsyncIterator[SlackServer]:
    async with AskingInChats() as server:
        yield server
        assert server.violations == []
        assert server.agents.left_open == []
        assert server.workspace.pings == []


def streaming(server: SlackServer) -> bool:
    return bool(server.agents.open_streams)


def orphan(server: SlackServer, question: str) -> str:
    """Start a stream below a question, as a run that was killed before it stored the id; return the id."""
    message = server.workspace.messages[question]
    return str(server.agents.start({"channel": message.channel, "thread_ts": message.root})["ts"])


async def finished(server: SlackServer, text: str, channel: str = "general") -> None:
    """Wait until one message has this text, and the buttons of a complete answer."""
    await answered(server, text, channel=channel)
    await server.until(lambda: server.seen(channel)[-1].actions == {Action.RETRY})


async def test_an_answer_is_appended_to_a_stream_and_its_end_has_the_button(
    harness: Harness, agent: SlackServer
) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["one two ", go_on, "three"])
    async with running(harness, agent):
        await agent.say("count")
        await answered(agent, "one tw")
        assert streaming(agent)
        assert set(agent.agents.sessions.values()) == {"processing"}
        assert set(agent.agents.titles.values()) == {"count"}
        go_on.set()
        await finished(agent, "one two three")
    assert "chat.postMessage" not in agent.calls
    assert "chat.update" not in agent.calls
    assert set(agent.agents.sessions.values()) == {"active"}
    message = agent.workspace.messages[agent.seen()[-1].id]
    assert message.metadata is not None
    assert "nonce" in message.metadata["event_payload"]


async def test_a_long_answer_is_a_stream_for_each_message(harness: Harness, agent: SlackServer) -> None:
    harness.engine.add([LONG] * 12)
    async with running(harness, agent):
        await agent.say("a long one")
        await agent.until(lambda: len(agent.seen()) > 2 and agent.seen()[-1].actions == {Action.RETRY})
    assert "".join("".join(bots(agent.seen())).split()) == "".join((LONG * 12).split())


async def test_a_question_that_waits_is_an_empty_stream_below_slacks_sign_of_work(
    agent: SlackServer, tmp_path: Path
) -> None:
    go_on = asyncio.Event()
    engine = ScriptedEngine(max_batch_size=1)
    engine.add(["first", go_on], "second")
    async with make_harness(tmp_path, engine) as harness, running(harness, agent):
        await agent.say("one", channel="Mei")
        await answered(agent, "firs", channel="Mei")
        await agent.say("two", channel="Ann")
        await answered(agent, "", channel="Ann")
        assert [*agent.agents.sessions.values()] == ["processing", "processing"]
        go_on.set()
        await finished(agent, "second", "Ann")
        await finished(agent, "first", "Mei")


@pytest.mark.parametrize("code", ["unknown_method", "missing_scope", "channel_type_not_supported", "a_new_code"])
@pytest.mark.parametrize("method", ["agents.sessions.setStatus", "chat.startStream"])
async def test_where_streams_are_refused_replies_are_edited_and_the_method_is_not_asked_again(
    harness: Harness, agent: SlackServer, method: str, code: str
) -> None:
    agent.refused[method] = code
    harness.engine.add(["one ", "two"], ["three ", "four"])
    async with running(harness, agent):
        await agent.say("first")
        await finished(agent, "one two")
        await agent.say("second")
        await answered(agent, "one two", "three four")
    assert agent.calls.count(method) == 1
    assert "chat.appendStream" not in agent.calls


async def test_without_slacks_stop_control_replies_have_a_button_and_are_edited(
    harness: Harness, agent: SlackServer
) -> None:
    agent.agents.warning = "missing_agent_session_stopped_event_subscription"
    go_on = asyncio.Event()
    harness.engine.add(["one", go_on])
    async with running(harness, agent):
        await agent.say("count")
        await answered(agent, "one")
        assert agent.seen()[-1].actions == {Action.STOP}
        go_on.set()
        await finished(agent, "one")


@pytest.mark.parametrize("is_direct", [True, False])
async def test_without_a_chat_replies_are_edited(harness: Harness, is_direct: bool) -> None:
    harness.engine.add(["one ", "two"])
    async with SlackServer(is_agent=True) as server, running(harness, server):
        await server.say("count", direct=is_direct)
        await finished(server, "one two", "Mei" if is_direct else "general")
    assert server.violations == []
    assert server.agents.sessions == {}
    assert "chat.startStream" not in server.calls


# Faults: writing calls are the session (0), the start (1), then appends and the end


@pytest.mark.parametrize("kind", ["429", "500", "timeout", "lost"])
@pytest.mark.parametrize("number", range(8))
async def test_a_call_that_fails_or_whose_response_is_lost_leaves_one_whole_answer(
    harness: Harness, agent: SlackServer, kind: str, number: int
) -> None:
    agent.script = trouble_at(number, kind=kind, seconds=1)
    harness.engine.add([LONG[at : at + 200] for at in range(0, 1600, 200)])
    async with running(harness, agent):
        await agent.say("tell me")
        await finished(agent, LONG[:1600])


@pytest.mark.parametrize("method", ["chat.startStream", "chat.appendStream", "chat.stopStream"])
async def test_a_call_that_was_executed_but_answered_with_a_rate_limit_changes_nothing(
    harness: Harness, agent: SlackServer, method: str
) -> None:
    limited: list[str] = []

    async def rewrite(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        if limited or not request.path.endswith(method):
            return response
        limited.append(request.path)
        return web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers={"Retry-After": "1"})

    agent.gate.rewrite = rewrite
    go_on = asyncio.Event()
    harness.engine.add([LONG[:200], go_on, LONG[200:1600]])
    async with running(harness, agent):
        await agent.say("tell me")
        await agent.until(lambda: len(agent.seen()) > 1 and len(agent.seen()[-1].markdown) > 100)
        go_on.set()
        await finished(agent, LONG[:1600])
    assert limited


async def test_a_stream_that_slack_has_ended_is_edited(harness: Harness, agent: SlackServer) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["one two ", go_on, "three"])
    async with running(harness, agent):
        await agent.say("count")
        await answered(agent, "one tw")
        agent.agents.lifetime = 0.0
        go_on.set()
        await finished(agent, "one two three")


async def test_slacks_stop_control_stops_the_answer(harness: Harness, agent: SlackServer) -> None:
    harness.engine.add(["one two ", asyncio.Event()])
    async with running(harness, agent):
        await agent.say("count")
        await answered(agent, "one tw")
        await agent.stop_session(agent.seen()[-1].id)
        await agent.until(lambda: agent.seen()[-1].actions == {Action.RETRY})
    assert bots(agent.seen())[0].startswith("one two")


async def test_slacks_stop_control_stops_an_answer_that_is_edited(harness: Harness, agent: SlackServer) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["one two ", go_on, "three ", asyncio.Event()])
    async with running(harness, agent):
        await agent.say("count")
        await answered(agent, "one tw")
        agent.agents.lifetime = 0.0
        go_on.set()
        await answered(agent, "one two three ")
        assert not streaming(agent)
        await agent.stop_session(agent.seen()[-1].id)
        await agent.until(lambda: agent.seen()[-1].actions == {Action.RETRY})
    assert bots(agent.seen())[0].startswith("one two three")


async def test_slacks_stop_control_stops_an_answer_whose_stream_is_being_started(
    harness: Harness, agent: SlackServer
) -> None:
    go_on = asyncio.Event()

    async def guard(request: web.Request) -> web.Response | None:
        if request.path.endswith("chat.startStream"):
            await go_on.wait()
        return None

    agent.gate.guard = guard
    harness.engine.add(["one two ", asyncio.Event()])
    async with running(harness, agent):
        question = await agent.say("count")
        await harness.engine.asked(1)
        await agent.until(lambda: set(agent.agents.sessions.values()) == {"processing"})
        await agent.stop_session(question)
        async with asyncio.timeout(TIMEOUT):
            while [row.status for row in await harness.store.said_since("slack", LONG_AGO)] != [Status.ANSWERED]:
                pass
        go_on.set()
        await agent.until(lambda: agent.seen()[-1].actions == {Action.RETRY})


async def test_somebody_else_who_uses_slacks_stop_control_is_told_why_the_answer_goes_on(
    harness: Harness, agent: SlackServer
) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["one two ", go_on, "three"])
    async with running(harness, agent):
        await agent.say("count")
        await answered(agent, "one tw")
        await agent.stop_session(agent.seen()[-1].id, author="Eve")
        await agent.until(lambda: "chat.postEphemeral" in agent.calls)
        go_on.set()
        await answered(agent, "one two three", "Only the person who asked, and admins, may do that.")
    notice = agent.workspace.messages[agent.seen()[-1].id]
    assert notice.for_user == agent.workspace.user("Eve")


async def test_the_title_of_a_chat_is_no_quotation(harness: Harness, agent: SlackServer) -> None:
    harness.engine.add("hello")
    async with running(harness, agent):
        await agent.say("good morning")
        await finished(agent, "hello")
    assert asked(harness, 0)[-1] == "good morning"


async def test_what_turns_into_a_ping_later_is_neutralised(harness: Harness, agent: SlackServer) -> None:
    harness.engine.add([*"Hello <!channel> and <@U001>, good bye to all of you"])
    async with running(harness, agent):
        await agent.say("shout")
        await agent.until(lambda: agent.seen()[-1].actions == {Action.RETRY})
    assert agent.seen()[-1].visible == visible_text("Hello <!channel> and <@U001>, good bye to all of you")


async def test_a_stream_of_an_earlier_run_is_ended_and_gets_the_whole_answer(
    agent: SlackServer, tmp_path: Path
) -> None:
    engine = ScriptedEngine()
    engine.add(["one two ", asyncio.Event()], ["three four"])
    async with make_harness(tmp_path, engine) as harness:
        async with running(harness, agent):
            question = await agent.say("count")
            await answered(agent, "one tw")
        async with running(harness, agent):
            await finished(agent, "three four")
            await becomes(harness, Status.DELIVERED, agent.workspace.direct("general"), question)


@pytest.mark.parametrize("ends", [True, False], ids=["ended by Slack", "open"])
async def test_a_stream_of_an_earlier_run_gets_its_nonce_and_its_session_ends(
    agent: SlackServer, tmp_path: Path, *, ends: bool
) -> None:
    engine = ScriptedEngine()
    engine.add(["one two ", asyncio.Event()], ["three four"])
    async with make_harness(tmp_path, engine) as harness:
        async with running(harness, agent):
            question = await agent.say("count")
            await answered(agent, "one tw")
        if ends:
            agent.agents.lifetime = -1.0
        async with running(harness, agent):
            await finished(agent, "three four")
    metadata = agent.workspace.messages[agent.seen()[-1].id].metadata
    assert metadata is not None
    assert metadata["event_payload"]["answers"] == question


async def test_a_further_stream_whose_id_was_not_stored_gets_the_rest_of_the_answer(
    agent: SlackServer, tmp_path: Path
) -> None:
    engine = ScriptedEngine()
    engine.add([LONG, asyncio.Event()], [LONG] * 7)
    async with make_harness(tmp_path, engine) as harness:
        async with running(harness, agent):
            question = await agent.say("a long one")
            await agent.until(lambda: bool(bots(agent.seen())) and len(bots(agent.seen())[0]) > 1000)
        lost = orphan(agent, question)
        async with running(harness, agent):
            await agent.until(lambda: agent.seen()[-1].actions == {Action.RETRY})
    shown = {seen.id: seen.markdown for seen in agent.seen() if seen.author == "bot"}
    assert "".join("".join(shown.values()).split()) == "".join((LONG * 7).split())
    assert shown[lost]


async def test_two_chats_whose_streams_were_not_stored_keep_them(agent: SlackServer, tmp_path: Path) -> None:
    engine = ScriptedEngine(default=lambda request: "the answer")
    async with make_harness(tmp_path, engine) as harness:
        questions = [await agent.say(f"question {number}") for number in range(3)]
        lost = [orphan(agent, question) for question in questions]
        async with running(harness, agent):
            await agent.until(lambda: bots(agent.seen()) == ["the answer"] * 3)
            await agent.until(lambda: "processing" not in agent.agents.sessions.values())
    assert [seen.id for seen in agent.seen() if seen.author == "bot"] == lost


async def test_a_stream_whose_id_was_not_stored_is_found_in_its_thread(agent: SlackServer, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine.add("the answer")
    async with make_harness(tmp_path, engine) as harness:
        question = await agent.say("count")
        lost = orphan(agent, question)
        async with running(harness, agent):
            await finished(agent, "the answer")
        assert agent.seen()[-1].id == lost


async def test_more_replies_than_slack_lets_start_as_streams_are_edited(agent: SlackServer, tmp_path: Path) -> None:
    engine = ScriptedEngine(default=lambda request: ["an ", "answer"], max_batch_size=30, max_waiting=30)
    agent.per_minute = {"chat.startStream": 20, "chat.stopStream": 20}
    async with make_harness(tmp_path, engine) as harness, running(harness, agent):
        channels = [f"room{number}" for number in range(25)]
        for channel in channels:
            await agent.say("hi", channel=channel, author=channel)
        await agent.until(lambda: all(bots(agent.seen(each)) == ["an answer"] for each in channels))
        await agent.until(lambda: all(agent.seen(each)[-1].actions == {Action.RETRY} for each in channels))
    assert agent.over_limit == 0
    assert "chat.postMessage" in agent.calls


@pytest.mark.parametrize(("form", "method"), [("slack", "chat.update"), ("slack-streams", "chat.appendStream")])
async def test_growing_replies_keep_to_the_limits_of_a_minute(form: str, method: str) -> None:
    growing = await grow(form, seconds=20.0, factor=20.0)
    assert growing.refused == 0
    assert growing.calls[method] > 0


# Suggested prompts


async def test_the_chat_with_an_agent_suggests_prompts_in_the_readers_language(
    harness: Harness, agent: SlackServer
) -> None:
    agent.workspace.locales["Wei"] = "zh-CN"
    async with running(harness, agent):
        agent.open_chat(author="Mei")
        agent.open_chat(author="Wei")
        thread = agent.open_assistant(author="Mei")
        await agent.until(lambda: len(agent.agents.prompts) == 3)
    first = {
        (each["channel_id"], each.get("thread_ts")): each["prompts"][0]["message"] for each in agent.agents.prompts
    }
    assert first == {
        (agent.workspace.direct("Mei"), None): "What can you help me with?",
        (agent.workspace.direct("Wei"), None): "你能帮我做什么？",
        (agent.workspace.direct("Mei"), thread): "What can you help me with?",
    }


async def test_prompts_that_are_refused_are_not_suggested_again(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        server.open_chat(author="Mei")
        await server.until(lambda: "assistant.threads.setSuggestedPrompts" in server.calls)
        await server.until(lambda: server.is_quiet)
        server.open_chat(author="Mei")
        await server.until(lambda: server.is_quiet)
    assert server.calls.count("assistant.threads.setSuggestedPrompts") == 1
