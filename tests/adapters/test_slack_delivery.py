"""Slack: how replies look, and how they arrive when calls fail."""

import asyncio
import re
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from bot.adapters.slack.messenger import SlackFormat
from bot.config.schema import LimitsSection
from bot.delivery.markdown.blocks import is_balanced, visible_text
from bot.domain import Action, Exchange, IncomingMessage, Kind, Status
from bot.errors import StoreError
from tests.harness.fakes import ScriptedEngine
from tests.harness.fakes.clock import FastClock
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import Fault
from tests.harness.servers.slack import SlackServer
from tests.harness.slack_harness import answered, becomes, bots, running, trouble_at

# Appearance


async def test_an_answer_is_streamed_by_edits_of_one_message(harness: Harness, server: SlackServer) -> None:
    go_on = asyncio.Event()
    harness.engine.add(["one ", go_on, "two"])
    async with running(harness, server):
        await server.say("count")
        await answered(server, "one ")
        first = server.seen()[1].id
        go_on.set()
        await answered(server, "one two")
    assert server.seen()[1].id == first
    assert server.calls.count("chat.postMessage") == 1


async def test_a_long_answer_continues_in_further_messages(harness: Harness, server: SlackServer) -> None:
    text = "第一段。\n\n```py\n" + "print('你好')\n" * 2000 + "```\n\n完了。"
    harness.engine.add(text)
    async with running(harness, server):
        await server.say("a long one")
        await server.until(lambda: "".join(map(visible_text, bots(server.seen()))) == visible_text(text))
    assert len(bots(server.seen())) == 3
    assert all(map(is_balanced, bots(server.seen())))


PINGS = "All: <!channel> <!here|here> <!EVERYONE> <!subteam^S1> <@U001> <#C001> <!date^1^x|y> `<!channel>` x < y && <b>"


async def test_the_models_text_pings_no_user(harness: Harness, server: SlackServer) -> None:
    harness.engine.add(PINGS)
    async with running(harness, server):
        await server.say("shout")
        await server.until(lambda: len(server.seen()) > 1 and server.seen()[1].actions == {Action.RETRY})
    assert server.workspace.pings == []
    assert server.seen()[1].visible == visible_text(PINGS)


async def test_refused_markup_is_sent_as_plain_text(harness: Harness, server: SlackServer) -> None:
    server.workspace.refuses_markdown = True
    harness.engine.add("**bold** & <!channel>")
    async with running(harness, server):
        await server.say("hello")
        await server.until(lambda: len(server.seen()) > 1 and server.seen()[1].actions == {Action.RETRY})
    assert bots(server.seen()) == ["**bold** & <!channel>"]
    assert server.workspace.messages[server.seen()[1].id].blocks == []
    assert server.workspace.pings == []


# Faults


async def test_a_rate_limit_is_obeyed_and_the_last_edit_lands(harness: Harness, server: SlackServer) -> None:
    harness.engine.add([*"abcdef"])
    server.script = trouble_at(0, 2, 3, kind="429", seconds=5)
    async with running(harness, server):
        await server.say("spell")
        await answered(server, "abcdef")


@pytest.mark.parametrize("kind", ["500", "timeout", "lost"])
@pytest.mark.parametrize("direct", [False, True])
async def test_a_failed_or_lost_send_does_not_duplicate_the_reply(
    harness: Harness, server: SlackServer, kind: str, direct: bool
) -> None:
    server.script = trouble_at(0, 2, 4, kind=kind)
    harness.engine.add("字" * 15_000)
    place = "Mei" if direct else "general"
    async with running(harness, server):
        await server.say("long", direct=direct)
        await server.until(lambda: len(server.seen(place)) > 2 and server.seen(place)[-1].actions == {Action.RETRY})
        await server.until(lambda: "".join(bots(server.seen(place))) == "字" * 15_000)
    assert len(bots(server.seen(place))) == 2


