"""Several models: requests name theirs, and a fallback answers for one that cannot begin."""

import asyncio
from collections.abc import Iterable, Mapping

import pytest

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, EngineEvent, Fallback, Finished, Picture, Queued, SamplingParams
from bot.engine import open_engine
from bot.engine.base import Engine, Memory, Progress
from bot.engine.router import ModelRouter
from bot.errors import (
    CheckpointError,
    EngineBusy,
    EngineError,
    EngineFailed,
    EngineUnavailable,
    PicturesRefused,
    PromptTooLong,
)
from bot.util.clock import MonotonicClock
from tests.harness.fakes import FastClock, ScriptedEngine
from tests.harness.platform import TIMEOUT
from tests.harness.ports import reserved_port

HELLO = (ChatMessage("user", "hello"),)


class Models:
    """Scripted engines by `engine.model`; those of `missing` cannot be opened."""

    def __init__(self, missing: Iterable[str] = (), **engines: ScriptedEngine) -> None:
        self.engines = engines
        self.missing = set(missing)
        self.checks: list[tuple[str, dict[str, int]]] = []

    def open(self, section: EngineSection, progress: Progress) -> Engine:
        if section.model in self.missing:
            raise CheckpointError(f'engine.model = "{section.model}": no such folder')
        return self.engines[section.model]

    def check(self, section: EngineSection, taken: Memory) -> Memory:
        self.checks.append((section.model, dict(taken)))
        return {"cpu": len(section.model)}

    def router(self, sections: Mapping[str, EngineSection]) -> ModelRouter:
        return ModelRouter(sections, self.open, FastClock(), check=self.check)


def two(fallback: str = "small", back: str = "") -> dict[str, EngineSection]:
    return {
        "engine": EngineSection(model="big", fallback=fallback),
        "small": EngineSection(model="small", fallback=back),
    }


async def events(engine: Engine, request: ChatRequest) -> list[EngineEvent]:
    return [event async for event in engine.generate(request)]


def text(seen: list[EngineEvent]) -> str:
    return "".join(event.text for event in seen if isinstance(event, Delta))


def fallbacks(seen: list[EngineEvent]) -> list[EngineEvent]:
    return [event for event in seen if isinstance(event, Fallback)]


async def test_a_request_goes_to_the_model_that_it_names() -> None:
    models = Models(big=ScriptedEngine(default="I am big"), small=ScriptedEngine(default="I am small"))
    async with models.router(two()) as router:
        assert text(await events(router, ChatRequest(HELLO))) == "I am big"
        assert text(await events(router, ChatRequest(HELLO, model="small"))) == "I am small"
        assert [status.name for status in router.statuses()] == ["engine", "small"]
        with pytest.raises(EngineUnavailable, match="the model huge is not loaded: no such model"):
            await events(router, ChatRequest(HELLO, model="huge"))


@pytest.mark.parametrize("error", [EngineFailed("no model server answers"), EngineUnavailable("gone")])
async def test_a_model_that_fails_before_its_first_text_is_replaced_and_named(error: EngineError) -> None:
    models = Models(big=ScriptedEngine([Queued(1), error]), small=ScriptedEngine(default="I am small"))
    async with models.router(two()) as router:
        seen = await events(router, ChatRequest(HELLO))
        assert seen[:2] == [Queued(1), Fallback("small")]
        assert (text(seen), type(seen[-1])) == ("I am small", Finished)
        assert models.engines["big"].requests[0].has_fallback
        assert not models.engines["small"].requests[0].has_fallback


async def test_an_answer_that_has_begun_is_never_replaced() -> None:
    models = Models(big=ScriptedEngine(["I am", EngineFailed("broken off")]), small=ScriptedEngine())
    async with models.router(two()) as router:
        with pytest.raises(EngineFailed, match="broken off"):
            await events(router, ChatRequest(HELLO))
    assert not models.engines["small"].requests


@pytest.mark.parametrize("error", [EngineBusy(3, 3), PromptTooLong(9, 8)])
async def test_the_limits_of_a_model_are_not_hidden_by_its_fallback(error: EngineError) -> None:
    models = Models(big=ScriptedEngine([error]), small=ScriptedEngine())
    async with models.router(two()) as router:
        with pytest.raises(type(error)):
            await events(router, ChatRequest(HELLO))
    assert not models.engines["small"].requests


