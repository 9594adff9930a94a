"""`bot run` on a real terminal: what it shows, and what reaches the model of all that is typed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.cli.test_main import bot, environment
from tests.harness.servers.model_server import MODEL, ModelServer, delta, hang, say
from tests.harness.terminal import Terminal

UP, TAB = "\x1b[A", "\t"
PROMPT = "❯ "
READY = "exit leaves"


def chat(folder: Path, **changes: str) -> Terminal:
    return Terminal("run", folder=folder, env=environment(LANG="C.UTF-8", LC_ALL="", LC_MESSAGES="", **changes))


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as server:
        yield server


def chat_with(server: ModelServer, folder: Path) -> Terminal:
    return chat(folder, BOT_ENGINE__BACKEND="remote", BOT_ENGINE__MODEL=MODEL, BOT_ENGINE__URLS=server.url)


async def half_then_rest(server: ModelServer, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Stream an answer of which the second half waits for `go_on`."""
    response = await server.stream(request)
    await response.write(delta("half an "))
    await server.go_on.wait()
    await response.write(delta("answer"))
    await response.write(b"data: [DONE]\n\n")
    return response


def questions(server: ModelServer) -> list[str]:
    return [body["messages"][-1]["content"] for body in server.bodies]


async def sees(terminal: Terminal, *texts: str) -> str:
    """Wait for one text after the other; return what came up to the last one."""
    return "".join([await asyncio.to_thread(terminal.wait_for, text) for text in texts])


async def ask(terminal: Terminal, typed: str, answer: str) -> None:
    """Type this at the prompt and wait for the next prompt behind the answer."""
    terminal.type(typed)
    await sees(terminal, answer, PROMPT)


def test_a_first_start_without_settings_offers_the_set_up_page_on_a_terminal(tmp_path: Path) -> None:
    offer = "To set up Discord, Telegram or Slack in the browser:"
    ran = bot(tmp_path, "run", BOT_ENGINE__BACKEND="")
    assert (ran.returncode, offer in ran.stderr) == (0, False)
    for is_first in (True, False):
        folder = tmp_path / "terminal"
        folder.mkdir(exist_ok=True)
        with chat(folder, BOT_ENGINE__BACKEND="") as terminal:
            terminal.wait_for(READY)
            terminal.wait_for(PROMPT)
            terminal.type("exit\r")
            assert terminal.ended() == 0
            assert (offer in terminal.shown) is is_first


def test_serve_says_on_a_terminal_where_it_listens(tmp_path: Path) -> None:
    env = environment(LANG="C.UTF-8", LC_ALL="", BOT_SERVER__PORT="0")
    with Terminal("serve", folder=tmp_path, env=env) as terminal:
        terminal.wait_for("HTTP server listening")
        terminal.type("\x03")
        assert terminal.ended() == 130


def test_the_demo_model_is_named_once_it_is_loaded(tmp_path: Path) -> None:
    with chat(tmp_path, BOT_ENGINE__BACKEND="auto") as terminal:
        assert terminal.wait_for("Loading").strip() == "Loading", "nothing comes before it"
        terminal.wait_for("Demo model: 4M parameters")
        terminal.wait_for(PROMPT)
        terminal.type("exit\r")
        assert terminal.ended() == 0, terminal.shown
    assert "Traceback" not in terminal.shown


async def test_pastes_completion_and_the_inputs_after_a_restart(server: ModelServer, tmp_path: Path) -> None:
    server.then(say("the first"), say("the second"))
    with chat_with(server, tmp_path) as terminal:
        await sees(terminal, READY, PROMPT)
        await ask(terminal, "\x1b[200~one\ntwo\nthree\x1b[201~\r", "the first")
        await ask(terminal, "four\rfive\rsix\r", "the second")
        assert questions(server) == ["one\ntwo\nthree", "four\nfive\nsix"]
        terminal.type("/per")
        await sees(terminal, "Show or change my persona here")  # the menu
        await ask(terminal, f"{TAB}\r", "Persona: ")
        terminal.type("exit\r")
        assert await asyncio.to_thread(terminal.ended) == 0
    server.then(say("the third"))
    with chat_with(server, tmp_path) as terminal:
        await sees(terminal, READY, PROMPT)
        terminal.type(UP)
        await sees(terminal, "exit")
        terminal.type(UP)
        await sees(terminal, "/persona")
        terminal.type(UP)
        await sees(terminal, "six")
        await ask(terminal, "\r", "the third")
        assert questions(server)[2:] == ["four\nfive\nsix"]


async def test_typing_during_an_answer_and_stop(server: ModelServer, tmp_path: Path) -> None:
    server.go_on.clear()
    server.then(half_then_rest, say("the second"), hang(delta("an endless ")), say("the last"))
    with chat_with(server, tmp_path) as terminal:
        await sees(terminal, READY, PROMPT)
        terminal.type("one\r")
        await sees(terminal, "half an")
        terminal.type("typed ear")
        server.go_on.set()
        until_whole = await sees(terminal, "half an answer")
        assert "typed" not in until_whole
        await sees(terminal, f"{PROMPT}typed ear")
        await ask(terminal, "ly\r", "the second")
        assert questions(server) == ["one", "typed early"]
        terminal.type("go on\r")
        await sees(terminal, "an endless")
        await ask(terminal, "stop\r", "(stopped)")
        await ask(terminal, "and now?\r", "the last")
        assert questions(server)[2:] == ["go on", "and now?"]
        terminal.type("exit\r")
        assert await asyncio.to_thread(terminal.ended) == 0
