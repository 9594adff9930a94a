"""The remote backend with what single servers offer: continuing, counting, thoughts; and while servers are dead."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from bot.config.schema import EngineSection
from bot.domain import (
    ChatMessage,
    ChatRequest,
    Delta,
    Finished,
    FinishReason,
    Queued,
    Thought,
    Usage,
)
from bot.engine.backends import remote as backend
from bot.engine.backends.remote import RemoteEngine
from bot.engine.remote import api
from bot.engine.remote.tokens import estimate_tokens
from bot.errors import AnswerBrokenOff, EngineBusy, PromptTooLong
from bot.observability.health import engine_fault
from tests.engine.remote_bench import DONE, END, QUESTION, ask, remote, text_of
from tests.harness.fakes import FastClock
from tests.harness.ports import reserved_port
from tests.harness.servers.model_server import Behaviour, ModelServer, delta, event, hang, refuse, send

CUT = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which a server can listen later."""
    with reserved_port() as port:
        yield port


def on_port(port: int, **options: Any) -> EngineSection:
    return EngineSection(backend="remote", urls=(f"http://127.0.0.1:{port}/v1",), **options)


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
async def test_a_broken_answer_is_continued_where_the_server_offers_it(owner: str) -> None:
    whole = ["Paris is ", "the capital\n\n", "\nof France."]
    async with (
        ModelServer(whole, owner=owner) as one,
        ModelServer(whole, owner=owner) as two,
        remote(one, two) as engine,
    ):
        one.then(send(delta(whole[0]), delta(whole[1]), abort=True))
        two.then(send(delta("\n\n"), delta("\n"), abort=True))
        assert await text_of(engine) == "".join(whole)
        rests = [body for body in one.bodies + two.bodies if body["messages"][-1]["role"] == "assistant"]
    assert len(rests) == 2
    for body in rests:
        assert body["messages"][-1]["content"] == "Paris is the capital"
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
        assert body["max_tokens"] in {6, 7}


async def test_llama_server_continues_by_prefilling_unless_it_is_told_not_to() -> None:
    whole = ["Paris is ", "the capital."]
    async with ModelServer(whole, owner="llamacpp") as server, remote(server) as engine:
        assert engine.info.context_length == 777
        server.then(send(delta(whole[0]), abort=True))
        assert await text_of(engine) == "Paris is the capital."
        assert "continue_final_message" not in server.bodies[-1]
        server.prefills = False
        server.then(send(delta(whole[0]), abort=True))
        with pytest.raises(AnswerBrokenOff):
            await ask(engine)


@pytest.mark.parametrize(
    "refusal",
    [
        refuse(400, {"error": {"message": "unknown field"}}),
        send(delta("hm", "reasoning")),
        send(delta("\n<thi"), delta("nk>hm</think>Four."), END, DONE),
    ],
    ids=["refusal", "reasoning", "tag"],
)
async def test_a_server_that_does_not_continue_ends_the_answer(refusal: Behaviour) -> None:
    async with ModelServer(owner="vllm") as server, remote(server) as engine:
        server.then(send(delta("a "), abort=True), refusal)
        with pytest.raises(AnswerBrokenOff):
            await ask(engine)
        assert await text_of(engine) == "a scripted answer"


async def test_an_answer_that_fills_the_context_while_it_is_continued_is_cut_off() -> None:
    async with ModelServer(owner="vllm") as server, remote(server) as engine:
        server.then(send(delta("a "), abort=True), refuse(400, {"error": {"code": "context_length_exceeded"}}))
        assert [type(event) for event in await ask(engine)] == [Delta, Finished]


async def test_thoughts_are_never_part_of_the_answer(server: ModelServer) -> None:
    server.then(send(delta("<think>2 and"), delta(" 2</th"), delta("ink>\n\nFour."), END, DONE))
    async with remote(server) as engine:
        events = await ask(engine)
    assert [event for event in events if not isinstance(event, Finished)] == [
        Thought("2 and"),
        Thought(" 2"),
        Delta("Four."),
    ]


async def test_reasoning_whose_opening_tag_is_in_the_prompt_is_known_after_the_first_answer(
    server: ModelServer,
) -> None:
    thinks = send(delta("2 and"), delta(" 2\n</thi"), delta("nk>\n\nFour."), END, DONE)
    plain = send(delta("Four, "), delta("1 < 2, 1 <"), END, DONE)
    server.then(thinks, thinks, plain, plain, send(delta("2", "reasoning"), delta("Four."), END, DONE))
    async with remote(server) as engine:
        first = await text_of(engine)
        assert await ask(engine, ChatRequest((*QUESTION.messages, ChatMessage("assistant", first), *QUESTION.messages)))
        assert [message["content"] for message in server.bodies[-1]["messages"]] == ["why?", "Four.", "why?"]
        assert await text_of(engine) == await text_of(engine) == "Four, 1 < 2, 1 <", "it does not think any more"
        assert await text_of(engine) == "Four."


