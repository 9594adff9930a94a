"""An engine behind a model server on loopback, used through the remote backend: for figures with `--engine remote`."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from aiohttp import web

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, Finished, SamplingParams
from bot.engine.backends.remote import RemoteEngine
from bot.engine.base import Engine
from bot.errors import EngineFailed
from bot.util.clock import Clock
from tests.harness.servers.model_server import Behaviour, ModelServer, delta, event, text_of

_SAMPLING = ("temperature", "top_k", "top_p", "max_tokens", "seed")


def answers_of(engine: Engine, thought: str = "", stop_after: int | None = None) -> Behaviour:
    """Answer as the engine does, after a thought, or with the rest of an answer that was begun.

    A failure of the engine is a 500 before the first text, and a dropped stream after it.  After `stop_after`
    characters the stream waits for `go_on`.
    """

    async def behave(server: ModelServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        messages = [ChatMessage(each["role"], text_of(each["content"])) for each in body["messages"]]
        # Of an answer that is continued, the beginning is the same again.
        begun = messages.pop().content if messages[-1].role == "assistant" else ""
        sampling = SamplingParams(**{name: body[name] for name in _SAMPLING if name in body})
        response: web.StreamResponse | None = None
        written = 0
        try:
            async with aclosing(engine.generate(ChatRequest(tuple(messages), sampling))) as events:
                async for found in events:
                    if response is None and isinstance(found, Delta | Finished):
                        response = await server.stream(request)
                        if thought and not begun:
                            await response.write(delta(thought, "reasoning_content"))
                    match found:
                        case Delta(text):
                            again = min(len(begun), len(text))
                            assert begun.startswith(text[:again]), "the beginning is not the answer's"
                            begun = begun[again:]
                            if response is not None and text[again:]:
                                await response.write(delta(text[again:]))
                                written += len(text) - again
                                if stop_after is not None and written >= stop_after:
                                    await server.go_on.wait()
                        case Finished(reason) if response is not None:
                            end = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason.value}]}
                            await response.write(event(end) + b"data: [DONE]\n\n")
        except EngineFailed:
            if response is None:
                return web.json_response({"error": {"message": "the model failed"}}, status=500)
            if request.transport is not None:
                request.transport.abort()
        assert response is not None, "the events of an engine end with Finished"
        return response

    return behave


@asynccontextmanager
async def served(engine: Engine, clock: Clock) -> AsyncIterator[RemoteEngine]:
    """Serve the engine; yield a remote engine that answers from it."""
    async with engine, ModelServer() as server:
        server.default = answers_of(engine)
        section = EngineSection(
            backend="remote",
            urls=(server.url,),
            model="served",
            context_length=engine.info.context_length,
            max_batch_size=max(engine.load.slots, 1),
        )
        async with RemoteEngine(section, clock) as remote:
            yield remote
