"""Pictures in the requests of the remote backend, and servers that do not take them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from bot.domain import ChatMessage, ChatRequest, Finished, Picture, Queued, SamplingParams
from bot.engine.remote.tokens import estimate_picture, estimate_tokens
from bot.errors import EngineBusy, EngineFailed, PicturesRefused
from tests.engine.remote_bench import remote, text_of
from tests.harness.servers.model_server import Behaviour, ModelServer, delta, refuse, send
from tests.reading.hostile_pictures import drawn

PICTURE = Picture("image/jpeg", drawn("JPEG", (280, 56)), 280, 56)
QUESTION = ChatRequest((ChatMessage("user", "what is it?", (PICTURE,)),), SamplingParams())


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


def asking(*messages: ChatMessage) -> ChatRequest:
    return replace(QUESTION, messages=messages)


async def test_a_picture_is_a_part_before_the_text(server: ModelServer) -> None:
    async with remote(server, vision=True) as engine:
        assert await text_of(engine, QUESTION) == "a scripted answer"
    assert server.pictures == [[PICTURE.data]]
    picture, text = server.bodies[0]["messages"][0]["content"]
    assert picture["image_url"] == {"url": PICTURE.url}
    assert text == {"type": "text", "text": "what is it?"}


async def test_a_picture_may_be_the_whole_question(server: ModelServer) -> None:
    async with remote(server, vision=True) as engine:
        await text_of(engine, asking(ChatMessage("user", "", (PICTURE,))))
    assert [part["type"] for part in server.bodies[0]["messages"][0]["content"]] == ["image_url"]


async def test_a_template_without_a_system_role_has_its_words_before_the_question(server: ModelServer) -> None:
    server.then(refuse(400, {"error": {"message": "System role not supported"}}))
    async with remote(server, vision=True) as engine:
        await text_of(engine, asking(ChatMessage("system", "Be brief."), *QUESTION.messages))
    content = server.bodies[-1]["messages"][0]["content"]
    assert content[-1] == {"type": "text", "text": "Be brief.\n\nwhat is it?"}
    assert server.pictures[-1] == [PICTURE.data]


async def test_tokens_of_pictures_are_estimated_beside_those_of_the_text(server: ModelServer) -> None:
    async with remote(server, vision=True) as engine:
        text = engine.count_tokens([ChatMessage("user", "what is it?")])
        assert text == estimate_tokens("what is it?")
        assert engine.count_tokens(QUESTION.messages) == text + estimate_picture(PICTURE) == text + 24


async def test_a_server_counts_the_text_alone() -> None:
    async with ModelServer(owner="vllm", context_length=60) as server, remote(server, vision=True) as engine:
        await text_of(engine, QUESTION)
        assert server.counted == 1
        assert engine.count_tokens(QUESTION.messages) == 3 + estimate_picture(PICTURE)


REFUSALS: dict[str, tuple[Behaviour, int | None]] = {
    "vLLM": (refuse(400, {"error": {"message": "scripted is not a multimodal model None"}}), 0),
    "vLLM with a limit": (refuse(400, {"error": {"message": "At most 1 image(s) may be provided in one prompt."}}), 1),
    "llama-server": (
        refuse(
            500, {"error": {"code": 500, "message": "image input is not supported - hint: you may need the mmproj"}}
        ),
        0,
    ),
    "Ollama": (refuse(500, {"error": {"message": "this model is missing data required for image input"}}), 0),
    "LM Studio": (refuse(400, {"error": "Model does not support images. Please use a model that does."}), 0),
    "OpenAI": (
        refuse(400, {"error": {"message": "Invalid content type. image_url is only supported by certain models."}}),
        0,
    ),
    "serde": (refuse(400, "messages[0]: unknown variant `image_url`, expected `text` at line 1 column 90"), 0),
    "FastAPI": (
        refuse(422, {"detail": [{"loc": ["body", "messages", 0, "content"], "msg": "Input should be a valid string"}]}),
        0,
    ),
    "one picture": (refuse(400, {"error": {"message": "cannot identify image file"}}), None),
    "no reason": (refuse(400, {"error": {"message": "Bad Request"}}), None),
}


@pytest.mark.parametrize(("behaviour", "most"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_of_pictures_is_raised_and_remembered(
    server: ModelServer, behaviour: Behaviour, most: int | None
) -> None:
    server.then(behaviour)
    two = asking(ChatMessage("user", "what are they?", (PICTURE, PICTURE)))
    async with remote(server, vision=True) as engine:
        assert engine.info.most_pictures == 4
        with pytest.raises(PicturesRefused) as error:
            await text_of(engine, two)
        assert error.value.most == (most or 0)
        assert engine.info.most_pictures == (4 if most is None else most)
        if most is not None:
            with pytest.raises(PicturesRefused):
                await text_of(engine, two)
            assert len(server.bodies) == 1
        assert await text_of(engine, asking(ChatMessage("user", "why?"))) == "a scripted answer"


async def test_another_server_gets_the_pictures_that_one_refuses(server: ModelServer) -> None:
    async with ModelServer() as other, remote(server, other, vision=True) as engine:
        for each in (server, other):
            each.then(refuse(400, {"error": {"message": "not a multimodal model"}}))
        with pytest.raises(PicturesRefused):
            await text_of(engine, QUESTION)
        (refusing,) = [each for each in (server, other) if each.bodies]
        assert engine.info.most_pictures == 4
        (able,) = [each for each in (server, other) if each is not refusing]
        able.script.clear()
        assert await text_of(engine, QUESTION) == "a scripted answer"
        assert len(able.bodies) == 1


async def test_a_question_waits_for_the_only_server_that_sees_while_text_passes_it(server: ModelServer) -> None:
    two = asking(ChatMessage("user", "which is older?", (PICTURE, PICTURE)))
    async with ModelServer() as other, remote(server, other, vision=True, max_batch_size=1, max_waiting=1) as engine:
        server.then(refuse(400, {"error": {"message": "At most 1 image(s) may be provided"}}))
        with pytest.raises(PicturesRefused):
            await text_of(engine, two)
        other.go_on.clear()
        first = asyncio.create_task(text_of(engine, two))
        await other.until(lambda: other.running == 1)
        second = engine.generate(replace(two, channel="second", user="second"))
        assert isinstance(await anext(second), Queued)
        with pytest.raises(EngineBusy):
            await text_of(engine, replace(two, channel="third", user="third"))
        assert await text_of(engine, QUESTION) == "a scripted answer"
        assert (len(server.bodies), len(other.bodies), engine.load.waiting) == (2, 1, 1)
        other.go_on.set()
        assert await first == "a scripted answer"
        assert isinstance([event async for event in second][-1], Finished)
        assert len(other.bodies) == 2


async def test_a_question_with_a_picture_is_given_up_while_only_a_blind_server_is_well(server: ModelServer) -> None:
    async with ModelServer() as other, remote(server, other, vision=True) as engine:
        server.then(refuse(400, {"error": {"message": "not a multimodal model"}}))
        with pytest.raises(PicturesRefused):
            await text_of(engine, QUESTION)
        await other.kill()
        with pytest.raises(EngineFailed, match=r"no model server answers: .*ConnectError"):
            await text_of(engine, replace(QUESTION, has_fallback=True))
        assert await text_of(engine, asking(ChatMessage("user", "why?"))) == "a scripted answer"


@pytest.mark.parametrize(
    "behaviour",
    [
        refuse(400, {"error": {"message": "content filter: flagged"}}),
        refuse(413, "body too large"),
    ],
)
async def test_other_refusals_are_no_matter_of_pictures(server: ModelServer, behaviour: Behaviour) -> None:
    server.then(behaviour)
    async with remote(server, vision=True) as engine:
        with pytest.raises(EngineFailed):
            await text_of(engine, QUESTION)


async def test_a_parameter_is_left_out_before_pictures_are(server: ModelServer) -> None:
    server.then(refuse(400, {"error": {"message": "unknown field: top_k"}}))
    async with remote(server, vision=True) as engine:
        assert await text_of(engine, QUESTION) == "a scripted answer"
        assert engine.info.most_pictures == 4


async def test_a_model_without_vision_gets_no_picture(server: ModelServer) -> None:
    async with remote(server) as engine:
        assert engine.info.most_pictures == 0
        with pytest.raises(PicturesRefused):
            await text_of(engine, QUESTION)
    assert server.bodies == []


async def test_a_broken_answer_about_a_picture_is_continued() -> None:
    async with ModelServer(owner="vllm") as server, remote(server, vision=True) as engine:
        server.then(send(delta("a scri"), abort=True))
        assert await text_of(engine, QUESTION) == "a scripted answer"
        assert server.pictures == [[PICTURE.data]] * 2
