"""The snippets on the page about backends work."""

import inspect
from collections.abc import AsyncIterator
from types import ModuleType

import pytest

import bot.engine
from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, SamplingParams
from tests.contracts import test_engine as contract
from tests.project.snippets import define, execute_in, snippets

PAGE = "ADDING_A_BACKEND.md"
BACKEND, SUBJECT = snippets(PAGE)
CONTRACT_TESTS = {
    name: test
    for name, test in vars(contract).items()
    if name.startswith("test_") and list(inspect.signature(test).parameters) == ["subject"]
}


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Add the page's backend for one test."""
    monkeypatch.setattr(bot.engine, "BACKENDS", (*bot.engine.BACKENDS, "parrot"))
    return define(monkeypatch, "bot.engine.backends.parrot", BACKEND, PAGE)


@pytest.fixture
async def subject(parrot: ModuleType) -> AsyncIterator[contract.Subject]:
    names = execute_in(contract, SUBJECT, PAGE, Parrot=parrot.Parrot, ByteTokenizer=parrot.ByteTokenizer)
    async with names["parrot"]() as made:
        yield made


@pytest.mark.usefixtures("parrot")
async def test_the_backend_answers_under_its_name() -> None:
    options = EngineSection(backend="parrot")
    bot.engine.preflight(options)
    async with bot.engine.open_engine(options) as engine:
        request = ChatRequest((ChatMessage("user", "你好, hello"),), SamplingParams(temperature=0))
        events = [event async for event in engine.generate(request)]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "你好, hello"


@pytest.mark.parametrize("name", CONTRACT_TESTS)
async def test_the_backend_passes_the_contract(name: str, subject: contract.Subject) -> None:
    await CONTRACT_TESTS[name](subject)