async def test_a_learned_tag_tells_reasoning_from_the_answer(server: ModelServer) -> None:
    thinks = send(delta("2 and 2\n</th"), delta("ink>\nFour."), END, DONE)
    server.then(thinks, thinks, send(delta("2 and"), event(CUT), DONE), send(delta("2", "reasoning"), delta("4"), END))
    async with remote(server) as engine:
        await ask(engine)
        told = [event for event in await ask(engine) if not isinstance(event, Finished)]
        assert told == [Thought("2 and 2\n"), Delta("Four.")]
        assert await text_of(engine) == "", "the limit came before the answer"
        assert await text_of(engine) == "4", "the server tells them apart itself"


@pytest.mark.parametrize(
    "said", ["A `</think>` ends it.", "```\n</think>\n``` ends it.", "Write <b>, <think>, </think>."]
)
async def test_a_closing_tag_that_an_answer_is_about_teaches_nothing(server: ModelServer, said: str) -> None:
    server.then(send(delta(said), END, DONE))
    async with remote(server) as engine:
        assert await text_of(engine) == said
        assert await ask(engine) == [
            Delta("a "),
            Delta("scripted "),
            Delta("answer"),
            Finished(FinishReason.STOP, Usage(6, 4)),
        ]


async def test_without_a_name_the_model_is_asked_for_once_a_server_is_up(port: int) -> None:
    async with RemoteEngine(on_port(port), FastClock(10)) as engine:
        fault = engine_fault(engine.load, 60)
        assert fault is not None
        assert "ConnectError" in fault
        asking = asyncio.create_task(ask(engine))
        async with ModelServer(context_length=900, port=port):
            assert isinstance((await asking)[-1], Finished)
            assert (engine.info.model, engine.info.context_length) == ("scripted", 900)
            assert engine_fault(engine.load, 60) is None


async def test_a_server_without_a_list_of_models_is_used_if_the_model_is_named(server: ModelServer) -> None:
    server.has_list = False
    async with remote(server, model="scripted") as engine:
        assert await text_of(engine) == "a scripted answer"


async def test_a_connection_that_a_failed_list_leaves_closing_takes_no_question(server: ModelServer) -> None:
    server.closes_after_list = True
    async with remote(server, model="scripted") as engine:
        assert await text_of(engine) == "a scripted answer"


async def test_a_model_that_still_loads_is_said_in_the_queue() -> None:
    async with ModelServer() as server:
        server.is_loading = True
        async with remote(server, model="scripted") as engine:
            assert "still loading" in str(engine.load.fault)
            async with aclosing(engine.generate(QUESTION)) as events:
                assert await anext(events) == Queued(1, is_model_loading=True)
                server.is_loading = False
                assert [event async for event in events][-1] == Finished(FinishReason.STOP, Usage(6, 4))


async def test_the_queue_tells_seconds_once_an_answer_was_timed(server: ModelServer) -> None:
    async with remote(server, max_batch_size=1, max_waiting=2) as engine:
        await ask(engine)
        server.go_on.clear()
        running = asyncio.create_task(ask(engine))
        await server.until(lambda: server.running == 1)
        streams = [engine.generate(QUESTION) for _ in range(2)]
        first, second = [await anext(stream) for stream in streams]
        assert isinstance(first, Queued)
        assert isinstance(second, Queued)
        assert first.wait is not None
        assert second.wait == 2 * first.wait == engine.load.wait
        with pytest.raises(EngineBusy) as caught:
            await ask(engine)
        assert caught.value.wait == second.wait
        for stream in streams:
            await stream.aclose()
        server.go_on.set()
        await running


async def test_while_all_servers_are_dead_each_question_is_told_its_place(port: int) -> None:
    engine = RemoteEngine(on_port(port, max_batch_size=2), FastClock(10))
    async with ModelServer(port=port):
        await engine.__aenter__()
    try:
        first = engine.generate(QUESTION)
        assert await anext(first) == Queued(1)  # after its first attempt
        second = engine.generate(QUESTION)
        assert await anext(second) == Queued(2)
        assert (engine.load.running, engine.load.waiting, engine.load.slots) == (0, 2, 0)
        async with ModelServer(port=port):
            for stream in (first, second):
                assert isinstance([event async for event in stream][-1], Finished)
            assert engine.load.slots == 2
    finally:
        await engine.__aexit__(None, None, None)


