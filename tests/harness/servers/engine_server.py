"""An engine behind a model server on loopback, used through the remote backend: for figures with `--engine remote`."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from aiohttp import web

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, Finished, SamplingParams
from bot.engine.backends.remote import RemoteEngine
from bot.engine.base import Engine
from bot.util.clock import Clock
from tests.harness.servers.model_server import ModelServer, delta, event


@asynccontextmanager
async def served(engine: Engine, clock: Clock) -> AsyncIterator[RemoteEngine]:
    """Serve the engine; yield a remote engine that answers from it."""

    async def behave(server: ModelServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        messages = tuple(ChatMessage(each["role"], each["content"]) for each in body["messages"])
        response = await server.stream(request)
        async with aclosing(engine.generate(ChatRequest(messages, SamplingParams(seed=body.get("seed"))))) as events:
            async for found in events:
                match found:
                    case Delta(text):
                        await response.write(delta(text))
                    case Finished(reason):
                        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason.value}]}
                        await response.write(event(end) + b"data: [DONE]\n\n")
        return response

    async with engine, ModelServer() as server:
        server.default = behave
        section = EngineSection(
            backend="remote",
            urls=(server.url,),
            model="served",
            context_length=engine.info.context_length,
            max_batch_size=max(engine.load.slots, 1),
        )
        async with RemoteEngine(section, clock) as remote:
            yield remote