async def test_a_model_that_cannot_be_loaded_is_replaced_until_it_can() -> None:
    models = Models(["big"], big=ScriptedEngine(default="I am big"), small=ScriptedEngine(default="I am small"))
    sections = two()
    async with models.router(sections) as router:
        seen = await events(router, ChatRequest(HELLO))
        assert (fallbacks(seen), text(seen)) == ([Fallback("small")], "I am small")
        assert router.info == models.engines["small"].info
        assert router.statuses()[0].fault == 'engine.model = "big": no such folder'
        assert await router.change("engine", sections["engine"]) == 'engine.model = "big": no such folder'
        models.missing.clear()
        assert await router.change("engine", sections["engine"]) is None
        assert text(await events(router, ChatRequest(HELLO))) == "I am big"
        assert router.statuses()[0].fault is None


async def test_the_start_fails_without_a_fallback_that_works() -> None:
    engines = {"big": ScriptedEngine(), "small": ScriptedEngine()}
    with pytest.raises(CheckpointError, match=r'^engine\.model = "big"'):
        await Models(["big"], **engines).router(two(fallback="")).__aenter__()
    with pytest.raises(CheckpointError, match=r'^models\.small\.model = "small"'):
        await Models(["small"], **engines).router(two()).__aenter__()
    with pytest.raises(CheckpointError, match=r'^engine\.model = "big"'):
        await Models(["big", "small"], **engines).router(two(back="engine")).__aenter__()


async def test_each_model_is_checked_beside_the_needs_of_those_that_are_loaded() -> None:
    models = Models(big=ScriptedEngine(), small=ScriptedEngine(), tiny=ScriptedEngine())
    async with models.router(two()) as router:
        assert models.checks == [("big", {}), ("small", {"cpu": 3})]
        assert await router.change("engine", EngineSection(model="tiny")) is None
        assert models.checks[2] == ("tiny", {"cpu": 5})
        assert await router.change("small", EngineSection(model="small", quantization="int8")) is None
        assert models.checks[3] == ("small", {"cpu": 4})


async def test_a_change_of_one_model_leaves_the_others() -> None:
    models = Models(big=ScriptedEngine(default="I am big"), small=ScriptedEngine(), tiny=ScriptedEngine(default="tiny"))
    async with models.router(two()) as router:
        assert await router.change("small", EngineSection(model="tiny")) is None
        assert text(await events(router, ChatRequest(HELLO, model="small"))) == "tiny"
        assert text(await events(router, ChatRequest(HELLO))) == "I am big"
        models.missing.add("huge")
        failure = await router.change("small", EngineSection(model="huge"))
        assert failure == 'models.small.model = "huge": no such folder'
        assert text(await events(router, ChatRequest(HELLO, model="small"))) == "tiny"


async def test_a_fallback_gets_as_many_pictures_as_it_sees() -> None:
    first, second, third = (Picture("image/png", b"", side, 1) for side in (1, 2, 3))
    asked = ChatMessage("user", "a", (first,)), ChatMessage("assistant", "b"), ChatMessage("user", "c", (second, third))
    for most, seen in {0: [(), (), ()], 1: [(), (), (second,)], 3: [(first,), (), (second, third)]}.items():
        models = Models(big=ScriptedEngine(default=[EngineFailed("gone")]), small=ScriptedEngine())
        models.engines["big"].most_pictures, models.engines["small"].most_pictures = 4, most
        async with models.router(two()) as router:
            await events(router, ChatRequest(asked))
            assert [message.pictures for message in models.engines["small"].requests[0].messages] == seen


async def test_a_fallback_is_not_asked_about_nothing() -> None:
    models = Models(big=ScriptedEngine(default=[EngineFailed("gone")]), small=ScriptedEngine())
    models.engines["big"].most_pictures = 4
    async with models.router(two()) as router:
        with pytest.raises(PicturesRefused):
            await events(router, ChatRequest((ChatMessage("user", "", (Picture("image/png", b"", 1, 1),)),)))
        assert models.engines["small"].requests == []


