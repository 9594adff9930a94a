"""The snippets on the page about commands work."""

import io
import secrets
from dataclasses import fields

import pytest
from babel.messages.pofile import read_po

from bot.chat import commands
from bot.chat.command_table import CommandContext
from tests.chat import test_commands
from tests.harness.harness import Harness
from tests.project.snippets import DOCS, execute_in, names_in, snippets

PAGE = "ADDING_A_COMMAND.md"
COMMAND, TESTS = snippets(PAGE)
(CATALOGUE,) = snippets(PAGE, "po")


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the page's command for one test."""
    monkeypatch.setitem(commands.COMMANDS, "roll", commands.COMMANDS["help"])
    execute_in(commands, COMMAND, PAGE, secrets=secrets)


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize("name", names_in(TESTS))
async def test_the_command_passes_its_test(name: str, harness: Harness) -> None:
    await execute_in(test_commands, TESTS, PAGE)[name](harness)


@pytest.mark.usefixtures("added")
def test_the_command_is_in_the_menu() -> None:
    assert "roll" in [command.name for command in commands.menu()]


def test_the_page_names_what_a_command_may_work_with() -> None:
    page = (DOCS / PAGE).read_text(encoding="utf-8")
    assert [field.name for field in fields(CommandContext) if f"`{field.name}`" not in page] == []


def test_its_sentences_are_translated() -> None:
    catalogue = read_po(io.StringIO(CATALOGUE), abort_invalid=True)
    translated = {str(message.id) for message in catalogue if message.id and message.string}
    assert translated
    assert all(f'"{text}"' in COMMAND for text in translated)
    assert COMMAND.count("translate(") + COMMAND.count("gettext_noop(") == len(translated)
