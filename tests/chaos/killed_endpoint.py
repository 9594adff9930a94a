"""R28: one of several model servers killed under the load of 50 channels, and started again.

Each channel asks one question after the other.  The wait is the time until the first text.  Meanwhile
the places that are told are compared: those who wait must be told 1, 2, 3, … each once.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, Queued
from bot.engine.backends.remote import RemoteEngine
from bot.errors import EngineError
from bot.util.clock import MonotonicClock
from tests.chaos.faults import percentile
from tests.chaos.figure import Row, Scale
from tests.harness.servers.model_server import STOPPED, ModelServer, delta, event

NAME = "R28"

CHANNELS = 50
SERVERS = 3
_SLOTS = 8
_PIECES = [f"word{number} " for number in range(8)]
# Seconds between two words of an answer.
_WORD = 0.03
# Questions that each channel asks before, after the kill, and after the restart.
_QUESTIONS: dict[Scale, int] = {"full": 20, "short": 2}
_MOST_MORE = 2.0
# Turns of the event loop after which each reader has its place.
_TURNS = 200


@dataclass
class Load:
    """Answers and notices, by channel."""

    engine: RemoteEngine
    places: dict[str, int] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    wrong: int = 0
    checks: int = 0
    lost: list[str] = field(default_factory=list)

    async def ask(self, channel: str, count: int) -> None:
        clock = asyncio.get_running_loop()
        for number in range(count):
            began = clock.time()
            texts: list[str] = []
            request = ChatRequest((ChatMessage("user", f"question {number}"),), channel=channel, user=channel)
            try:
                async with aclosing(self.engine.generate(request)) as events:
                    async for found in events:
                        if isinstance(found, Queued):
                            self.places[channel] = found.position
                            continue
                        self.places.pop(channel, None)
                        if isinstance(found, Delta):
                            if not texts:
                                self.waits.append(clock.time() - began)
                            texts.append(found.text)
            except EngineError as error:
                self.lost.append(f"{channel}: {error}")
            else:
                if "".join(texts) != "".join(_PIECES):
                    self.lost.append(f"{channel}: {''.join(texts)!r}")
            finally:
                self.places.pop(channel, None)

    async def check(self) -> None:
        """Compare the places again and again; a reader may need some turns to hear of a change."""
        while True:
            await asyncio.sleep(0.02)
            for _ in range(_TURNS):
                if self._is_true():
                    break
                await asyncio.sleep(0)
            self.checks += 1
            self.wrong += not self._is_true()

    def _is_true(self) -> bool:
        return Counter(self.places.values()) == Counter(range(1, self.engine.load.waiting + 1))


async def _paced(server: ModelServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    response = await server.stream(request)
    for piece in server.answer_to(body):
        for start in range(0, len(piece), 6):
            await response.write(delta(piece[start : start + 6]))
            await asyncio.sleep(_WORD)
    await response.write(event(STOPPED) + b"data: [DONE]\n\n")
    return response


async def rows(scale: Scale, seed: int) -> AsyncIterator[Row]:
    servers = [ModelServer(_PIECES, owner="vllm") for _ in range(SERVERS)]
    for server in servers:
        server.default = _paced
        await server.__aenter__()
    killed = servers[0]
    port = urlsplit(killed.url).port
    section = EngineSection(
        backend="remote", urls=tuple(each.url for each in servers), model="scripted", max_batch_size=_SLOTS
    )
    async with RemoteEngine(section, MonotonicClock()) as engine:
        load = Load(engine)
        checking = asyncio.create_task(load.check())
        p95: list[float] = []
        for phase in range(3):
            load.waits.clear()
            async with asyncio.TaskGroup() as tasks:
                for number in range(CHANNELS):
                    tasks.create_task(load.ask(f"channel {number}", _QUESTIONS[scale]))
                if phase == 1:
                    await killed.until(lambda: killed.running > 0)
                    await killed.kill()
                if phase == 2:
                    servers[0] = ModelServer(_PIECES, owner="vllm", port=port)
                    servers[0].default = _paced
                    await servers[0].__aenter__()
            p95.append(percentile(load.waits, 95))
        checking.cancel()
        await asyncio.gather(checking, return_exceptions=True)
    used = len(servers[0].bodies)
    for server in servers:
        await server.__aexit__(None, None, None)
    before, during, after = p95
    result = (
        f"{CHANNELS} channels, {SERVERS} servers: p95 wait {before:.1f} s, {during:.1f} s with one killed, "
        f"{after:.1f} s with it back (it took {used} requests); wrong places told {load.wrong} of {load.checks} checks, "
        f"answers not whole {len(load.lost)}"
    )
    yield Row(
        "engine",
        "\n     ".join([result, *load.lost[:5]]),
        not load.wrong and not load.lost,
        during - before <= _MOST_MORE,
    )