async def test_a_model_that_sees_no_picture_any_more_refuses_it() -> None:
    models = Models(big=ScriptedEngine(), small=ScriptedEngine())
    async with models.router(two()) as router:
        with pytest.raises(PicturesRefused):
            await events(router, ChatRequest((ChatMessage("user", "why?", (Picture("image/png", b"", 1, 1),)),)))
        assert models.engines["big"].requests == []


async def test_a_changed_fallback_needs_no_load() -> None:
    models = Models(big=ScriptedEngine([EngineFailed("no")]), small=ScriptedEngine(default="I am small"))
    async with models.router(two(fallback="")) as router:
        models.missing.add("big")
        assert await router.change("engine", EngineSection(model="big", fallback="small")) is None
        assert text(await events(router, ChatRequest(HELLO))) == "I am small"


async def test_a_conversation_is_cut_to_the_context_of_the_fallback() -> None:
    small = ScriptedEngine(default="ok", context_length=100)
    models = Models(big=ScriptedEngine([EngineFailed("no")]), small=small)
    turns = [ChatMessage("user" if number % 2 == 0 else "assistant", "x" * 20) for number in range(10)]
    request = ChatRequest((ChatMessage("system", "be brief"), *turns, *HELLO), SamplingParams(max_tokens=10))
    async with models.router(two()) as router:
        seen = await events(router, request)
    (asked,) = small.requests
    assert asked.messages == (request.messages[0], *request.messages[-3:])
    assert fallbacks(seen) == [Fallback("small", left_out=8)]
    assert small.count_tokens(asked.messages) <= 90 < small.count_tokens((request.messages[0], *request.messages[-5:]))


async def test_a_whole_conversation_is_not_cut_for_a_fallback() -> None:
    small = ScriptedEngine(default="ok", context_length=40)
    big = ScriptedEngine(default=[EngineFailed("no")])
    models = Models(big=big, small=small)
    turns = (ChatMessage("user", "x" * 20), ChatMessage("assistant", "y" * 20), *HELLO)
    async with models.router(two()) as router:
        with pytest.raises(PromptTooLong):
            await events(router, ChatRequest(turns, is_whole=True))
        picture = ChatMessage("user", "what is it?", (Picture("image/png", b"", 1, 1),))
        big.most_pictures = 1
        with pytest.raises(PicturesRefused):
            await events(router, ChatRequest((picture,), is_whole=True))
        assert small.requests == []
        # Half of the context stays free where turns may be dropped.
        assert text(await events(router, ChatRequest((ChatMessage("user", "z" * 30),), is_whole=True))) == "ok"


async def test_a_request_may_name_the_models_that_answer() -> None:
    big, small = (ScriptedEngine(default=[EngineFailed("down")]) for _ in range(2))
    last = ScriptedEngine(default="I am last", model="least")
    sections = two(back="last") | {"last": EngineSection(model="last")}
    async with Models(big=big, small=small, last=last).router(sections) as router:
        for allowed in [("scripted", "last"), ("big", "least")]:
            seen = await events(router, ChatRequest(HELLO, models=allowed))
            assert (fallbacks(seen)[-1], text(seen)) == (Fallback("last"), "I am last")
        assert len(small.requests) == 1, "by the name of its model"
        with pytest.raises(EngineFailed, match="down"):
            await events(router, ChatRequest(HELLO, models=("big",)))
        assert not big.requests[-1].has_fallback


async def test_servers_that_are_gone_are_replaced_at_once() -> None:
    with reserved_port() as port:
        address = f"http://127.0.0.1:{port}/v1"
        sections = {
            "engine": EngineSection(backend="remote", model="any", urls=(address,), fallback="echo"),
            "echo": EngineSection(backend="echo"),
        }
        async with asyncio.timeout(TIMEOUT), ModelRouter(sections, open_engine, MonotonicClock()) as router:
            for _ in range(2):
                seen = await events(router, ChatRequest(HELLO))
                assert (fallbacks(seen), text(seen)) == ([Fallback("echo")], "hello")
