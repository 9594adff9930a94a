"""Slack: answers of the Web API that are wrong."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import pytest
from aiohttp import web

from bot.adapters.slack.client import web_api
from bot.domain import Action, ChatRequest
from bot.errors import (
    AccessDenied,
    ChannelGone,
    ContentRefused,
    EditRefused,
    MarkupRefused,
    MessageGone,
    PlatformError,
    PlatformUnavailable,
    RateLimited,
)
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.fakes.clock import FastClock
from tests.harness.harness import NO_LIMITS, make_harness
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.wrong_answers import WRONG_ANSWERS, Answer
from tests.harness.slack_harness import answered, bots

LONG = "字" * 12_000

# Answers of Slack's own form that leave out, or distort, what was asked for.
HOLLOW: dict[str, bytes] = {
    "done, without a word": b'{"ok": true}',
    "numbers": b'{"ok": true, "ts": 17.5, "url": 7, "user_id": 1, "team_id": [], "messages": 3, "user": 4}',
    "nulls": b'{"ok": true, "ts": null, "url": null, "user_id": null, "messages": null, "user": null}',
    "words": b'{"ok": true, "ts": "now", "url": "here", "user_id": "not an id", "messages": "none", "user": "Mei"}',
    "messages of no shape": b'{"ok": true, "messages": null, "response_metadata": [], "user": {"profile": 1}}',
}


def hollow(body: bytes) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type="application/json")

    return answer


ANSWERS = WRONG_ANSWERS | {kind: hollow(body) for kind, body in HOLLOW.items()}
RUNS = 15
KINDS = Random(14).sample(sorted(ANSWERS), len(ANSWERS))


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some wrong answers never end; a right one that is late on a busy machine is repeated."""
    monkeypatch.setattr("bot.adapters.slack.client._CALL_SECONDS", 0.3)


def echo(request: ChatRequest) -> list[str]:
    said = request.messages[-1].content.rpartition(": ")[2]
    return [LONG, said] if said == "long" and len(request.messages) == 1 else ["echo ", said]


def wrong(server: SlackServer, choose: Callable[[str, bool], Answer | None]) -> None:
    """Answer calls with what `choose` returns for a method, before its work (False) or after it (True)."""

    async def guard(request: web.Request) -> web.StreamResponse | None:
        answer = choose(request.path.rpartition("/")[2], False)
        return None if answer is None else await answer(request)

    async def rewrite(request: web.Request, right: web.StreamResponse) -> web.StreamResponse:
        answer = choose(request.path.rpartition("/")[2], True)
        return right if answer is None else await answer(request)

    server.gate.guard, server.gate.rewrite = guard, rewrite


async def talk(tmp_path: Path, server: SlackServer) -> None:
    """Ask, ask again for a shorter answer, lose the connection and catch up."""
    engine = ScriptedEngine(default=echo)
    async with make_harness(tmp_path, engine, limits=NO_LIMITS) as harness:
        task = asyncio.create_task(server.adapter(FastClock(400.0)).run(harness.intake))
        try:
            await server.until(lambda: server.sockets > 0)
            engine.add(LONG, "short")
            await server.say("shorten it", direct=True)
            await server.until(lambda: "".join(bots(server.seen("Mei"))) == LONG)
            await server.until(lambda: Action.RETRY in server.seen("Mei")[-1].actions)
            await server.press(server.seen("Mei")[-1].id, Action.RETRY)
            await answered(server, "short", channel="Mei")
            thread = await server.say("one")
            await answered(server, "echo one")
            await server.disconnect(resumable=False)
            await server.say("two", thread=thread)
            await server.say("three")
            await server.say("four", direct=True)
            await answered(server, "short", "echo four", channel="Mei")
            await answered(server, "echo one", "echo two", "echo three")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("run", range(RUNS))
async def test_wrong_answers_lose_and_double_nothing(tmp_path: Path, server: SlackServer, run: int) -> None:
    kinds = KINDS[run::RUNS]
    calls: Counter[str] = Counter()

    def choose(method: str, is_after: bool) -> Answer | None:
        """Answer each method's first calls with each kind, once before and once after the work."""
        number, is_late = divmod(calls[method], 2)
        if number >= len(kinds) or is_after is not bool(is_late):
            return None
        calls[method] += 1
        # An edit or a deletion that is only claimed to be done cannot be told from one that is.
        is_hidden = kinds[number] in HOLLOW and not is_after and method in {"chat.update", "chat.delete"}
        # What is refused for its rate has not been done.
        is_impossible = is_after and kinds[number].startswith("too many calls")
        return None if is_hidden or is_impossible else ANSWERS[kinds[number]]

    wrong(server, choose)
    await talk(tmp_path, server)
    assert {"auth.test", "apps.connections.open", "chat.postMessage", "chat.update", "chat.delete"} <= calls.keys()
    assert {"users.info", "conversations.history", "conversations.replies"} <= calls.keys()


@pytest.mark.parametrize(
    ("wait", "seconds"),
    [("1e300", 3600), ("inf", 3600), ("86400", 3600), ("-1", 0), ("0.0001", 0.0001), ("a minute", 30), ("", 30)],
)
async def test_an_absurd_rate_limit_is_bounded(server: SlackServer, wait: str, seconds: float) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": wait})

    server.gate.guard = refuse
    async with web_api(server.settings(), ManualClock()) as api:
        with pytest.raises(RateLimited) as refused:
            await api.chat_update(channel="C1", ts="1.1", text="hi")
    assert refused.value.seconds == seconds
    assert "chat.update" not in server.calls


CODES = {
    EditRefused: "update_failed edit_window_closed cant_update_message cant_broadcast_message block_mismatch",
    MessageGone: "message_not_found",
    AccessDenied: "not_in_channel restricted_action restricted_action_thread_locked ekm_access_denied missing_scope is_archived",
    ChannelGone: "channel_not_found is_inactive",
    ContentRefused: "slack_connect_file_link_sharing_blocked slack_connect_blocked_file_type",
    MarkupRefused: "invalid_blocks msg_too_long",
    PlatformUnavailable: "internal_error fatal_error request_timeout unknown_method",
    RateLimited: "ratelimited",
}


@pytest.mark.parametrize(("error", "code"), [(error, code) for error, codes in CODES.items() for code in codes.split()])
async def test_an_error_code_tells_what_to_do(server: SlackServer, error: type[PlatformError], code: str) -> None:
    server.refused["chat.update"] = code
    async with web_api(server.settings()) as api:
        with pytest.raises(error) as refused:
            await api.chat_update(channel="C1", ts="1.1", text="hi")
    assert type(refused.value) is error


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", sorted(WRONG_ANSWERS.keys() - {"nothing", "a space"}))
async def test_a_reply_to_a_slash_command_survives_a_wrong_answer(
    tmp_path: Path, server: SlackServer, kind: str
) -> None:
    refused: list[str] = []

    async def guard(request: web.Request) -> web.StreamResponse | None:
        if not request.path.startswith("/respond/") or refused:
            return None
        refused.append(request.path)
        return await WRONG_ANSWERS[kind](request)

    async with make_harness(tmp_path) as harness:
        task = asyncio.create_task(server.adapter(FastClock(400.0)).run(harness.intake))
        await server.until(lambda: server.sockets > 0)
        server.gate.guard = guard
        await server.command("status")
        await server.until(lambda: "scripted" in "".join(bots(server.seen())))
        assert refused
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
