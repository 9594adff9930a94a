"""Settings and secret files of any content: one sentence, and a running bot keeps its settings."""

import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bot.adapters import SETTINGS
from bot.config.sources import load_config
from bot.engine import BACKENDS
from bot.errors import ConfigError
from tests.cli.test_main import bot
from tests.config.test_reload import Follower, follower  # noqa: F401 - a fixture

Put = Callable[[Path], object]


def text(content: str) -> Put:
    return lambda path: path.write_text(content, encoding="utf-8")


def data(content: bytes) -> Put:
    return lambda path: path.write_bytes(content)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


FILES: dict[str, tuple[Put, str]] = {
    "open lists": (text("a=" + "[" * 100_000), "nested too deeply"),
    "open tables": (text("a=" + "{b=" * 30_000), "nested too deeply"),
    "closed lists": (text("a = " + "[" * 200 + "]" * 200), "nested too deeply"),
    "lists in a list of tables": (text("[[limits]]\na = " + "[{b=" * 90 + "1" + "}]" * 90), "nested too deeply"),
    "a dotted key": (text("a" + ".a" * 60_000 + " = 1"), "too many parts"),
    "a dotted table": (text("[" + '"x" . ' * 30_000 + "y]"), "too many parts"),
    "a dotted key in a table": (text("a = { " + "b." * 40_000 + "c = 1 }"), "too many parts"),
    "a long number": (text("a = " + "9" * 100_000), "too many digits"),
    "a long hexadecimal number": (text("[limits]\nrequests_per_minute = 0x" + "f" * 50_000), "too large"),
    "a large number": (text("[storage]\nretention_days = 1000000000000"), "too large"),
    "a large fraction": (text("[limits]\nanswer_seconds = 1e300"), "too large"),
    "unknown settings": (text("\n".join(f"a{n} = 1" for n in range(15_000))), "and 14,950 more mistakes"),
    "a long name": (text("k" * 100_000 + " = 1"), "kkk…: unknown setting"),
    "control characters in a name": (text('"a\\u009b2J\\n" = 1'), r"'a\x9b2J\n': unknown setting"),
    "a list of many lines": (text("a = [\n" + "[1],\n" * 40_000 + "]"), "a: unknown setting"),
    "ten megabytes": (text("# " + "x" * 10_000_000), "larger than 262,144 bytes"),
    "zeros": (data(bytes(1000)), "line 1"),
    "random bytes": (data(random.Random(3).randbytes(5000)), "not UTF-8"),
    "Latin-1": (data("[engine]\nmodel = 'é'".encode("latin-1")), "not UTF-8"),
    "UTF-16": (data("[engine]\n".encode("utf-16")), "not UTF-8"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a socket": (listen, "cannot be read"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a loop of links": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_start_ends_with_one_sentence(name: str, tmp_path: Path) -> None:
    put, sentence = FILES[name]
    put(tmp_path / "config.toml")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.toml", SETTINGS, BACKENDS, {})
    assert caught.value.exit_code == 2
    assert sentence in str(caught.value)
    assert len(caught.value.mistakes) <= 51
    assert all(len(mistake) < 300 and mistake.isprintable() for mistake in caught.value.mistakes)


@pytest.mark.parametrize("name", FILES)
async def test_a_running_bot_keeps_its_settings(name: str, follower: Follower) -> None:  # noqa: F811
    await follower.write("[limits]\nrequests_per_minute = 7\n")
    follower.path.unlink()
    FILES[name][0](follower.path)
    last = await follower.look()
    assert last is not None
    assert last.rejected
    assert follower.live.current.limits.requests_per_minute == 7
    if follower.path.is_dir() and not follower.path.is_symlink():
        follower.path.rmdir()
    else:
        follower.path.unlink()
    assert (await follower.write("[limits]\nrequests_per_minute = 8\n")).rejected == ()
    assert follower.live.current.limits.requests_per_minute == 8


@pytest.mark.parametrize("name", ["open lists", "a pipe", "a device", "random bytes"])
def test_the_command_ends_without_a_traceback(name: str, tmp_path: Path) -> None:
    FILES[name][0](tmp_path / "config.toml")
    run = bot(tmp_path, "run")
    assert run.returncode == 2
    assert run.stderr.startswith("bot: config.toml has 1 mistake:\n")
    assert run.stderr.count("\n") == 2


@pytest.mark.parametrize(
    ("put", "sentence"),
    [
        (os.mkfifo, "not a regular file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (text("x" * 1_000_000), "larger than 65,536 bytes"),
        (data(b"\xff\xfe"), "not UTF-8"),
    ],
)
def test_a_secret_file_of_any_kind_is_named(put: Put, sentence: str, tmp_path: Path) -> None:
    put(tmp_path / "discord__token")
    with pytest.raises(ConfigError) as caught:
        load_config(None, SETTINGS, BACKENDS, {"BOT_SECRETS_DIR": str(tmp_path)})
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{tmp_path / 'discord__token'}: ")
    assert sentence in mistake


@pytest.mark.parametrize(
    ("toml", "hint"),
    [
        (
            "[engine]\nquantization = int4  # small",
            'line 2, column 16: invalid value; text needs quotes: quantization = "int4"',
        ),
        ("[operations]\nhost = 0.0.0.0", 'text needs quotes: host = "0.0.0.0"'),
        ("[adapters.discord]\nthreads = False", "write threads = false"),
        ("[adapters.slack]\nbot_token = hunter2", 'text needs quotes: bot_token = "…"'),
        ("[x]\nplace = MTIzNDU2Nzg5MDEyMzQ1Njc4", 'text needs quotes: place = "…"'),
    ],
)
def test_a_value_without_quotes_is_explained(toml: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(toml, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.toml", SETTINGS, BACKENDS, {})
    (mistake,) = caught.value.mistakes
    assert mistake.endswith(hint)
