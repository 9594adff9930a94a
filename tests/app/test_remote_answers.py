"""The bot on a loopback Discord with model servers, one of which dies in an answer."""

from pathlib import Path
from typing import Any

from aiohttp import web

from bot.config.schema import EngineSection
from bot.domain import Action
from bot.engine.backends.remote import RemoteEngine
from tests.chaos.processes import run_bot
from tests.harness.fakes import FastClock
from tests.harness.platform_bench import PROFILES, open_bench
from tests.harness.servers.model_server import ModelServer, delta, hang

WHOLE = ["The first half, ", "and the second half."]


async def _die_half_way(server: ModelServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = await server.stream(request)
    await response.write(delta("I have to think of two halves.", "reasoning_content") + delta(WHOLE[0]))
    await server.go_on.wait()
    await server.kill()
    return response


async def test_an_answer_is_whole_though_its_server_is_killed_half_way() -> None:
    async with ModelServer(WHOLE, owner="vllm") as one, ModelServer(WHOLE, owner="vllm") as two:
        one.then(_die_half_way)
        one.go_on.clear()
        clock = FastClock(20)
        section = EngineSection(backend="remote", urls=(one.url, two.url))
        async with open_bench("discord", RemoteEngine(section, clock), clock) as bench:
            await bench.platform.say("tell me", channel="general")
            await bench.platform.until(lambda: WHOLE[0].strip() in str(bench.replies("general")))
            one.go_on.set()
            await bench.platform.until(lambda: Action.RETRY in bench.replies("general")[0].actions)
            assert [seen.markdown for seen in bench.replies("general")] == ["".join(WHOLE)]
            await bench.ask("and again", "general")
            assert "I have to think" not in str(two.bodies), "thoughts are no history"


async def test_a_bot_that_is_killed_in_an_answer_answers_once_in_place_after_its_restart(tmp_path: Path) -> None:
    platform = PROFILES["discord"].open()
    shown: list[str] = []

    def texts() -> list[str]:
        now = [seen.markdown for seen in platform.seen("general") if seen.author == "bot"]
        if now and now[-1:] != shown[-1:]:
            shown.append(now[-1])
        return now

    async with ModelServer(["Another answer, ", "and whole."]) as server, platform:
        settings = {"BOT_ENGINE__BACKEND": "remote", "BOT_ENGINE__URLS": server.url}
        server.then(hang(delta("The first half, ")))
        async with run_bot({"discord": platform}, tmp_path, settings) as bot:
            await bot.connected()
            await platform.say("tell me", channel="general")
            await platform.until(lambda: "The first half," in str(texts()))
            (before,) = [seen.id for seen in platform.seen("general") if seen.author == "bot"]
        shown.clear()
        async with run_bot({"discord": platform}, tmp_path, settings) as bot:
            await bot.connected()
            await platform.until(
                lambda: bool(texts()) and Action.RETRY in platform.seen("general")[-1].actions  # it is complete
            )
    assert texts() == ["Another answer, and whole."]
    assert [seen.id for seen in platform.seen("general") if seen.author == "bot"] == [before]
    assert not [text for text in shown if "half" in text and "Another" in text], "two answers are never mixed"
    assert len(server.bodies) == 2