async def test_a_dead_server_takes_one_request_at_a_time_until_it_answers() -> None:
    async with ModelServer() as well, ModelServer() as sick, remote(well, sick, max_batch_size=4) as engine:
        sick.then(refuse(500), refuse(500))
        well.go_on.clear()
        sick.go_on.clear()
        asking = [
            asyncio.create_task(ask(engine, ChatRequest(QUESTION.messages, channel=str(number)))) for number in range(5)
        ]
        await well.until(lambda: well.running == 4)
        await sick.until(lambda: len(sick.bodies) >= 2)
        await sick.until(lambda: sick.running == 1)
        assert engine.load.slots == 5
        sick.go_on.set()
        well.go_on.set()
        await asyncio.gather(*asking)
        assert engine.load.slots == 8


async def test_no_question_waits_for_a_frozen_server_before_its_list_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_SHORT_CALL", 0.1)
    async with ModelServer() as frozen, ModelServer() as well, remote(frozen, well, first_token_seconds=1) as engine:
        frozen.is_frozen = True
        for _ in range(6):
            assert await text_of(engine) == "a scripted answer"
            await asyncio.sleep(0.1)  # 5 s of the engine's clock
        assert len(frozen.bodies) == 1
        frozen.is_frozen = False
        async with asyncio.timeout(10):
            while len(frozen.bodies) == 1:
                await ask(engine)
                await asyncio.sleep(0.01)
        assert engine.load.fault is None


async def test_a_server_that_only_lists_its_models_takes_little_of_a_questions_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "_TRIAL_SECONDS", 0.05)
    async with ModelServer() as silent, ModelServer() as well, remote(silent, well, first_token_seconds=1) as engine:
        silent.default = hang()
        assert await text_of(engine) == "a scripted answer"
        began = asyncio.get_running_loop().time()
        while len(silent.bodies) < 4:
            assert await text_of(engine) == "a scripted answer"
            await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - began < 3, "three trials without their limit"


@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
async def test_a_prompt_that_may_be_too_long_is_counted_by_the_server(owner: str) -> None:
    messages = (ChatMessage("user", "word " * 30),)
    estimated = estimate_tokens(messages[0].content)
    async with ModelServer(owner=owner) as server, remote(server, context_length=estimated + 20) as engine:
        await ask(engine, ChatRequest(messages))
        assert server.counted == 1
        assert 30 <= engine.count_tokens(messages) <= 31 < estimated
        server.tokens_per_word = 100
        with pytest.raises(PromptTooLong) as caught:
            await ask(engine, ChatRequest((*messages, *messages)))
        assert caught.value.tokens == engine.count_tokens((*messages, *messages)) >= 6000
        assert len(server.bodies) == 1


@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
@pytest.mark.parametrize(("status", "is_asked_again"), [(503, True), (429, True), (404, False)])
async def test_counting_is_tried_again_after_passing_failures(
    owner: str, status: int, is_asked_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = (ChatMessage("user", "word " * 30),)
    context = estimate_tokens(messages[0].content) + 20
    clock = FastClock(1.0)
    async with ModelServer(owner=owner) as server, remote(server, clock=clock, context_length=context) as engine:
        server.count_refusal = status
        await ask(engine, ChatRequest(messages))
        await ask(engine, ChatRequest(messages))
        assert server.counted == 1
        server.count_refusal = None
        later = clock.now() + 60
        monkeypatch.setattr(clock, "now", lambda: later)
        await ask(engine, ChatRequest(messages))
        assert server.counted == 1 + is_asked_again


async def test_a_short_prompt_is_not_counted() -> None:
    async with ModelServer(owner="vllm") as server, remote(server) as engine:
        await ask(engine)
        assert server.counted == 0


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"error": {"message": "This model's maximum context length is 900 tokens. However, you requested 1200"}}, 900),
        ({"error": {"message": "no", "type": "exceed_context_size_error", "n_prompt_tokens": 12, "n_ctx": 900}}, 900),
        ({"error": {"message": "Input tokens exceed", "code": "context_length_exceeded"}}, None),
        (
            {
                "object": "error",
                "message": "The input (1200 tokens) is longer than the model's context length (900 tokens).",
                "code": 400,
            },
            900,
        ),
        ({"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 900. Given: 1000"}, 900),
        ({"error": {"message": "prompt is too long: 1200 tokens > 900 maximum"}}, 900),
        (
            {
                "error": "Trying to keep the first 1200 tokens when context the overflows. However, the model is loaded with context length of only 900 tokens"
            },
            900,
        ),
    ],
    ids=["vLLM", "llama-server", "OpenAI", "SGLang", "TGI", "Anthropic", "LM Studio"],
)
async def test_each_servers_refusal_of_a_long_prompt_is_understood(
    server: ModelServer, body: object, limit: int | None
) -> None:
    server.then(refuse(400, body))
    async with remote(server) as engine:
        before = engine.count_tokens(QUESTION.messages)
        with pytest.raises(PromptTooLong):
            await ask(engine)
        assert engine.info.context_length == limit or (limit is None and engine.info.context_length == 4096)
        assert engine.count_tokens(QUESTION.messages) > before, "the next prompt is cut shorter"
