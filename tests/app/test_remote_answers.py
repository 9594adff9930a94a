"""The bot on a loopback Discord with model servers, one of which dies in an answer."""

from typing import Any

from aiohttp import web

from bot.config.schema import EngineSection
from bot.domain import Action
from bot.engine.backends.remote import RemoteEngine
from tests.harness.fakes import FastClock
from tests.harness.platform_bench import open_bench
from tests.harness.servers.model_server import ModelServer, delta

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
