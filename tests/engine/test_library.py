"""The engine as a library: the page's examples, threads, stopping and closing."""

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from pydantic import ValidationError

from bot.domain import SamplingParams
from bot.engine import ChatModel
from bot.engine.chatglm.model import ChatGLM
from bot.errors import CheckpointError, EngineFailed, PromptTooLong
from tests.project.snippets import snippets

PAGE = "LIBRARY.md"
CHAT, SAMPLING = snippets(PAGE)
GREEDY = SamplingParams(temperature=0, max_tokens=60)


def models() -> int:
    gc.collect()
    return sum(isinstance(each, ChatGLM) for each in gc.get_objects())


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"engine", "chat model"}


def test_the_page_chats_streams_and_closes(capsys: pytest.CaptureFixture[str]) -> None:
    before = models()
    scope: dict[str, object] = {}
    exec(compile(CHAT, PAGE, "exec"), scope)
    first, *streamed = capsys.readouterr().out.strip().split("\n")
    history = scope["history"]
    assert isinstance(history, list)
    assert [question for question, _ in history] == ["hello", "what is quantization?"]
    assert history[0][1] == first
    assert scope["response"] == history[1][1]
    assert "\n".join(streamed).endswith(history[1][1])
    assert (models(), threads()) == (before, set())


def test_the_page_samples_and_names_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(SAMPLING, PAGE, "exec"), {})
    *answer, is_longer = capsys.readouterr().out.strip().split("\n")
    assert answer[0]
    assert is_longer == "True"
    assert threads() == set()


def test_an_answer_grows_and_is_the_same_as_a_whole() -> None:
    with ChatModel("demo") as model:
        steps = list(model.stream_chat("hello", [], GREEDY))
        texts = [response for response, _ in steps]
        assert all(after.startswith(before) and after != before for before, after in pairwise(texts))
        assert all(history == [("hello", response)] for response, history in steps)
        assert model.chat("hello", [], GREEDY) == steps[-1]
        # The history is part of the prompt.
        long = [("hello " * 300, "yes"), ("hello " * 300, "yes"), ("hello " * 300, "yes")] * 3
        with pytest.raises(PromptTooLong):
            model.chat("hello", long)


def test_leaving_the_loop_frees_the_slot() -> None:
    with ChatModel("demo", max_batch_size=1) as model:
        for response, _ in model.stream_chat("what is quantization?", [], SamplingParams(temperature=0)):
            assert response
            break
        # With one slot this call would wait for ever.
        assert model.chat("hello", [], GREEDY)[0]


def test_calls_from_several_threads_get_their_own_answers() -> None:
    questions = ["hello", "what is quantization?", "/help", "who are you?"]
    with ChatModel("demo") as model:
        alone = [model.chat(question, [], GREEDY) for question in questions]
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(lambda question: model.chat(question, [], GREEDY), questions)) == alone


def test_closing_ends_a_running_answer_and_may_be_repeated() -> None:
    model = ChatModel("demo")
    stream = model.stream_chat("what is quantization?")
    next(stream)
    model.close()
    model.close()
    with pytest.raises(EngineFailed, match="the engine was closed"):
        list(stream)
    with pytest.raises(EngineFailed, match="the model was closed"):
        model.chat("hello")


def test_a_model_that_cannot_be_loaded_leaves_nothing_behind() -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        ChatModel("/nowhere")
    with pytest.raises(ValidationError, match="quantisation"):
        ChatModel("demo", quantisation="int8")
    assert threads() == set()


UNUSED = """
import sys
from bot.engine import ChatModel
with ChatModel(quantization=sys.argv[1]) as model:
    assert model.chat("hello")[0]
unused = ("torch._dynamo", "sympy", "triton", "huggingface_hub.hf_api", "httpx2", "bot.chat.intake")
print([name for name in unused if name in sys.modules])
"""


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_a_model_in_a_folder_answers_without_the_compiler_of_torch_and_the_client_of_the_hub(quantization: str) -> None:
    """Their imports take longer than all other imports, and leave objects that each garbage collection visits."""
    command = [sys.executable, "-c", UNUSED, quantization]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_closing_ends_answers_that_the_engine_leaves_running() -> None:
    model = ChatModel("any", backend="echo")
    began = threading.Event()

    def talk() -> None:
        while True:
            for _ in model.stream_chat("one two three"):
                began.set()

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(talk) for _ in range(4)]
        began.wait(10)
        model.close()
        assert {str(each.exception(timeout=10)) for each in running} == {"the model was closed"}
    model.close()
