"""The remote backend against a model server that fails in every way it may."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from bot.config.schema import EngineSection
from bot.domain import (
    ChatRequest,
    Delta,
    Finished,
    FinishReason,
    Usage,
)
from bot.engine import open_engine, preflight
from bot.engine.backends.remote import RemoteEngine
from bot.errors import EngineFailed, EngineUnavailable, PromptTooLong
from tests.engine.remote_bench import DONE, END, QUESTION, ask, remote, text_of
from tests.harness.fakes import FastClock
from tests.harness.ports import reserved_port
from tests.harness.servers.model_server import ModelServer, delta, event, hang, refuse, say, send


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


async def test_the_request_has_the_parameters_and_the_key(server: ModelServer) -> None:
    async with remote(server, key=SecretStr("hush")) as engine:
        events = await ask(engine)
    assert [event for event in events if isinstance(event, Delta)] == [
        Delta("a "),
        Delta("scripted "),
        Delta("answer"),
    ]
    assert events[-1] == Finished(FinishReason.STOP, Usage(6, 4))
    assert server.headers[0]["Authorization"] == "Bearer hush"
    assert server.bodies[0] == {
        "model": "scripted",
        "messages": [{"role": "user", "content": "why?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.95,
        "top_p": 0.7,
        "top_k": 50,
        "max_tokens": 9,
        "stop": ["END"],
        "seed": 5,
    }


@pytest.mark.parametrize(
    "behaviour",
    [
        refuse(429, {"error": {"message": "slow down"}}, Retry_After="1"),
        refuse(503, "<html>loading</html>", Retry_After="nonsense"),
        refuse(502),
        refuse(504),
        refuse(500, "[" * 100_000),
        send(abort=True),
        send(event({"error": {"message": "out of memory"}})),
        send(b"data: {not json\n\n"),
        send(b"data: []\n\n"),
        send(b"data: " + b"[" * 50_000 + b"\n\n"),
        send(event({"choices": [{"delta": {"content": 7}}]})),
        send(b": only a comment\n\n", DONE),
        send(DONE),
        send(),
    ],
    ids=[
        *("429", "503", "502", "504", "nested 500", "reset", "error event", "no json", "no object", "nested event"),
        *("number as text", "comment", "done at once", "empty"),
    ],
)
async def test_a_failure_before_the_first_text_moves_to_the_other_server(server: ModelServer, behaviour: Any) -> None:
    async with ModelServer(["from ", "the other"]) as other:
        server.then(behaviour)
        async with remote(server, other) as engine:
            assert await text_of(engine) == "from the other"
            assert engine.load.running == 0


async def test_a_single_server_is_tried_again_after_a_pause(server: ModelServer) -> None:
    server.then(refuse(503), refuse(429, Retry_After="7"), send(abort=True))
    async with remote(server) as engine:
        assert await text_of(engine) == "a scripted answer"
    assert len(server.bodies) == 4


async def test_a_server_that_never_answers_ends_in_an_error(server: ModelServer) -> None:
    server.then(*[refuse(503)] * 1000)
    async with remote(server) as engine:
        with pytest.raises(EngineFailed, match="no model server answers"):
            await ask(engine)


@pytest.mark.parametrize(
    "rest",
    [
        (True, ()),
        (False, ()),
        (False, (DONE,)),
        (False, (event({"error": {"message": "gone"}}), DONE)),
        (False, (b"data: {\n\n",)),
        (False, (b"data: " + "中".encode()[:2],)),
    ],
    ids=["reset", "end without a reason", "done without a reason", "error event", "broken json", "cut character"],
)
async def test_an_answer_that_has_begun_is_never_replaced_by_another(
    server: ModelServer, rest: tuple[bool, tuple[bytes, ...]]
) -> None:
    abort, data = rest
    server.then(send(delta("The first "), *data, abort=abort))
    async with ModelServer(["another"]) as other, remote(server, other) as engine:
        async with aclosing(engine.generate(QUESTION)) as events:
            assert await anext(events) == Delta("The first ")
            with pytest.raises(EngineFailed, match="broke its answer off"):
                await anext(events)
        assert other.bodies == []


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_a_stream_may_be_cut_anywhere_and_have_any_line_ends(server: ModelServer, size: int) -> None:
    whole = b": hello\r\n\r\n" + delta("天气，") + b"event: x\r\n" + delta("很好\u2028。").replace(b"\n", b"\r\n")
    whole += b": ping\n\n" + event({"choices": []}) + event({"choices": [{"delta": None, "finish_reason": "stop"}]})
    server.then(send(*(whole[start : start + size] for start in range(0, len(whole), size)), DONE))
    async with remote(server) as engine:
        assert await text_of(engine) == "天气，很好\u2028。"


async def test_a_stream_without_done_is_whole_if_it_has_a_reason(server: ModelServer) -> None:
    server.then(send(delta("whole"), event({"choices": [{"delta": {}, "finish_reason": "length"}]})))
    async with remote(server) as engine:
        events = await ask(engine)
    assert events == [Delta("whole"), Finished(FinishReason.LENGTH, Usage(6, 2))]


def _ended(reason: object, **more: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], **more})


@pytest.mark.parametrize(
    "rest",
    [
        hang(delta("whole"), END),
        send(delta("whole"), END, abort=True),
        send(delta("whole"), END, b"data: {\n\n"),
        send(delta("whole"), END, event({"error": {"message": "gone"}}), DONE),
        send(delta("whole"), END, event({"choices": [], "usage": {"prompt_tokens": "many"}}), DONE),
        send(delta("whole"), END, event({"choices": [], "usage": ["many"]}), DONE),
        send(
            delta("whole"),
            END,
            event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2**64 - 1}}),
            DONE,
        ),
        send(delta("whole"), END, _ended("", usage=None), DONE),
        send(delta("whole"), END, _ended("error"), DONE),
        send(delta("whole"), _ended("stop_sequence"), DONE),
    ],
    ids=[
        "hang",
        "reset",
        "no json",
        "error",
        "odd count",
        "odd usage",
        "-1 without a sign",
        "empty reason",
        "second reason",
        "unknown",
    ],
)
async def test_after_a_finish_reason_nothing_is_missing(server: ModelServer, rest: Any) -> None:
    server.then(rest)
    async with remote(server, next_token_seconds=0.2) as engine:
        assert await ask(engine) == [Delta("whole"), Finished(FinishReason.STOP, Usage(6, 2))]
        assert engine.load.fault is None


@pytest.mark.parametrize("reason", [None, "", "error", "abort"])
async def test_an_answer_without_a_reason_or_with_that_of_a_failure_is_broken(
    server: ModelServer, reason: str | None
) -> None:
    server.then(send(delta("begun "), _ended(reason), DONE))
    async with remote(server) as engine:
        with pytest.raises(EngineFailed, match="broke its answer off"):
            await ask(engine)


@pytest.mark.parametrize(
    "pieces",
    [
        [delta("2 and 2", "reasoning_content"), delta("Four.")],
        [delta("2 and 2", "reasoning"), delta("Four.")],
        [delta("<think>2 and 2</think>Four.")],
        [delta("\n<thi"), delta("nk>2 < 3</thin"), delta("k"), delta(">\n"), delta("\nFour.")],
    ],
    ids=["reasoning_content", "reasoning", "tag", "cut tag"],
)
async def test_reasoning_is_not_part_of_the_answer(server: ModelServer, pieces: list[bytes]) -> None:
    server.then(send(*pieces, END, DONE))
    async with remote(server) as engine:
        assert await text_of(engine) == "Four."


async def test_a_tag_inside_the_answer_stays(server: ModelServer) -> None:
    server.then(say("Write ", "<think>", " first"), say("<", "b>"), say("<th"))
    async with remote(server) as engine:
        assert [await text_of(engine) for _ in range(3)] == ["Write <think> first", "<b>", "<th"]


async def test_a_refused_parameter_is_left_out_from_then_on(server: ModelServer) -> None:
    server.then(
        refuse(400, {"error": {"message": "Unrecognized request argument supplied: top_k"}}),
        refuse(422, {"detail": [{"loc": ["body", "seed"], "msg": "extra inputs are not permitted"}]}),
        refuse(400, {"error": {"message": "use max_completion_tokens", "param": "max_tokens"}}),
    )
    async with remote(server) as engine:
        assert await text_of(engine) == await text_of(engine) == "a scripted answer"
    assert len(server.bodies) == 5
    assert server.bodies[-1].keys().isdisjoint({"top_k", "seed", "max_tokens"})
    assert server.bodies[-1]["max_completion_tokens"] == 9


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 900 tokens. However, you requested 1200 tokens.",
        "the request exceeds the available context size (900 tokens), try increasing it",
        "prompt is too long: context_length_exceeded",
    ],
)
async def test_a_prompt_beyond_the_context_says_so(server: ModelServer, message: str) -> None:
    server.then(refuse(400, {"error": {"message": message, "type": "invalid_request_error"}}))
    async with remote(server) as engine:
        with pytest.raises(PromptTooLong):
            await ask(engine)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "refuses the key"), (404, "does not know the model"), (307, "redirects")],
)
async def test_what_the_operator_must_change_is_said_at_once(server: ModelServer, status: int, words: str) -> None:
    server.then(refuse(status, "secret text of the prompt", Location="http://127.0.0.1:9/elsewhere"))
    async with remote(server, key=SecretStr("hush")) as engine:
        with capture_logs() as logs, pytest.raises(EngineFailed, match=words):
            await ask(engine)
    assert words in str(logs)
    assert "hush" not in str(logs)
    assert "secret text" not in str(logs)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_closing_the_answer_closes_the_servers_stream(server: ModelServer, begun: bool) -> None:
    server.then(hang(*([delta("one ")] if begun else [])))
    async with remote(server) as engine:
        if begun:
            async with aclosing(engine.generate(QUESTION)) as events:
                assert await anext(events) == Delta("one ")
        else:
            asking = asyncio.create_task(ask(engine))
            await server.until(lambda: server.running == 1)
            asking.cancel()
            await asyncio.wait([asking])
        await server.until(lambda: server.running == 0)
        assert server.closed_early == 1
        assert engine.load.running == 0


@pytest.mark.parametrize("data", [(), (b": ping\n\n",)], ids=["nothing", "only a comment"])
async def test_a_server_that_is_silent_is_left_for_another(server: ModelServer, data: tuple[bytes, ...]) -> None:
    server.then(*[hang(*data)] * 1000)
    # On a busy machine the other one may be too late as well; then both are asked again.
    async with ModelServer(["from the other"]) as other, remote(server, other, first_token_seconds=0.5) as engine:
        assert await text_of(engine) == "from the other"


async def test_an_answer_that_stands_still_is_broken_off(server: ModelServer) -> None:
    server.then(hang(delta("begun ")))
    async with remote(server, next_token_seconds=0.05) as engine:
        with pytest.raises(EngineFailed, match="broke its answer off"):
            await ask(engine)


async def test_a_channel_stays_with_its_server_and_load_is_shared() -> None:
    async with ModelServer() as one, ModelServer() as two, remote(one, two, max_batch_size=2) as engine:
        for channel in ("a", "b", "a", "b", "a"):
            await ask(engine, ChatRequest(QUESTION.messages, channel=channel))
        assert sorted([len(one.bodies), len(two.bodies)]) == [0, 5]
        one.go_on.clear()
        two.go_on.clear()
        requests = [ChatRequest(QUESTION.messages, channel=f"new {number}", user=str(number)) for number in range(4)]
        asking = [asyncio.create_task(ask(engine, request)) for request in requests]
        await one.until(lambda: one.running == 2)
        await two.until(lambda: two.running == 2)
        one.go_on.set()
        two.go_on.set()
        await asyncio.gather(*asking)


async def test_a_server_that_starts_later_is_found(server: ModelServer) -> None:
    async with remote(server, model="scripted") as engine:
        assert engine.info.model == "scripted"
    with reserved_port() as port:
        section = EngineSection(backend="remote", urls=(f"http://127.0.0.1:{port}/v1", server.url), model="scripted")
        async with RemoteEngine(section, FastClock()) as engine:
            assert await text_of(engine) == "a scripted answer"
            assert engine.load.slots == section.max_batch_size


async def test_several_models_need_a_name(server: ModelServer) -> None:
    server.models = [{"id": "llama"}, {"id": "qwen", "max_model_len": 1234}]
    with pytest.raises(EngineUnavailable, match=r"set engine\.model to one of the models at .*: llama, qwen"):
        async with remote(server):
            pass
    async with remote(server, model="qwen") as engine:
        assert (engine.info.model, engine.info.context_length) == ("qwen", 1234)
    async with remote(server, model="qwen", context_length=99) as engine:
        assert engine.info.context_length == 99


def test_mistakes_in_the_settings_are_one_sentence(tmp_path: Any) -> None:
    with pytest.raises(EngineUnavailable, match=r"set engine\.urls"):
        preflight(EngineSection(backend="remote"))
    url = "http://127.0.0.1:9/v1"
    (tmp_path / "ca.pem").write_text("no certificate")
    for file in ("ca.pem", "missing.pem"):
        section = EngineSection(backend="remote", urls=(url,), ca_file=str(tmp_path / file))
        with pytest.raises(EngineUnavailable, match=file):
            open_engine(section)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (("hi \ud83d", "\udc4b!"), "hi 👋!"),
        (("a\udc4b", "b\ud83d", "c"), "a\ufffdb\ufffdc"),
        (("cut \ud83d",), "cut \ufffd"),
    ],
)
async def test_half_a_character_is_joined_with_its_other_half_or_replaced(
    server: ModelServer, pieces: tuple[str, ...], text: str
) -> None:
    written = [json.dumps({"choices": [{"delta": {"content": piece}}]}) for piece in pieces]  # in ASCII
    server.then(send(*(f"data: {piece}\n\n".encode() for piece in written), END, DONE))
    async with remote(server) as engine:
        assert await text_of(engine) == text
