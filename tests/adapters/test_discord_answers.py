"""Wrong answers to Discord API calls: garbage, refused tokens, refused references."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from bot.adapters.discord.history import has_messages
from bot.adapters.discord.http import configure_library, rest_client
from bot.adapters.discord.messenger import DiscordMessenger
from bot.domain import Action, ChannelKey
from bot.errors import EditRefused, LoginRefused, MessageGone, PlatformError, PlatformUnavailable
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.fakes import FastClock
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import TOKEN
from tests.harness.servers.discord_payloads import Json

JSON, HTML = "application/json", "text/html"
DEEP = 100_000

# Status, type and body.  None of these says anything about the message.
GARBAGE: dict[str, tuple[int, str, bytes]] = {
    "empty": (200, JSON, b""),
    "blank": (200, JSON, b" \n"),
    "null": (200, JSON, b"null"),
    "list": (200, JSON, b"[]"),
    "list of nulls": (200, JSON, b"[null]"),
    "object": (200, JSON, b"{}"),
    "number": (200, JSON, b"5"),
    "infinite": (200, JSON, b"1e400"),
    "long number": (200, JSON, b'{"id": ' + b"9" * 5000 + b"}"),
    "nan": (200, JSON, b'{"id": NaN}'),
    "string": (200, JSON, b'"ok"'),
    "truncated": (200, JSON, b'{"id": "100000000000000'),
    "two values": (200, JSON, b"{}{}"),
    "html": (200, HTML, b"<html>log in to this network</html>"),
    "html as json": (200, JSON, b"<html>"),
    "json as text": (200, "text/plain", b'{"id": "1"}'),
    "not utf-8": (200, JSON, b'{"id": "\xff\xfe"}'),
    "utf-16": (200, JSON, '{"id": "1"}'.encode("utf-16")),
    "nested lists": (200, JSON, b"[" * DEEP),
    "nested objects": (200, JSON, b'{"id":' * DEEP),
    "null id": (200, JSON, b'{"id": null}'),
    "list id": (200, JSON, b'{"id": []}'),
    "word id": (200, JSON, b'{"id": "soon"}'),
    "negative id": (200, JSON, b'{"id": "-1"}'),
    "boolean id": (200, JSON, b'{"id": true}'),
    "another message": (200, JSON, b'{"id": "7", "channel_id": "8", "content": 5, "type": []}'),
    "redirect": (302, HTML, b""),
    "proxy refuses": (403, HTML, b"<html>blocked</html>"),
    "proxy knows nothing": (404, HTML, b""),
    "refused list": (400, JSON, b"[]"),
    "refused null": (400, JSON, b"null"),
    "code is a list": (400, JSON, b'{"code": [], "message": null}'),
    "errors are a list": (400, JSON, b'{"code": 50035, "message": "no", "errors": [1]}'),
    "nested errors": (400, JSON, b'{"errors": ' + b'{"a":' * DEEP + b"}" * DEEP + b"}"),
    "unauthorised": (401, JSON, b"{}"),
    "limit without a time": (429, JSON, b'{"retry_after": null, "global": false}'),
    "limit as a list": (429, JSON, b"[" * DEEP),
    "error": (503, JSON, b"\xff"),
}


@pytest.fixture
async def messenger(platform: DiscordPlatform) -> AsyncIterator[DiscordMessenger]:
    platform.call_seconds = 30.0
    configure_library(platform.settings())
    messenger = DiscordMessenger(1.2, 30.0)
    async with rest_client(platform.settings(), FastClock(1e6)) as messenger.client:
        await messenger.client.login(TOKEN)
        yield messenger


@pytest.mark.parametrize("kind", GARBAGE)
async def test_a_garbled_answer_is_a_passing_fault(
    platform: DiscordPlatform, messenger: DiscordMessenger, kind: str
) -> None:
    channel, controls = ChannelKey("discord", str(platform.channel("general"))), frozenset[Action]()

    async def send() -> str:
        return await messenger.send(
            channel, messenger.format.render("…"), reply_to=None, controls=controls, nonce="1.0.0"
        )

    async def edit() -> None:
        await messenger.edit(channel, said, messenger.format.render("done"), controls=controls)

    async def delete() -> None:
        await messenger.delete(channel, said)

    async def fails(call: Callable[[], Awaitable[object]]) -> None:
        platform.garbled.append(GARBAGE[kind])
        with pytest.raises(PlatformError) as caught:
            await call()
        assert not isinstance(caught.value, EditRefused | MessageGone | LoginRefused)

    await fails(send)
    said = await send()
    await fails(edit)
    await edit()
    assert [seen.markdown for seen in platform.seen()] == ["done"]
    platform.garbled.append(GARBAGE[kind])
    if kind not in ("empty", "null", "list", "object"):  # nothing is expected there
        with pytest.raises(PlatformError):
            await delete()
    else:
        platform.garbled.clear()
        await delete()
    assert platform.seen() == []


@pytest.mark.parametrize("seed", range(6))
async def test_garbled_answers_change_no_reply(platform: DiscordPlatform, tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    platform.garbled = chosen.choices([each for each in GARBAGE.values() if each[0] not in (400, 401)], k=9)
    async with run_discord_bot(platform, tmp_path, call_seconds=30.0) as bot:
        bot.engine.add("The whole answer.")
        await platform.say("tell me")
        await platform.until(lambda: not platform.garbled)
        await bot.shows("The whole answer.")
        await bot.all_is_delivered()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("after", ["1e9", "inf", "nan", "-1", "soon"])
async def test_an_absurd_reset_of_a_rate_limit_does_not_mute_the_channel(bot: DiscordBot, after: str) -> None:
    answered: list[str] = []

    async def guard(request: web.Request) -> web.Response | None:
        if request.method != "POST" or not request.path.endswith("/messages") or answered:
            return None
        answered.append(request.path)
        limits = {"X-Ratelimit-Remaining": "0", "X-Ratelimit-Reset-After": after, "X-Ratelimit-Reset": after}
        return web.Response(body=b"null", content_type="application/json", headers=limits)

    bot.platform.gate.guard = guard
    await bot.platform.say("hi")
    await bot.shows("ok")


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_single_refused_token_is_tried_again(bot: DiscordBot, method: str) -> None:
    refused: list[str] = []

    async def guard(request: web.Request) -> web.Response | None:
        if request.method != method or "/messages" not in request.path or refused:
            return None
        refused.append(request.path)
        return _refusal(401, 0, "401: Unauthorized")

    bot.platform.gate.guard = guard
    await bot.platform.say("hi")
    await bot.shows("ok")
    await bot.platform.say("and again")
    await bot.shows("ok", "ok")
    assert refused
    assert not bot.running.done()


async def test_a_token_that_is_revoked_while_a_reply_is_shown_ends_the_adapter(bot: DiscordBot) -> None:
    asked = _who_am_i(bot.platform)
    bot.platform.known_token = "another"
    await bot.platform.say("hi")
    with pytest.raises(LoginRefused, match="BOT_DISCORD__TOKEN"):
        await bot.running
    assert _who_am_i(bot.platform) == asked + 2


async def test_a_login_refused_once_is_tried_again(platform: DiscordPlatform, tmp_path: Path) -> None:
    refused: list[str] = []

    async def guard(request: web.Request) -> web.Response | None:
        if not request.path.endswith("/users/@me") or refused:
            return None
        refused.append(request.path)
        return _refusal(401, 0, "401: Unauthorized")

    platform.gate.guard = guard
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")
    assert refused


async def test_a_gateway_that_rejects_a_valid_token_is_tried_again(platform: DiscordPlatform, tmp_path: Path) -> None:
    platform.close_codes = [4004]
    async with run_discord_bot(platform, tmp_path) as bot:
        await platform.say("hi")
        await bot.shows("ok")


@pytest.mark.parametrize(
    ("status", "code", "more"),
    [
        (403, 160002, {}),
        (400, 50035, {"errors": {"message_reference": {"_errors": [{"message": "Cannot reply to a system message"}]}}}),
        (403, 50021, {}),
    ],
)
async def test_a_refused_reference_is_left_out(bot: DiscordBot, status: int, code: int, more: Json) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        is_send = request.method == "POST" and request.path.endswith("/messages")
        return _refusal(status, code, "no", more) if is_send and "message_reference" in await request.json() else None

    bot.platform.gate.guard = guard
    await bot.platform.say("hi")
    await bot.shows("ok")
    assert bot.platform.seen()[-1].reply_to is None


async def test_an_edit_in_an_archived_thread_is_refused_for_good(
    platform: DiscordPlatform, messenger: DiscordMessenger
) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        return _refusal(400, 50083, "Thread is archived")

    platform.gate.guard = guard
    text = messenger.format.render("late")
    with pytest.raises(EditRefused):
        await messenger.edit(ChannelKey("discord", "1", "2"), "3", text, controls=frozenset())


@pytest.mark.usefixtures("impatient")
async def test_a_server_that_drips_its_answer_does_not_hold_a_call(bot: DiscordBot) -> None:
    dripping: list[str] = []

    async def guard(request: web.Request) -> web.Response | None:
        if request.method != "POST" or not request.path.endswith("/messages") or dripping:
            return None
        dripping.append(request.path)
        response = web.StreamResponse()
        await response.prepare(request)
        while not bot.platform.closing.is_set() and request.transport is not None:
            await response.write(b" ")
            await bot.platform.changed.wait()
        return None

    bot.platform.gate.guard = guard
    await bot.platform.say("hi")
    await bot.shows("ok")
    assert dripping


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_redirect_is_not_followed(bot: DiscordBot, method: str, status: int) -> None:
    redirected: list[str] = []
    followed: list[str] = []

    async def guard(request: web.Request) -> web.Response | None:
        if request.path == "/elsewhere":
            followed.append(request.method)
        if request.method != method or "/messages" not in request.path or redirected:
            return None
        redirected.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    bot.platform.gate.guard = guard
    await bot.platform.say("hi")
    await bot.shows("ok")
    assert redirected
    assert followed == []


@pytest.mark.parametrize("body", ['""', "{}", "null", "0", "<html>", '[{"id": "1'])
async def test_an_answer_that_is_no_history_does_not_count_as_empty(
    platform: DiscordPlatform, messenger: DiscordMessenger, body: str
) -> None:
    async def guard(request: web.Request) -> web.Response | None:
        return web.Response(text=body, content_type="application/json")

    platform.gate.guard = guard
    assert messenger.client is not None, "the fixture opens it"
    with pytest.raises(PlatformUnavailable, match="no history"):
        await has_messages(messenger.client, platform.channel("general"), 0, 30.0)


def _who_am_i(platform: DiscordPlatform) -> int:
    return platform.calls.count("GET /users/@me")


def _refusal(status: int, code: int, message: str, more: Json | None = None) -> web.Response:
    body = json.dumps({"message": message, "code": code, **(more or {})})
    return web.Response(status=status, body=body.encode(), content_type="application/json")


@pytest.mark.parametrize("code", [200000, 200001, 240000, 50035, 99999])
async def test_a_text_that_is_refused_leaves_what_stood(bot: DiscordBot, code: int) -> None:
    more = asyncio.Event()
    bot.engine.add(["good start. ", more, "a bad word"])

    async def guard(request: web.Request) -> web.Response | None:
        is_bad = request.method in ("PATCH", "POST") and b"bad word" in await request.read()
        return _refusal(400, code, "refused") if is_bad else None

    bot.platform.gate.guard = guard
    await bot.platform.say("tell me")
    await bot.platform.until(lambda: "good start" in "".join(bot.shown()))
    more.set()
    await bot.platform.until(lambda: bot.platform.seen()[-1].actions == {Action.RETRY})
    shown = "\n".join(bot.shown())
    assert "good start." in shown
    assert "Something went wrong" not in shown
    assert "refused" in shown or "filter" in shown
