"""Contract of Engine, for every implementation."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch import Tensor

from bot.chat.access import Access
from bot.chat.settings import ChatSettings
from bot.config.http import ServerSection
from bot.config.schema import AccessSection, Config, EngineSection, LimitsSection
from bot.domain import (
    ChatMessage,
    ChatRequest,
    Delta,
    EngineEvent,
    EngineInfo,
    Finished,
    FinishReason,
    Queued,
    SamplingParams,
)
from bot.engine.backends.echo import EchoEngine
from bot.engine.backends.remote import RemoteEngine
from bot.engine.base import Engine, Progress
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.loading import load_random
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.hot_swap import HotSwapEngine
from bot.engine.pretrained.causal import PretrainedForServing
from bot.engine.pretrained.text import ChatTokenizer
from bot.engine.remote.tokens import estimate_tokens
from bot.engine.router import ModelRouter
from bot.engine.serving.base import Batch, CausalLM, Tokenizer
from bot.engine.serving.engine import LoadedModel, ServingEngine
from bot.errors import EngineBusy, PromptTooLong
from bot.observability.metrics import Metrics
from bot.server.app import serve_apis
from bot.server.generation import Backend
from bot.util.clock import MonotonicClock
from tests.engine.pretrained import make_network, make_tokenizer
from tests.harness.fakes.engine import ScriptedEngine
from tests.harness.platform import TIMEOUT
from tests.harness.servers.model_server import ModelServer

SLOTS, MAX_WAITING, CONTEXT = 2, 3, 128
GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@dataclass(frozen=True)
class Subject:
    """An engine with the sizes above; inside `held()` running answers do not finish."""

    engine: Engine
    held: Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def echo() -> AsyncIterator[Subject]:
    @asynccontextmanager
    async def held() -> AsyncIterator[None]:
        yield  # it advances only when read

    engine = EchoEngine(max_batch_size=SLOTS, max_waiting=MAX_WAITING, context_length=CONTEXT)
    async with engine:
        yield Subject(engine, held)


@asynccontextmanager
async def scripted() -> AsyncIterator[Subject]:
    engine = ScriptedEngine(
        default=list("a scripted answer"),
        max_batch_size=SLOTS,
        max_waiting=MAX_WAITING,
        context_length=CONTEXT,
    )

    @asynccontextmanager
    async def held() -> AsyncIterator[None]:
        engine.go_on.clear()
        yield
        engine.go_on.set()

    async with engine:
        yield Subject(engine, held)


@asynccontextmanager
async def switched() -> AsyncIterator[Subject]:
    """A HotSwapEngine after a change."""
    opened: list[ScriptedEngine] = []

    def open_engine(options: EngineSection, progress: Progress) -> ScriptedEngine:
        opened.append(
            ScriptedEngine(
                default=list("a scripted answer"),
                max_batch_size=options.max_batch_size,
                max_waiting=options.max_waiting,
                context_length=CONTEXT,
            )
        )
        return opened[-1]

    section = EngineSection(max_batch_size=SLOTS, max_waiting=MAX_WAITING)

    @asynccontextmanager
    async def held() -> AsyncIterator[None]:
        opened[-1].go_on.clear()
        yield
        opened[-1].go_on.set()

    async with HotSwapEngine(section, open_engine, MonotonicClock()) as engine:
        assert await engine.change(section.model_copy(update={"quantization": "int8"})) is None
        assert len(opened) == 2
        yield Subject(engine, held)


@asynccontextmanager
async def routed() -> AsyncIterator[Subject]:
    """The default model of a router of two."""
    opened: dict[str, ScriptedEngine] = {}

    def open_engine(options: EngineSection, progress: Progress) -> ScriptedEngine:
        engine = opened[options.model] = ScriptedEngine(
            default=list("a scripted answer"),
            max_batch_size=options.max_batch_size,
            max_waiting=options.max_waiting,
            context_length=CONTEXT,
        )
        return engine

    section = EngineSection(max_batch_size=SLOTS, max_waiting=MAX_WAITING, fallback="other")
    other = EngineSection(model="other", max_batch_size=SLOTS)

    @asynccontextmanager
    async def held() -> AsyncIterator[None]:
        opened["demo"].go_on.clear()
        yield
        opened["demo"].go_on.set()

    async with ModelRouter({"engine": section, "other": other}, open_engine, MonotonicClock()) as engine:
        yield Subject(engine, held)
    assert not opened["other"].requests


class HeldModel:
    """A model whose steps can be blocked, to avoid races in tests."""

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self.context_length = model.context_length
        self.slots = model.slots
        self.go_on = threading.Event()
        self.go_on.set()

    def forward(self, batch: Batch) -> Tensor:
        assert self.go_on.wait(600), "the test forgot to let the model go on"
        return self._model.forward(batch)


@asynccontextmanager
async def serving(model: CausalLM, tokenizer: Tokenizer, backend: str) -> AsyncIterator[Subject]:
    """Serve a model with `SLOTS` slots of `CONTEXT` tokens."""
    held_model = HeldModel(model)
    info = EngineInfo("random", backend, "none", "float32", "cpu", CONTEXT)

    @asynccontextmanager
    async def held() -> AsyncIterator[None]:
        held_model.go_on.clear()
        yield
        held_model.go_on.set()

    async with ServingEngine(lambda _: LoadedModel(held_model, tokenizer, info), max_waiting=MAX_WAITING) as engine:
        yield Subject(engine, held)
    assert not any(thread.name == "engine" for thread in threading.enumerate())


def chatglm() -> AbstractAsyncContextManager[Subject]:
    config = replace(read_config(GOLDEN), max_sequence_length=CONTEXT)
    return serving(load_random(config, slots=SLOTS, device="cpu"), ChatGLMTokenizer.load(GOLDEN), "chatglm")


def transformers() -> AbstractAsyncContextManager[Subject]:
    tokenizer = ChatTokenizer(make_tokenizer(), frozenset([0]), "a folder")
    model = PretrainedForServing(make_network("glm4"), slots=SLOTS, context_length=CONTEXT)
    return serving(model, tokenizer, "transformers")


@asynccontextmanager
async def remote() -> AsyncIterator[Subject]:
    async with ModelServer(context_length=CONTEXT) as server:
        section = EngineSection(backend="remote", urls=(server.url,), max_batch_size=SLOTS, max_waiting=MAX_WAITING)

        @asynccontextmanager
        async def held() -> AsyncIterator[None]:
            server.go_on.clear()
            yield
            server.go_on.set()

        async with RemoteEngine(section, MonotonicClock()) as engine:
            yield Subject(engine, held)
        await server.until(lambda: server.running == 0)


class EstimatingEngine(ScriptedEngine):
    """Counts tokens as the remote backend estimates them."""

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return sum(estimate_tokens(message.content) for message in messages)


@asynccontextmanager
async def remote_bot() -> AsyncIterator[Subject]:
    """The HTTP server of another bot."""
    served = EstimatingEngine(default=list("a scripted answer"), max_batch_size=SLOTS, context_length=CONTEXT)
    clock = MonotonicClock()
    limits = LimitsSection(requests_per_minute=0, tokens_per_hour=0, waiting_per_user=0)
    access = Access(AccessSection(), limits, clock)
    backend = Backend(served, ChatSettings.of(Config()), access, MAX_WAITING, Metrics())

    @asynccontextmanager
    async def held() -> AsyncIterator[None]:
        served.go_on.clear()
        yield
        served.go_on.set()

    async with served, serve_apis(ServerSection(port=0), backend, clock) as port:
        section = EngineSection(
            backend="remote",
            urls=(f"http://127.0.0.1:{port}/v1",),
            max_batch_size=SLOTS,
            max_waiting=MAX_WAITING,
        )
        async with RemoteEngine(section, clock) as engine:
            yield Subject(engine, held)
    assert (served.load.running, served.load.waiting) == (0, 0)


@pytest.fixture(
    params=[echo, scripted, switched, routed, chatglm, transformers, remote, remote_bot], ids=lambda make: make.__name__
)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    make: Callable[[], AbstractAsyncContextManager[Subject]] = request.param
    async with asyncio.timeout(TIMEOUT), make() as made:
        yield made
        assert (made.engine.load.running, made.engine.load.waiting) == (0, 0)


def ask(text: str = "tell me something", user: str = "", channel: str = "", seed: int = 1) -> ChatRequest:
    params = SamplingParams(max_tokens=12, seed=seed)
    return ChatRequest((ChatMessage("user", text),), params, channel=channel, user=user)


async def events(engine: Engine, request: ChatRequest) -> list[EngineEvent]:
    return [event async for event in engine.generate(request)]


def assert_in_order(seen: list[EngineEvent]) -> None:
    """Assert `Queued`s, then `Delta`s, then one `Finished`."""
    kinds = [type(event) for event in seen]
    assert kinds == sorted(kinds, key=[Queued, Delta, Finished].index)
    assert kinds.count(Finished) == 1
    assert all(event.text for event in seen if isinstance(event, Delta))


def usage_fits(engine: Engine, request: ChatRequest, end: EngineEvent) -> bool:
    assert isinstance(end, Finished)
    return end.usage.prompt_tokens == engine.count_tokens(request.messages) and end.usage.completion_tokens > 0


async def test_an_answer_is_deltas_and_then_one_finished_with_its_usage(subject: Subject) -> None:
    request = ask()
    seen = await events(subject.engine, request)
    assert_in_order(seen)
    assert usage_fits(subject.engine, request, seen[-1])
    assert isinstance(seen[-1], Finished)
    assert seen[-1].reason in {FinishReason.STOP, FinishReason.LENGTH}


async def test_the_info_is_known_once_it_is_entered(subject: Subject) -> None:
    assert subject.engine.info.context_length == CONTEXT


async def test_an_engine_without_work_is_neither_down_nor_stuck(subject: Subject) -> None:
    await events(subject.engine, ask())
    assert (subject.engine.load.since_progress, subject.engine.load.down) == (0, None)


async def test_a_longer_chat_has_more_tokens(subject: Subject) -> None:
    short = (ChatMessage("user", "hello"),)
    long = (*short, ChatMessage("assistant", "hello to you"), ChatMessage("user", "and again"))
    assert 0 < subject.engine.count_tokens(short) < subject.engine.count_tokens(long)


async def test_a_text_has_a_piece_for_each_of_its_ids(subject: Subject) -> None:
    tokens = subject.engine.tokenize("hello, 你好")
    if tokens is not None:  # else the tokenizer is elsewhere
        assert len(tokens.ids) == len(tokens.pieces) > 0


async def test_a_prompt_beyond_the_context_is_rejected_with_its_numbers(subject: Subject) -> None:
    long = ask("too long " * 200)
    with pytest.raises(PromptTooLong) as caught:
        await events(subject.engine, long)
    assert caught.value.tokens == subject.engine.count_tokens(long.messages) >= caught.value.limit == CONTEXT


async def test_a_request_without_a_free_slot_gets_its_position_and_then_an_answer(subject: Subject) -> None:
    engine = subject.engine
    async with subject.held():
        running = [asyncio.create_task(events(engine, ask())) for _ in range(SLOTS)]
        await asyncio.sleep(0)
        waiting = engine.generate(ask())
        assert await anext(waiting) == Queued(1)
        assert (engine.load.running, engine.load.waiting) == (SLOTS, 1)
    seen = [event async for event in waiting]
    assert_in_order(seen)
    for answer in await asyncio.gather(*running):
        assert not any(isinstance(event, Queued) for event in answer)


async def test_a_full_queue_rejects_and_does_not_affect_accepted_requests(subject: Subject) -> None:
    engine = subject.engine
    async with subject.held():
        accepted = [asyncio.create_task(events(engine, ask())) for _ in range(SLOTS + MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(EngineBusy) as caught:
            await events(engine, ask())
        assert (caught.value.waiting, caught.value.limit) == (MAX_WAITING, MAX_WAITING)
    for seen in await asyncio.gather(*accepted):
        assert_in_order(seen)


async def test_closing_a_running_answer_gives_its_slot_to_the_next(subject: Subject) -> None:
    engine = subject.engine
    async with subject.held():
        running = [asyncio.create_task(events(engine, ask())) for _ in range(SLOTS)]
        await asyncio.sleep(0)
        waiting = engine.generate(ask())
        assert await anext(waiting) == Queued(1)
        running[0].cancel()
        await asyncio.wait([running[0]])
        assert (engine.load.running, engine.load.waiting) == (SLOTS, 0)
    assert_in_order([event async for event in waiting])
    assert_in_order(await running[1])


async def test_closing_a_waiting_request_moves_the_others_up(subject: Subject) -> None:
    engine = subject.engine
    async with subject.held():
        running = [asyncio.create_task(events(engine, ask())) for _ in range(SLOTS)]
        await asyncio.sleep(0)
        first, second = engine.generate(ask()), engine.generate(ask())
        assert await anext(first) == Queued(1)
        assert await anext(second) == Queued(2)
        await first.aclose()
        assert await anext(second) == Queued(1)
        await second.aclose()
    await asyncio.gather(*running)


async def test_an_answer_closed_after_its_first_text_frees_its_slot(subject: Subject) -> None:
    async with aclosing(subject.engine.generate(ask())) as stream:
        await anext(stream)
    assert subject.engine.load.running == 0


async def test_a_user_with_many_requests_does_not_delay_another_user(subject: Subject) -> None:
    engine = subject.engine
    async with subject.held():
        running = [asyncio.create_task(events(engine, ask(user="busy"))) for _ in range(SLOTS)]
        await asyncio.sleep(0)
        busy = [engine.generate(ask(user="busy", channel="x")) for _ in range(2)]
        assert [await anext(stream) for stream in busy] == [Queued(1), Queued(2)]
        other = engine.generate(ask(user="other"))
        assert await anext(other) == Queued(2)
        assert await anext(busy[1]) == Queued(3)
        for stream in [*busy, other]:
            await stream.aclose()
    await asyncio.gather(*running)


async def test_requests_of_many_tasks_are_all_answered(subject: Subject) -> None:
    engine = subject.engine
    request = ask()
    turns = asyncio.Semaphore(SLOTS + MAX_WAITING)

    async def client(number: int) -> list[EngineEvent]:
        async with turns:
            return await events(engine, ask(user=str(number % 3), channel=str(number), seed=number))

    for seen in await asyncio.gather(*(client(number) for number in range(20))):
        assert_in_order(seen)
        assert usage_fits(engine, request, seen[-1])


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_of_cancellations_leaves_nothing_behind(subject: Subject, seed: int) -> None:
    engine, dice = subject.engine, random.Random(seed)

    async def client() -> None:
        seen = []
        try:
            async with aclosing(engine.generate(ask(user=dice.choice("abc"), channel=dice.choice("xy")))) as stream:
                async for event in stream:
                    seen.append(event)
                    if dice.random() < 0.1:
                        return
        except EngineBusy:
            return
        assert_in_order(seen)

    async def killed() -> None:
        task = asyncio.create_task(client())
        for _ in range(dice.randrange(6)):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(dice.choice([client, killed])())
            await asyncio.sleep(0)
    assert (engine.load.running, engine.load.waiting) == (0, 0)
    assert_in_order(await events(engine, ask()))
