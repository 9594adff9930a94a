"""The demo checkpoint: its size, its shape, and its answers in both languages."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio
import torch

from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, SamplingParams
from bot.engine import open_engine
from bot.engine.base import Engine
from bot.engine.chatglm.checkpoint import Checkpoint
from bot.engine.chatglm.config import read_config
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.model_folder import DEMO

GREEDY = SamplingParams(temperature=0, max_tokens=300)


# One engine for all questions: its loop must outlive a test.
asks = pytest.mark.asyncio(loop_scope="module")

EXPECTED = {
    "hello": "Hello!",
    "Hi": "Hello!",
    "what does /clear do?": "/clear",
    "How do I load the real ChatGLM-6B?": "THUDM/chatglm-6b",
    "what is quantization?": "int8",
    "Which platforms do you support?": "Discord, Telegram, Slack",
    "are you the real ChatGLM-6B": "demo",
    "What is the capital of France?": "I do not know",
    "你好": "你好！",
    "有哪些命令？": "/retry",
    "怎么加载真正的ChatGLM-6B": "THUDM/chatglm-6b",
    "什么是量化": "int4",
    "支持哪些平台？": "Discord、Telegram、Slack",
    "什么是黑洞？": "我不知道",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["none", "int8", "int4"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    async with open_engine(EngineSection(quantization=request.param, max_batch_size=16)) as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answers(engine: Engine) -> dict[str, str]:
    """The answers to all single questions, asked in one batch: half the time of asking one by one."""
    return dict(zip(EXPECTED, await asyncio.gather(*(answer(engine, asked) for asked in EXPECTED)), strict=True))


async def answer(engine: Engine, *said: str, params: SamplingParams = GREEDY) -> str:
    """Ask the last of `said`; the others are questions and answers in turn before it."""
    messages = tuple(ChatMessage("assistant" if i % 2 else "user", text) for i, text in enumerate(said))
    async with aclosing(engine.generate(ChatRequest(messages, params))) as events:
        return "".join([event.text async for event in events if isinstance(event, Delta)])


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 12_000_000


def test_its_matrices_have_sizes_that_the_packed_kernels_take() -> None:
    config = read_config(DEMO)
    assert config.hidden_size % 128 == config.inner_hidden_size % 128 == config.vocab_size % 16 == 0
    assert ChatGLMTokenizer.load(DEMO).vocabulary <= config.vocab_size


def test_its_files_have_the_published_names_and_types() -> None:
    assert {"config.json", "ice_text.model", "tokenizer_config.json", "model.safetensors"} <= {
        path.name for path in DEMO.iterdir()
    }
    assert {tensor.dtype for tensor in Checkpoint(DEMO).tensors.values()} == {torch.float16}
    assert json.loads((DEMO / "tokenizer_config.json").read_text())["tokenizer_class"] == "ChatGLMTokenizer"


def test_its_readme_names_its_licence_and_origin() -> None:
    note = (DEMO / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in note
    assert "No third-party data or weights" in note


@asks
@pytest.mark.parametrize(("question", "expected"), EXPECTED.items())
async def test_it_answers_known_topics_and_declines_others(
    answers: dict[str, str], question: str, expected: str
) -> None:
    assert expected in answers[question]


@asks
async def test_it_quotes_the_previous_message(engine: Engine) -> None:
    assert await answer(engine, "hello", "Hello!", "what did I just say?") == 'You said: "hello".'
    assert await answer(engine, "你好", "你好！", "我刚才说了什么？") == "你刚才说：“你好”。"


@asks
async def test_it_gets_no_names_before_messages_since_it_would_quote_them(engine: Engine) -> None:
    assert not engine.info.reads_names


@asks
async def test_it_remembers_a_name(engine: Engine) -> None:
    hello = await answer(engine, "My name is Mei")
    assert "Mei" in hello
    assert "Mei" in await answer(engine, "My name is Mei", hello, "what is my name?")


@asks
async def test_a_follow_up_is_answered_in_the_context_of_the_conversation(engine: Engine) -> None:
    told = await answer(engine, "What is quantization?")
    assert 'quantization = "int4"' in await answer(engine, "What is quantization?", told, "And how do I turn it on?")


@asks
async def test_it_answers_messages_that_begin_with_their_authors_name(engine: Engine) -> None:
    assert "Hello!" in await answer(engine, "Mei: hello")


@asks
async def test_a_long_answer_has_markdown_and_needs_more_than_one_message(engine: Engine) -> None:
    text = await answer(engine, "Write a long answer", params=SamplingParams(temperature=0, max_tokens=1000))
    assert len(text) > 1200
    assert text.count("```") == 2


@asks
async def test_default_sampling_gives_the_trained_greeting(engine: Engine) -> None:
    sampled = [SamplingParams(max_tokens=100, seed=seed) for seed in range(5)]
    answers = await asyncio.gather(*(answer(engine, "hello", params=params) for params in sampled))
    assert all("Hello!" in text for text in answers)
