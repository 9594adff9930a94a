"""Another project's server as a remote engine: `transformers serve`, with a tiny random Llama."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path

import pytest

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, Finished, FinishReason, SamplingParams
from bot.engine.backends.remote import RemoteEngine
from bot.util.clock import MonotonicClock
from tests.engine.pretrained import make_folder
from tests.harness.platform import TIMEOUT
from tests.harness.ports import reserved_port

pytestmark = pytest.mark.skipif(
    find_spec("fastapi") is None, reason="transformers serve needs fastapi, which the extra `test` installs"
)

QUESTION = ChatRequest((ChatMessage("user", "hello there"),), SamplingParams(temperature=0, max_tokens=8))


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[RemoteEngine]:
    folder = tmp_path / "tiny-llama"
    make_folder(folder, "llama")
    with reserved_port() as port, (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(  # noqa: ASYNC220  # it is killed, not awaited
            [
                *(sys.executable, "-c", "from transformers.cli.transformers import main; main()"),
                *("serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"),
            ],
            stdout=log,
            stderr=log,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )
        try:
            # The bot starts first, as beside any server that takes a while.
            section = EngineSection(
                backend="remote",
                urls=(f"http://127.0.0.1:{port}/v1",),
                model=str(folder),
                context_length=128,
                max_batch_size=1,  # it has one model and no queue
            )
            async with asyncio.timeout(TIMEOUT), RemoteEngine(section, MonotonicClock()) as engine:
                yield engine
        finally:
            server.kill()
            server.wait()


async def test_it_answers_stops_and_leaves(engine: RemoteEngine) -> None:
    seen = [event async for event in engine.generate(QUESTION)]
    text = "".join(event.text for event in seen if isinstance(event, Delta))
    end = seen[-1]
    assert text
    assert isinstance(end, Finished)
    assert end.reason in {FinishReason.STOP, FinishReason.LENGTH}
    assert 0 < end.usage.completion_tokens <= 9
    again = [event async for event in engine.generate(QUESTION)]
    assert "".join(event.text for event in again if isinstance(event, Delta)) == text, "greedy decoding"
    async with aclosing(engine.generate(QUESTION)) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    assert (engine.load.running, engine.load.waiting) == (0, 0)
    others = await asyncio.gather(*(_text(engine) for _ in range(4)))
    assert others == [text] * 4


async def _text(engine: RemoteEngine) -> str:
    return "".join([event.text async for event in engine.generate(QUESTION) if isinstance(event, Delta)])