async def test_a_message_whose_send_was_answered_with_a_rate_limit_is_not_sent_again(
    harness: Harness, server: SlackServer
) -> None:
    limited: list[str] = []

    async def rewrite(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        if limited or not request.path.endswith("chat.postMessage"):
            return response
        limited.append(request.path)
        return web.json_response({"ok": False, "error": "ratelimited"}, status=429, headers={"Retry-After": "1"})

    server.gate.rewrite = rewrite
    async with running(harness, server):
        await server.say("hello")
        await answered(server, "ok")
    assert limited
    assert bots(server.seen()) == ["ok"]


async def test_a_message_sent_before_a_crash_is_found_again(
    tmp_path: Path, server: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_harness(tmp_path) as harness:

        async def crash(exchange: Exchange, part: int, message_id: str) -> bool:
            raise StoreError("the disk is full")

        monkeypatch.setattr(harness.store, "record_part", crash)  # the id is lost between send and store
        async with running(harness, server):
            await server.say("some words before", mention=False)
            await server.say("hello")
            await answered(server, "…")
    async with make_harness(tmp_path) as harness, running(harness, server):
        await answered(server, "ok")


WAITS = "I can't save messages right now. Yours is queued and will be answered."


async def test_a_message_that_cannot_be_stored_is_retried_and_its_author_notified(
    harness: Harness, server: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue, failures = harness.store.enqueue, [StoreError("the database is locked")] * 2

    async def failing(message: IncomingMessage, kind: Kind, *, claim: bool = True) -> Exchange | None:
        if failures:
            raise failures.pop()
        return await enqueue(message, kind, claim=claim)

    monkeypatch.setattr(harness.store, "enqueue", failing)
    async with running(harness, server):
        await server.say("hello", direct=True)
        await answered(server, WAITS, "ok", channel="Mei")
        await server.until(lambda: server.is_quiet)
    assert len(harness.engine.requests) == 1


async def test_a_write_whose_acknowledgement_was_lost_is_answered_at_once(
    harness: Harness, server: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shield, lossy = harness.store._shield, {"enqueue"}

    async def lose(name: str, work: Coroutine[Any, Any, object]) -> object:
        result = await shield(name, work)
        if name in lossy:
            lossy.remove(name)
            raise StoreError("the connection was lost during the commit")
        return result

    monkeypatch.setattr(harness.store, "_shield", lose)
    async with running(harness, server):
        question = await server.say("hello", direct=True)
        await answered(server, WAITS, "ok", channel="Mei")
        await server.until(lambda: server.is_quiet)
        lossy.add("requeue")
        harness.engine.add("better")
        await server.edit(question, "good morning")
        await answered(server, WAITS, "better", channel="Mei")
        await server.until(lambda: server.is_quiet)
    assert len(harness.engine.requests) == 2


@pytest.mark.parametrize("code", ["not_in_channel", "restricted_action_thread_locked", "is_archived"])
async def test_an_answer_goes_on_when_a_permission_comes_back(harness: Harness, server: SlackServer, code: str) -> None:
    goes_on = asyncio.Event()
    harness.engine.add(["春眠不觉晓，", goes_on, "处处闻啼鸟。"])
    async with running(harness, server):
        await server.say("a poem, please")
        await answered(server, "春眠不觉晓，")
        edits = server.calls.count("chat.update")
        server.refused["chat.update"] = code
        goes_on.set()
        await server.until(lambda: server.calls.count("chat.update") > edits + 1)
        del server.refused["chat.update"]
        await answered(server, "春眠不觉晓，处处闻啼鸟。")


async def test_a_deleted_channel_fails_the_exchange(harness: Harness, server: SlackServer) -> None:
    server.refused["chat.postMessage"] = "channel_not_found"
    async with running(harness, server):
        question = await server.say("hello")
        await becomes(harness, Status.FAILED, server.workspace.channel("general"), question)


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


async def test_malformed_events_are_skipped(harness: Harness) -> None:
    async with SlackServer(retries=(), patience=0.3) as server:
        async with running(harness, server):
            for event in FUZZ:
                server.emit({"event_ts": "1.1", "ts": "1.1", **event})
            await server.until(lambda: server.is_quiet)
            await server.say("hello")
            await answered(server, "ok")
        assert len(harness.engine.requests) == 1


UNLIMITED = LimitsSection(
    requests_per_minute=0, requests_per_minute_channel=0, waiting_per_user=0, waiting_per_channel=0
)


async def test_a_restart_at_any_moment_answers_each_question_once(tmp_path: Path, server: SlackServer) -> None:
    random = Random(4)
    server.script = lambda number, name: Fault("lost") if number % 5 == 4 else None
    questions: list[str] = []

    def echo() -> ScriptedEngine:
        return ScriptedEngine(default=lambda request: ["echo ", request.messages[-1].content.removeprefix("Mei: ")])

    def is_done() -> bool:
        seen = [*bots(server.seen()), *bots(server.seen("Mei"))]
        return sorted(seen) == sorted(f"echo {question}" for question in questions)

    def is_enough(calls: int) -> bool:
        return len(server.calls) >= calls or is_done()

    for _ in range(15):
        async with make_harness(tmp_path, echo(), limits=UNLIMITED) as harness:
            # Not `running`: the adapter may be cancelled before it is connected.
            task = asyncio.create_task(server.adapter(FastClock()).run(harness.intake))
            for direct in (False, True):
                questions.append(f"question {len(questions)}")
                await server.say(questions[-1], direct=direct)
            # The first two are answered, so that their channels are known to the backfill.
            enough = len(server.calls) + (random.randrange(15) if len(questions) > 2 else 10**6)
            await server.until(partial(is_enough, enough))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    async with make_harness(tmp_path, echo(), limits=UNLIMITED) as harness, running(harness, server):
        await server.until(is_done)


@given(st.text(alphabet="<>!@#&^|`*chanelrubtmpCU01 \n好", max_size=80))
def test_neutralised_text_is_unchanged_and_pings_no_user(text: str) -> None:
    rendered = SlackFormat().render(f"{text}<!channel>")
    assert rendered.text.replace("\u2060", "") == f"{text}<!channel>"
    assert re.search(r"<(?:!(?:channel|here|subteam)|@[CU])", rendered.text) is None
