"""The demo checkpoint: of the promised size and shape, and sensible in both languages."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio
import torch

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, SamplingParams
from bot.engine import open_engine
from bot.engine.backends.chatglm import DEMO
from bot.engine.base import Engine
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer

GREEDY = SamplingParams(temperature=0, max_tokens=300)


# One engine for all questions: its loop must outlive a test.
asks = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["none", "int8", "int4"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    async with open_engine(EngineSection(quantization=request.param)) as engine:
        yield engine


async def answer(engine: Engine, *said: str, params: SamplingParams = GREEDY) -> str:
    """Ask the last of `said`; the others were questions and answers in turn before it."""
    messages = tuple(ChatMessage("assistant" if i % 2 else "user", text) for i, text in enumerate(said))
    async with aclosing(engine.generate(ChatRequest(messages, params))) as events:
        return "".join([event.text async for event in events if isinstance(event, Delta)])


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 12_000_000


def test_its_sizes_suit_the_packed_products() -> None:
    config = read_config(DEMO)
    assert config.hidden_size % 128 == config.inner_hidden_size % 128 == config.vocab_size % 16 == 0
    assert ChatGLMTokenizer.load(DEMO).vocabulary <= config.vocab_size


def test_its_files_have_the_published_names_and_types() -> None:
    assert {"config.json", "ice_text.model", "tokenizer_config.json", "model.safetensors"} <= {
        path.name for path in DEMO.iterdir()
    }
    assert {tensor.dtype for tensor in Checkpoint(DEMO).tensors.values()} == {torch.float16}
    assert json.loads((DEMO / "tokenizer_config.json").read_text())["tokenizer_class"] == "ChatGLMTokenizer"


def test_its_licence_and_origin_stand_beside_it() -> None:
    note = (DEMO / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in note
    assert "No data and no weights of others" in note


@asks
@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("hello", "Hello!"),
        ("Hi", "Hi!"),
        ("what does /clear do?", "/clear"),
        ("How do I load the real ChatGLM-6B?", "THUDM/chatglm-6b"),
        ("what is quantization?", "int8"),
        ("Which platforms do you support?", "Discord, Telegram and Slack"),
        ("are you the real ChatGLM-6B", "demo"),
        ("What is the capital of France?", "I do not know"),
        ("你好", "你好！"),
        ("有哪些命令？", "/retry"),
        ("怎么加载真正的ChatGLM-6B", "THUDM/chatglm-6b"),
        ("什么是量化", "int4"),
        ("支持哪些平台？", "Discord、Telegram 和 Slack"),
        ("什么是黑洞？", "我不知道"),
    ],
)
async def test_it_knows_this_bot_and_says_what_it_does_not_know(engine: Engine, question: str, expected: str) -> None:
    assert expected in await answer(engine, question)


@asks
async def test_it_quotes_the_message_before(engine: Engine) -> None:
    assert await answer(engine, "hello", "Hello!", "what did I just say?") == 'You said: "hello".'
    assert await answer(engine, "你好", "你好！", "我刚才说了什么？") == "你刚才说：“你好”。"


@asks
async def test_it_remembers_a_name(engine: Engine) -> None:
    hello = await answer(engine, "My name is Mei")
    assert "Mei" in hello
    assert "Mei" in await answer(engine, "My name is Mei", hello, "what is my name?")


@asks
async def test_a_follow_up_depends_on_what_came_before(engine: Engine) -> None:
    told = await answer(engine, "What is quantization?")
    assert 'quantization = "int4"' in await answer(engine, "What is quantization?", told, "And how do I turn it on?")


@asks
async def test_it_answers_in_a_shared_channel_where_names_stand_before_messages(engine: Engine) -> None:
    assert "Hello!" in await answer(engine, "Mei: hello")


@asks
async def test_a_long_answer_has_markdown_and_is_longer_than_one_message(engine: Engine) -> None:
    text = await answer(engine, "Write a long answer", params=SamplingParams(temperature=0, max_tokens=1000))
    assert len(text) > 1200
    assert text.count("```") == 2


@asks
async def test_the_default_sampling_follows_what_was_learnt(engine: Engine) -> None:
    answers = [await answer(engine, "hello", params=SamplingParams(max_tokens=100, seed=seed)) for seed in range(5)]
    assert all("Hello!" in text for text in answers)
