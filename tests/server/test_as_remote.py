"""Our own HTTP server as the model server of another bot."""

import asyncio
from contextlib import aclosing

import pytest

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, Finished, FinishReason, Picture
from bot.engine.backends.remote import RemoteEngine
from bot.errors import PicturesRefused, PromptTooLong
from tests.harness.fakes import FastClock, ScriptedEngine

QUESTION = ChatRequest((ChatMessage("user", "How is the weather?"),))


async def test_another_bot_answers_from_our_server(url: str, engine: ScriptedEngine) -> None:
    section = EngineSection(backend="remote", urls=(f"{url}/v1",))
    async with RemoteEngine(section, FastClock(10)) as remote:
        events = [event async for event in remote.generate(QUESTION)]
        assert "".join(event.text for event in events if isinstance(event, Delta)) == "It is 天气。"
        end = events[-1]
        assert isinstance(end, Finished)
        assert end.reason is FinishReason.STOP
        assert end.usage.prompt_tokens == engine.count_tokens(engine.requests[0].messages)
        with pytest.raises(PromptTooLong):
            async for _ in remote.generate(ChatRequest((ChatMessage("user", "too long " * 100),))):
                pass


async def test_leaving_an_answer_frees_the_slot_of_our_server(url: str, engine: ScriptedEngine) -> None:
    engine.add(["It ", asyncio.Event(), "never"])
    async with RemoteEngine(EngineSection(backend="remote", urls=(f"{url}/v1",)), FastClock(10)) as remote:
        async with aclosing(remote.generate(QUESTION)) as events:
            assert await anext(events) == Delta("It ")
        await engine.left(1)
        assert engine.load.running == 0


@pytest.mark.parametrize("most", [0, 1])
async def test_our_servers_refusal_of_pictures_is_understood(url: str, engine: ScriptedEngine, most: int) -> None:
    engine.most_pictures = most
    picture = Picture("image/jpeg", b"bytes", 1, 1)
    async with RemoteEngine(EngineSection(backend="remote", urls=(f"{url}/v1",), vision=True), FastClock(10)) as remote:
        with pytest.raises(PicturesRefused):
            async for _ in remote.generate(ChatRequest((ChatMessage("user", "why?", (picture,) * 2),))):
                pass
        assert remote.info.most_pictures == most
