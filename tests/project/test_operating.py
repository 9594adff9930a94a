"""docs/OPERATING.md keeps its word: its commands exist, its log lines look so, its figures and sentences are real."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from bot.cli import cli
from bot.errors import ConfigError, LoginRefused, StoreInUse
from bot.observability.metrics import PREFIX, Metrics
from tests.cli.test_main import bot

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "OPERATING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_its_commands_exist() -> None:
    named = set(re.findall(r"(?:`|\$ |bot )bot ([a-z]+)", PAGE))
    assert named >= {"run", "check", "backup", "export", "copy", "migrate", "health"}
    assert named <= cli.commands.keys()


def test_its_log_lines_have_the_form_of_real_ones(tmp_path: Path) -> None:
    ran = bot(tmp_path, "run", stdin="hello\n")
    real = {line["event"]: line for line in map(json.loads, ran.stderr.splitlines())}
    shown = [json.loads(line) for block in blocks("json") for line in block.splitlines()]
    assert len(shown) == 3
    for line in shown:
        found = real[line["event"]]
        assert list(found) == list(line)
        assert [type(value) for value in found.values()] == [type(value) for value in line.values()]
        assert (found["level"], found["logger"]) == (line["level"], line["logger"])


def test_lines_for_people_are_one_setting_away(tmp_path: Path) -> None:
    ran = bot(tmp_path, "run", stdin="hello\n", BOT_LOGS__FORMAT="console")
    assert re.search(r"^\d\d:\d\d:\d\d \[info +\] exchange answered .*exchange=1", ran.stderr, re.MULTILINE)


def test_its_figures_are_counted() -> None:
    there = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    there |= {family.name + "_total" for family in Metrics().registry.collect() if family.type == "counter"}
    there |= {family.name for family in Metrics().registry.collect()}
    named = set(re.findall(rf"{PREFIX}_\w+", PAGE))
    assert named
    assert named <= there


def test_its_exit_codes_are_those_of_the_errors() -> None:
    assert (ConfigError.exit_code, LoginRefused.exit_code, StoreInUse.exit_code) == (2, 2, 1)
    assert "RestartPreventExitStatus=2\n" in PAGE


def test_its_messages_are_the_programs_own() -> None:
    (table,) = re.findall(r"\| message \|.*?\n\n", PAGE, re.DOTALL)
    quoted = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
    quoted += re.findall(r"the\s+log\s+says\s+`([^`]+)`", PAGE) + re.findall(r"`([^`]+)` in the log", PAGE)
    assert len(quoted) >= 13
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "bot").rglob("*.py"))
    messages = re.sub(r'"\s*\n\s*f?"', "", sources)
    for message in quoted:
        # Values are in brackets or left out.
        for part in re.split(r"\([^)]*\)|…", " ".join(message.split())):
            assert part.strip(" :") in messages, part


def test_a_backup_that_is_put_back_as_it_says_is_the_database_again(tmp_path: Path) -> None:
    bot(tmp_path, "run", stdin="remember this\n")
    assert bot(tmp_path, "backup", "backups-bot.db").returncode == 0
    bot(tmp_path, "run", stdin="said later\n")
    (tmp_path / "data" / "bot.db-wal").write_bytes(b"of the database that was replaced")
    (steps,) = (block for block in blocks("sh") if "bot.db-wal" in block)
    for step in steps.splitlines():
        program, *arguments = shlex.split(step)
        if program == "rm":
            for file in arguments[1:]:
                (tmp_path / file).unlink(missing_ok=True)
        else:
            assert program == "cp"
            backup = f"backups-bot.db{'.keys' * arguments[0].endswith('.keys')}"
            shutil.copy(tmp_path / backup, tmp_path / arguments[1])
    exported = bot(tmp_path, "export", "console:terminal").stdout
    assert "remember this" in exported
    assert "said later" not in exported


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_pages_beside_it_lead_to_files_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:bot|tests|migrations|docs|release)/[\w/]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
