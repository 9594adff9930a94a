"""The snippets on the page about commands work."""

import io
from dataclasses import fields

from babel.messages.pofile import read_po

from bot.chat.command_table import CommandContext
from tests.project.snippets import DOCS, checkout, names_in, snippets

PAGE = "ADDING_A_COMMAND.md"
COMMAND, TESTS = snippets(PAGE)
(CATALOGUE,) = snippets(PAGE, "po")

IN_THE_MENU = """\
# tests/chat/test_commands.py
def test_roll_is_in_the_menu() -> None:
    assert "roll" in [command.name for command in menu()]
"""


def test_the_snippets_work_in_their_files() -> None:
    with checkout() as copy:
        for snippet in (COMMAND, TESTS, IN_THE_MENU):
            copy.write(snippet)
        copy.replace("docs/slack-manifest.yaml", " | usage | help", " | usage | roll | help")
        asks_for_the_manifest = "test_the_manifest_requests_the_scopes_and_commands_in_use"
        copy.run_tests(
            *names_in(TESTS),
            *names_in(IN_THE_MENU),
            f"tests/adapters/test_slack_connection.py::{asks_for_the_manifest}",
        )


def test_the_page_names_what_a_command_may_work_with() -> None:
    page = (DOCS / PAGE).read_text(encoding="utf-8")
    assert [field.name for field in fields(CommandContext) if f"`{field.name}`" not in page] == []


def test_its_sentences_are_translated() -> None:
    catalogue = read_po(io.StringIO(CATALOGUE), abort_invalid=True)
    translated = {str(message.id) for message in catalogue if message.id and message.string}
    assert translated
    assert all(f'"{text}"' in COMMAND for text in translated)
    assert COMMAND.count("translate(") + COMMAND.count("gettext_noop(") == len(translated)
