"""The snippets on the page about backends work."""

from tests.project.snippets import checkout, names_in, snippets

PAGE = "ADDING_A_BACKEND.md"
BACKEND, SUBJECT = snippets(PAGE)

BY_NAME = """\
# tests/engine/test_parrot.py
from bot.config.schema import EngineSection
from bot.domain import ChatMessage, ChatRequest, Delta, SamplingParams
from bot.engine import open_engine, preflight


async def test_the_backend_answers_under_its_name() -> None:
    options = EngineSection(backend="parrot")
    preflight(options)
    async with open_engine(options) as engine:
        request = ChatRequest((ChatMessage("user", "你好, hello"),), SamplingParams(temperature=0))
        events = [event async for event in engine.generate(request)]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "你好, hello"
"""


def test_the_snippets_work_in_their_files() -> None:
    with checkout() as copy:
        for snippet in (BACKEND, SUBJECT, BY_NAME):
            copy.write(snippet)
        contract = "tests/contracts/test_engine.py"
        copy.replace(contract, "params=[echo, ", "params=[parrot, ")
        copy.run_tests(*names_in(BY_NAME), contract, "-k", "parrot")
