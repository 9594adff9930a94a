"""A file of keys that is missing, foreign, damaged or not writable ends the start with one sentence."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_bad_situations import start as start_bot
from tests.cli.test_bad_situations import without_privileges
from tests.cli.test_main import bot

RESTORE = "restore it from the backup of the same time as the database"


def fill(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    assert bot(folder, "run", stdin="remember this\n").returncode == 0
    return folder / "data" / "bot.db.keys"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "data").iterdir() if file.name != "bot.db.lock"}


def remove(keys: Path) -> None:
    keys.unlink()


def take_from_another(keys: Path) -> None:
    shutil.copyfile(fill(keys.parents[1] / "other"), keys)


def shorten(keys: Path) -> None:
    os.truncate(keys, 64 + 32)


def cut_the_header(keys: Path) -> None:
    os.truncate(keys, 10)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (remove, f"is missing, and no text can be read without these keys: {RESTORE}"),
        (take_from_another, f"has the keys of another database: {RESTORE}"),
        (shorten, f"is shorter than its database needs, keys are missing: {RESTORE}"),
        (cut_the_header, f"is no file of keys: {RESTORE}"),
    ],
)
def test_wrong_keys_end_the_start_and_change_nothing(
    tmp_path: Path, harm: Callable[[Path], None], sentence: str
) -> None:
    harm(fill(tmp_path))
    before = contents(tmp_path)
    code, said = start_bot(tmp_path)
    assert (code, said) == (1, f"bot: data/bot.db.keys {sentence}\n")
    check = bot(tmp_path, "check")
    assert check.returncode == 1
    assert f"!! database: data/bot.db.keys {sentence}" in check.stdout
    backup = bot(tmp_path, "backup", "copy.db")
    assert (backup.returncode, backup.stderr) == (1, f"bot: data/bot.db.keys {sentence}\n")
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob("copy.db*"))


def test_read_only_keys_end_the_start_and_change_nothing(tmp_path: Path) -> None:
    keys = fill(tmp_path)
    keys.chmod(0o400)
    before = contents(tmp_path)
    code, said = start_bot(tmp_path, before=without_privileges())
    assert (code, said.count("\n")) == (1, 1), said
    assert said.startswith("bot: data/bot.db.keys cannot be opened (Permission denied): the bot's user needs read and")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("mode", "warnings"), [(0o640, 0), (0o660, 0), (0o604, 1)])
def test_keys_that_others_can_read_cost_a_warning_only(tmp_path: Path, mode: int, warnings: int) -> None:
    keys = fill(tmp_path)
    keys.chmod(mode)
    ran = bot(tmp_path, "run", stdin="hello\n")
    assert (ran.returncode, ran.stdout) == (0, "hello\n")
    assert ran.stderr.count("every user of this machine can read the keys of the texts: chmod 600") == warnings
    assert keys.stat().st_mode & 0o777 == mode


def test_a_second_name_of_the_database_is_explained(tmp_path: Path) -> None:
    database = fill(tmp_path).with_name("bot.db")
    (tmp_path / "backup.db").hardlink_to(database)
    code, said = start_bot(tmp_path)
    assert (code, said.count("\n")) == (1, 1), said
    assert "-xdev -samefile data/bot.db, delete all but data/bot.db, and for a backup run bot backup FILE" in said
    find = said.partition("find them with ")[2].partition(",")[0]
    if find.startswith(f"find {tmp_path.anchor} "):  # the whole disk takes long
        find = find.replace("find /", f"find {tmp_path}", 1)
    found = subprocess.run(find.split(), cwd=tmp_path, capture_output=True, encoding="utf-8", check=True).stdout
    assert sorted(Path(line).name for line in found.split()) == ["backup.db", "bot.db"]
    (tmp_path / "backup.db").unlink()
    assert bot(tmp_path, "run", stdin="hello\n").stdout == "hello\n"
