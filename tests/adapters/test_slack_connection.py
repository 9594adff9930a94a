"""Slack: connection, backfill, HTTP mode, set-up."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from bot.adapters import inspect
from bot.adapters.login import confirm
from bot.adapters.slack.adapter import AGENT_SCOPE, SCOPES
from bot.adapters.slack.client import web_api
from bot.adapters.slack.errors import error_for
from bot.adapters.slack.messenger import SlackMessenger
from bot.adapters.slack.settings import SlackSection
from bot.chat.commands import menu
from bot.delivery.markdown.format import Rendered
from bot.domain import ChannelKey, Exchange, Status
from bot.errors import LoginRefused, PlatformError
from tests.harness.fakes.clock import FastClock
from tests.harness.harness import Harness, make_harness
from tests.harness.platform import TIMEOUT
from tests.harness.servers.slack import SlackServer
from tests.harness.slack_harness import answered, becomes, bots, running

# The connection


async def test_messages_missed_while_disconnected_are_answered_in_order(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
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
    async with make_harness(tmp_path) as harness, running(harness, server):
        await server.until(lambda: len(harness.engine.requests) == 8)
        await server.until(lambda: bots(server.seen()) == ["ok"] * 8 and bots(server.seen("Mei")) == ["ok"] * 2)
        said = [request.messages[-1].content for request in harness.engine.requests]
    in_thread = ["Mei: missed 1", "Mei: missed 3", "Mei: missed in a thread"]
    assert [text for text in said if text in in_thread] == in_thread
    assert "> among people\n\nMei: and you?" in said
    assert "Mei: a talk" not in said


async def test_an_unreadable_channel_does_not_stop_the_backfill_of_others(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        await server.say("hello")
        await server.command("status", channel="other")
        await server.until(lambda: bool(bots(server.seen())) and bool(bots(server.seen("other"))))
        await server.until(lambda: server.is_quiet)
    await server.disconnect(resumable=False)
    await server.say("missed", channel="other")
    server.gone.add(server.workspace.channel("general"))
    async with make_harness(tmp_path) as harness, running(harness, server):
        await server.until(lambda: "ok" in bots(server.seen("other")))


async def test_the_latest_active_channel_is_backfilled_first(tmp_path: Path, server: SlackServer) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        await server.command("status", channel="d")
        for channel in ("a", "b", "c", "a"):
            question = await server.say("hello", channel=channel)
            await becomes(harness, Status.DELIVERED, server.workspace.channel(channel), question)
    await server.disconnect(resumable=False)
    server.histories.clear()  # a message of the first seconds may have been looked for
    async with make_harness(tmp_path) as harness, running(harness, server):
        await server.until(lambda: len(server.histories) == 4)
    assert server.histories == [server.workspace.channel(channel) for channel in "acbd"]


async def test_a_bug_costs_one_message_of_the_backlog(
    tmp_path: Path, server: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_harness(tmp_path) as harness, running(harness, server):
        await server.say("hello", direct=True)
        await answered(server, "ok", channel="Mei")
        await server.until(lambda: server.is_quiet)
    await server.disconnect(resumable=False)
    await server.say("bad", direct=True)
    await server.say("good", direct=True)
    async with make_harness(tmp_path) as harness:
        harness.raise_on("bad", monkeypatch)
        async with running(harness, server):
            await answered(server, "ok", "ok", channel="Mei")
    assert [request.messages[-1].content for request in harness.engine.requests] == ["good"]


async def test_a_lost_socket_is_replaced_without_missing_messages(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        await server.say("one", channel="a")
        await answered(server, "ok", channel="a")
        await server.disconnect(resumable=False)
        await server.say("two", channel="a")
        await answered(server, "ok", "ok", channel="a")
        assert server.calls.count("apps.connections.open") == 2


async def test_an_edit_stored_after_its_socket_closed_is_answered(
    harness: Harness, server: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    requeue, has_begun, may_go_on = harness.store.requeue, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any, **options: Any) -> Exchange | None:
        has_begun.set()
        await may_go_on.wait()
        return await requeue(*arguments, **options)

    harness.engine.add("old", "new")
    async with running(harness, server):
        question = await server.say("quesiton")
        await answered(server, "old")
        monkeypatch.setattr(harness.store, "requeue", slow)
        await server.edit(question, "question")
        await has_begun.wait()
        await server.disconnect()
        await server.until(lambda: server.links == 2 and server.sockets == 1)
        may_go_on.set()
        await answered(server, "new")


@pytest.mark.parametrize("method", ["auth.test", "chat.postMessage", "conversations.history"])
async def test_a_revoked_bot_token_ends_the_adapter(harness: Harness, server: SlackServer, method: str) -> None:
    task = asyncio.create_task(server.adapter(FastClock()).run(harness.intake))
    await server.connected()
    await server.say("hello")
    await answered(server, "ok")
    server.refused |= {method: "token_revoked", "auth.test": "token_revoked"}
    await server.say("are you there?")
    if method != "chat.postMessage":  # the others are only called when connecting
        await server.disconnect(resumable=False)
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(LoginRefused, match="token_revoked"):
            await task


@pytest.mark.parametrize("code", ["invalid_auth", "account_inactive", "token_expired", "not_authed"])
@pytest.mark.parametrize(
    "method", ["chat.postMessage", "chat.update", "conversations.history", "apps.connections.open"]
)
async def test_a_passing_refusal_of_the_token_is_retried(
    harness: Harness, server: SlackServer, method: str, code: str
) -> None:
    harness.engine.add("before", "after")
    async with running(harness, server):
        await server.say("hello")
        await answered(server, "before")
        server.refused[method] = code
        await server.disconnect(resumable=False)
        refused_before = server.calls.count(method)
        await server.say("are you there?")
        await server.until(lambda: server.calls.count(method) > refused_before)
        del server.refused[method]
        await answered(server, "before", "after")


async def test_a_login_that_is_refused_twice_is_asked_again(harness: Harness, server: SlackServer) -> None:
    server.refused["auth.test"] = "invalid_auth"
    task = asyncio.create_task(server.adapter(FastClock()).run(harness.intake))
    await server.until(lambda: server.calls.count("auth.test") == 2)
    del server.refused["auth.test"]
    await server.connected()
    await server.say("hello")
    await answered(server, "ok")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_refreshed_socket_keeps_working(harness: Harness, server: SlackServer) -> None:
    async with running(harness, server):
        await server.refresh()
        await server.until(lambda: server.links == 2 and server.sockets == 1)
        await server.say("hello")
        await answered(server, "ok")


async def test_a_socket_url_that_is_not_accepted_is_replaced(
    harness: Harness, server: SlackServer, monkeypatch: Any
) -> None:
    monkeypatch.setattr("bot.adapters.slack.connection._CONNECT_SECONDS", 0.2)
    server.dead_tickets = 2
    async with running(harness, server):
        await server.say("hello")
        await answered(server, "ok")
    assert server.calls.count("apps.connections.open") >= 3  # a busy machine may be too slow for one that is accepted


async def test_an_unavailable_slack_at_the_start_is_retried(harness: Harness, server: SlackServer) -> None:
    server.refused |= {"auth.test": "internal_error", "apps.connections.open": "ratelimited"}
    task = asyncio.create_task(server.adapter(FastClock()).run(harness.intake))
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
async def test_a_wrong_token_is_named_in_the_error(harness: Harness, settings: dict[str, Any], name: str) -> None:
    async with SlackServer(**settings) as server:
        with pytest.raises(LoginRefused, match=name):
            async with running(harness, server):
                pass


# Setting up


def test_required_tokens_depend_on_the_mode() -> None:
    assert SlackSection().missing() == ("bot_token", "app_token")
    assert SlackSection(mode="http").missing() == ("bot_token", "signing_secret")
    with pytest.raises(ValidationError):
        SlackSection(bot_token=SecretStr("xoxb-1"))


def test_the_manifest_requests_the_scopes_and_commands_in_use() -> None:
    manifest = Path("docs/slack-manifest.yaml").read_text(encoding="utf-8")
    scopes = manifest.partition("    bot:\n")[2].partition("settings:")[0]
    assert {line.strip("- ") for line in scopes.split("\n") if line.strip()} == SCOPES | {AGENT_SCOPE}
    assert all(each.name in manifest.partition("usage_hint:")[2].partition("\n")[0] for each in menu())


@pytest.mark.parametrize("wait", ["soon", None])
def test_a_rate_limit_without_retry_after_waits_30_seconds(wait: str | None) -> None:
    assert str(error_for(429, "ratelimited", wait)) == "the platform asks to wait 30 s"


async def test_an_unknown_error_code_is_shown_unchanged(server: SlackServer) -> None:
    server.refused["chat.postMessage"] = "moon_phase_wrong"
    async with web_api(server.settings()) as api:
        messenger = SlackMessenger(api, 1.0)
        with pytest.raises(PlatformError, match="moon_phase_wrong"):
            await messenger.send(
                ChannelKey("slack", "C1"), Rendered("hi"), reply_to=None, controls=frozenset(), nonce="1.0.0"
            )


async def test_unanswered_commands_beyond_the_limit_are_forgotten(server: SlackServer) -> None:
    asker, place = server.workspace.user("Mei"), server.workspace.channel("general")
    async with web_api(server.settings()) as api:
        messenger = SlackMessenger(api, 1.0)
        for number in range(10_001):
            messenger.expect_slash(f"/{asker}/{number}", f"{server.url}/nowhere")
        # Without its response_url the reply is an ephemeral message.
        await messenger.edit(ChannelKey("slack", place), f"/{asker}/0", Rendered("hi"), controls=frozenset())
    assert [seen.visible for seen in server.seen()] == ["hi"]
    assert server.calls == ["chat.postEphemeral"]


async def found(server: SlackServer) -> list[tuple[bool, str]]:
    return [(finding.is_ok, finding.text) async for finding in inspect("slack", server.settings())]


async def test_check_online_confirms_a_correct_setup(server: SlackServer) -> None:
    findings = await found(server)
    assert [is_ok for is_ok, _ in findings] == [True] * 4
    assert "@chatglm" in findings[0][1]
    assert "the app is no agent" in findings[2][1]
    server.scopes |= {AGENT_SCOPE}
    assert [is_ok for is_ok, _ in await found(server)] == [True] * 3


async def test_check_online_names_missing_scopes_and_wrong_tokens(
    server: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.adapters.slack.client.confirm", partial(confirm, pause=0.0))
    server.scopes -= {"users:read"}
    server.refused["apps.connections.open"] = "missing_scope"
    findings = await found(server)
    assert [is_ok for is_ok, _ in findings] == [True, False, True, False]
    assert "lacks users:read" in findings[1][1]
    server.refused["auth.test"] = "account_inactive"
    assert [is_ok for is_ok, _ in await found(server)] == [False]
