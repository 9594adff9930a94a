"""The terminal: scripted through a pipe, and as a person uses it."""

import asyncio
import io
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from bot.adapters.console.adapter import CHANNEL, ConsoleAdapter
from bot.adapters.console.keyboard import CommandCompleter
from bot.domain import Exchange, IncomingMessage, Kind, Queued
from bot.errors import PlatformUnavailable, StoreError
from tests.harness.harness import Harness
from tests.harness.messages import a_message
from tests.harness.platform import TIMEOUT


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal_of_no_language(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def keyboard() -> Iterator[PipeInput]:
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        yield keyboard


@asynccontextmanager
async def on_terminal(harness: Harness, history: Path | None = None) -> AsyncIterator[Terminal]:
    """Chat on a terminal inside the block, whose last words must leave."""
    screen = Terminal()
    chat = asyncio.create_task(ConsoleAdapter(Terminal(), screen, history=history).run(harness.intake))
    try:
        yield screen
        async with asyncio.timeout(TIMEOUT):
            await chat
    finally:
        chat.cancel()
        await asyncio.gather(chat, return_exceptions=True)


def asked(harness: Harness) -> list[str]:
    return [request.messages[-1].content for request in harness.engine.requests]


async def until(is_so: Callable[[], bool]) -> None:
    """Let the tasks and threads run until it is so."""
    async with asyncio.timeout(TIMEOUT):
        while not is_so():  # noqa: ASYNC110 - a terminal and the database's threads send no event
            await asyncio.sleep(0.01)


async def piped(harness: Harness, lines: str) -> str:
    """Pipe these lines into the console; return its output."""
    screen = io.StringIO()
    await ConsoleAdapter(io.StringIO(lines), screen).run(harness.intake)
    return screen.getvalue()


async def test_a_line_in_is_a_plain_answer_out(harness: Harness) -> None:
    harness.engine.add(["Hello", " [bold]there[/bold]!\n1. one"])
    assert await piped(harness, "hi\n") == "Hello [bold]there[/bold]!\n1. one\n"


async def test_the_last_line_needs_no_newline_and_an_empty_one_gets_a_sentence(harness: Harness) -> None:
    out = await piped(harness, "one\n\ntwo")
    assert out.startswith("ok\nI can only read text")
    assert out.endswith("\nok\n")


async def test_commands_work_with_and_without_the_slash(harness: Harness) -> None:
    out = await piped(harness, "remember\nclear\n/status\n")
    assert "Deleted: " in out
    assert "- Model: scripted" in out


@pytest.mark.parametrize(
    ("variables", "text", "words"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "/stop", "这里没有正在进行的回答。"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_TW.UTF-8"}, "/stop", "这里没有正在进行的回答。"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "/stop", "Nothing is being answered here."),
        ({"LANG": "en_US.UTF-8"}, "/停", "没有 /停 这个命令；输入 /help 可查看所有命令。"),
    ],
)
async def test_the_bots_messages_are_in_the_language_of_the_terminal_or_the_input(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], text: str, words: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert await piped(harness, f"{text}\n") == f"{words}\n"


@pytest.mark.parametrize("word", ["stop", "exit", "QUIT"])
async def test_a_bare_word_leaves_a_pipe(harness: Harness, word: str) -> None:
    assert await piped(harness, f"one\n{word}\ntwo\n") == "ok\n"


async def test_the_models_text_cannot_control_the_terminal(harness: Harness) -> None:
    harness.engine.add("\x1b]0;owned\x07\x1b[31mred\x9b2J")
    assert await piped(harness, "hi\n") == "]0;owned[31mred2J\n"


async def test_a_notice_comes_below_the_answer(harness: Harness) -> None:
    harness.engine.add("a" * 2000, "short")
    out = await piped(harness, "x\nagain\n")
    assert out.splitlines()[1] == "short"
    assert "left out: 1" in out.splitlines()[2]


async def test_questions_owed_from_the_last_run_are_answered_first(harness: Harness) -> None:
    question = a_message("still there?", channel=CHANNEL)
    await harness.intake.store(question)
    harness.engine.add("yes", "now")
    assert await piped(harness, "next\n") == "> still there?\nyes\nnow\n"


async def test_every_answer_counts_as_delivered(harness: Harness) -> None:
    await piped(harness, "one\n/help\n")
    assert await harness.intake.recover("console") == []


async def test_ctrl_c_ends_the_answer_and_keeps_its_text(harness: Harness) -> None:
    harness.engine.add(["half an ", asyncio.Event()], "next")
    screen = io.StringIO()
    chat = asyncio.create_task(ConsoleAdapter(io.StringIO("hi\nand now?\n"), screen).run(harness.intake))
    await harness.engine.asked(1)
    await harness.clock.settle()
    os.kill(os.getpid(), signal.SIGINT)
    await chat
    assert screen.getvalue() == "half an \n(stopped)\nnext\n"
    latest = await harness.store.latest(CHANNEL)
    assert latest is not None
    assert [message.content for message in harness.engine.requests[1].messages] == ["hi", "half an ", "and now?"]


FULL = "data/bot.db cannot grow, the disk is full"
LOCKED = "data/bot.db is locked by another program"
WAITS = "I can't save messages right now. Yours is queued and will be answered."


class Reluctant:
    """The store's `enqueue`, refused with one reason after the other; the last one stays if it is `for_ever`."""

    def __init__(self, harness: Harness, *reasons: str, for_ever: bool = False) -> None:
        self._begin = harness.store.enqueue
        self._reasons = list(reasons)
        self._for_ever = for_ever
        self.tries = 0

    async def enqueue(self, message: IncomingMessage, kind: Kind) -> Exchange | None:
        self.tries += 1
        if self._reasons:
            raise StoreError(self._reasons[0] if self._for_ever else self._reasons.pop(0))
        return await self._begin(message, kind)


async def test_a_question_waits_until_the_database_accepts_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.engine.add("answered", "next")
    monkeypatch.setattr(harness.store, "enqueue", Reluctant(harness, LOCKED, FULL, FULL, FULL).enqueue)
    screen = io.StringIO()
    chat = asyncio.create_task(ConsoleAdapter(io.StringIO("one\ntwo\n"), screen, harness.clock).run(harness.intake))
    while not chat.done():
        await until(lambda: chat.done() or harness.clock.next_wake is not None)
        await harness.clock.advance((harness.clock.next_wake or harness.clock.now()) - harness.clock.now())
    await chat
    assert screen.getvalue().splitlines() == [WAITS, LOCKED, FULL, "answered", "next"]
    assert harness.clock.now() == 0.5 + 1 + 2 + 4


async def test_a_database_that_stays_away_is_asked_every_ten_seconds(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Reluctant(harness, FULL, for_ever=True)
    monkeypatch.setattr(harness.store, "enqueue", store.enqueue)
    chat = asyncio.create_task(ConsoleAdapter(io.StringIO("one\n"), io.StringIO(), harness.clock).run(harness.intake))
    try:
        await until(lambda: store.tries > 0)
        await harness.clock.advance(3600)
        assert 360 <= store.tries < 370
    finally:
        chat.cancel()
        await asyncio.gather(chat, return_exceptions=True)


async def test_on_a_terminal_ctrl_c_gives_up_a_question_that_waits(
    harness: Harness, keyboard: PipeInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Reluctant(harness, FULL, for_ever=True)
    monkeypatch.setattr(harness.store, "enqueue", store.enqueue)
    screen = Terminal()
    keyboard.send_text("one\r")
    chat = asyncio.create_task(ConsoleAdapter(Terminal(), screen, harness.clock).run(harness.intake))
    await until(lambda: FULL in screen.getvalue())
    monkeypatch.undo()
    os.kill(os.getpid(), signal.SIGINT)
    keyboard.send_text("two\r\x04")
    await chat
    assert [request.messages[-1].content for request in harness.engine.requests] == ["two"]


async def test_a_second_ctrl_c_exits_while_an_answer_cannot_be_stored(
    harness: Harness, keyboard: PipeInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def refuse(*_: object, **__: object) -> None:
        nonlocal tries
        tries += 1
        raise StoreError(FULL)

    monkeypatch.setattr(harness.store, "record_answer", refuse)
    keyboard.send_text("one\r")
    chat = asyncio.create_task(ConsoleAdapter(Terminal(), Terminal(), harness.clock).run(harness.intake))
    await until(lambda: tries > 0)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        await harness.clock.settle()
    with pytest.raises(asyncio.CancelledError):
        await chat
    monkeypatch.undo()
    assert [exchange.message.text for exchange in await harness.store.claim_owed("console")] == ["one"]


async def test_an_unwritable_screen_is_one_sentence(harness: Harness) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(PlatformUnavailable, match="No space left"):
        await ConsoleAdapter(io.StringIO("hi\n"), Full()).run(harness.intake)


async def test_on_a_terminal_ctrl_c_empties_a_line_before_it_leaves(harness: Harness, keyboard: PipeInput) -> None:
    keyboard.send_text("half a lin\x03whole\r\x03")
    await ConsoleAdapter(Terminal(), Terminal()).run(harness.intake)
    assert [request.messages[-1].content for request in harness.engine.requests] == ["whole"]


async def test_on_a_terminal_one_types_and_reads(harness: Harness, keyboard: PipeInput) -> None:
    async with on_terminal(harness) as screen:
        keyboard.send_text("hello\r")
        await until(lambda: "ok" in screen.getvalue())
        keyboard.send_text("/status\r")
        await until(lambda: "scripted" in screen.getvalue())
        keyboard.send_text("exit\r")


async def test_on_a_terminal_ctrl_c_at_the_prompt_leaves(harness: Harness, keyboard: PipeInput) -> None:
    keyboard.send_text("\x03")
    await ConsoleAdapter(Terminal(), Terminal()).run(harness.intake)


async def test_on_a_terminal_the_place_in_the_queue_is_shown(harness: Harness, keyboard: PipeInput) -> None:
    harness.engine.add([Queued(3, 12.0)])
    keyboard.send_text("hello\r\x04")
    screen = Terminal()
    await ConsoleAdapter(Terminal(), screen).run(harness.intake)
    assert "number 3 in the queue, about 12 s" in screen.getvalue()


@pytest.mark.parametrize(
    "typed",
    [
        pytest.param("one\x1b\rtwo\r", id="Alt-Enter"),
        pytest.param("\x1b[200~one\ntwo\n\x1b[201~\r", id="bracketed paste"),
        pytest.param("one\rtwo\r", id="paste without brackets"),
        pytest.param("one\ntwo\n", id="paste with newlines"),
    ],
)
async def test_several_lines_are_one_question(harness: Harness, keyboard: PipeInput, typed: str) -> None:
    async with on_terminal(harness) as screen:
        keyboard.send_text(typed)
        await until(lambda: "ok" in screen.getvalue())
        keyboard.send_text("exit\r")
    assert asked(harness) == ["one\ntwo"]


async def test_inputs_are_kept_across_starts_and_deleted_with_the_conversation(
    harness: Harness, keyboard: PipeInput, tmp_path: Path
) -> None:
    history = tmp_path / "data" / "history"
    async with on_terminal(harness, history) as screen:
        keyboard.send_text("a secret\r")
        await until(lambda: "ok" in screen.getvalue())
        keyboard.send_text("exit\r")
    assert history.stat().st_mode & 0o777 == 0o600
    async with on_terminal(harness, history) as screen:
        await until(lambda: "exit leaves" in screen.getvalue())
        for _ in range(500):  # the prompt reads the file in a task of its own
            await asyncio.sleep(0)
        keyboard.send_text("\x1b[A\x1b[A\r")  # Up, beyond "exit"
        await until(lambda: len(asked(harness)) == 2)
        await until(lambda: "ok" in screen.getvalue())
        keyboard.send_text("/clear\r")
        await until(lambda: "Deleted: " in screen.getvalue())
        keyboard.send_text("exit\r")
    assert asked(harness) == ["a secret", "a secret"]
    assert "secret" not in history.read_text()


async def test_what_is_typed_during_an_answer_is_asked_after_it(harness: Harness, keyboard: PipeInput) -> None:
    goes_on = asyncio.Event()
    harness.engine.add(["half an ", goes_on, "answer"], "second")
    async with on_terminal(harness) as screen:
        keyboard.send_text("one\r")
        await until(lambda: "half an" in screen.getvalue())
        keyboard.send_text("twp\x7fo\r")
        await harness.clock.settle()
        goes_on.set()
        await until(lambda: len(asked(harness)) == 2)
        await until(lambda: "second" in screen.getvalue())
        keyboard.send_text("exit\r")
    assert asked(harness) == ["one", "two"]
    assert "half an answer" in screen.getvalue()


@pytest.mark.parametrize("typed", ["stop\r", "/stop\r", "\x03"])
async def test_stop_ends_an_answer_and_not_the_chat(harness: Harness, keyboard: PipeInput, typed: str) -> None:
    harness.engine.add(["half an ", asyncio.Event()])
    async with on_terminal(harness) as screen:
        keyboard.send_text("one\r")
        await until(lambda: "half an" in screen.getvalue())
        keyboard.send_text(typed)
        await until(lambda: "(stopped)" in screen.getvalue())
        keyboard.send_text("exit\r")
    assert asked(harness) == ["one"]


async def test_stop_at_the_prompt_does_not_leave(harness: Harness, keyboard: PipeInput) -> None:
    async with on_terminal(harness) as screen:
        keyboard.send_text("stop\r")
        await until(lambda: "Nothing is being answered here." in screen.getvalue())
        keyboard.send_text("exit\r")


async def test_answers_are_markdown_wrapped_at_words(
    harness: Harness, keyboard: PipeInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    harness.engine.add(
        ["# Title\n\nUse **std::vector", "** or <vector> of some sort here.\nLine\n\n", "```\n<b>\n", "```"]
    )
    async with on_terminal(harness) as screen:
        keyboard.send_text("one\r")
        await until(lambda: "<b>" in screen.getvalue())
        keyboard.send_text("exit\r")
    printed = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    shown = [line.strip("●* ") for line in printed.replace("\r", "\n").splitlines()]
    assert "Use std::vector or <vector>" in shown
    assert "of some sort here." in shown
    assert "Line" in shown
    assert "<b>" in shown
    assert max(map(len, shown[shown.index("Title") :])) <= 30


def test_commands_are_completed_at_the_beginning_only() -> None:
    completer = CommandCompleter(str)

    def offered(text: str) -> list[str]:
        return [each.text for each in completer.get_completions(Document(text), CompleteEvent())]

    assert offered("/st") == ["/stop", "/status"]
    assert offered("/for") == ["/forget me"]
    assert offered("st") == offered("is there a /st") == []
