"""Startup failures of the real program: one sentence that names the problem and the remedy."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bot.storage.instance_lock import InstanceLock
from tests.chaos.processes import environment as on_platforms
from tests.cli.test_main import bot, environment
from tests.harness import warm_start
from tests.harness.platform_bench import PROFILES
from tests.storage import url_of

DROP_CAPABILITIES = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
NO_PRIVILEGES = "dropping the privileges of root needs setpriv (util-linux)"
NO_MOUNT = "this machine does not allow user mounts (unshare --mount)"

Prepare = Callable[[Path], object]


def start(folder: Path, *args: str, before: Sequence[str] = (), **changes: str) -> tuple[int, str]:
    """Run the bot until it exits; return exit code and standard error."""
    if not before:
        warm = bot(folder, *(args or ("run",)), **changes)
        assert warm.stdout == ""
        return warm.returncode, warm.stderr
    ran = subprocess.run(
        [*before, sys.executable, "-m", "bot", *(args or ("run",))],
        cwd=folder,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert ran.stdout == ""
    return ran.returncode, ran.stderr


def without_privileges() -> list[str]:
    """Return a command prefix that enforces file permissions also for root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip(NO_PRIVILEGES)
    return DROP_CAPABILITIES


def on_tmpfs(folder: Path, options: str) -> list[str]:
    """Return a command prefix that mounts a tmpfs with `options` on `folder`."""
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    script = f'mount -t tmpfs -o {options} none "$0" && cd "$0" && exec "$@"'
    prefix = [*namespace, "sh", "-c", script, str(folder)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip(NO_MOUNT)
    return prefix


@pytest.mark.parametrize(
    ("settings", "exit_code", "sentence"),
    [
        (
            {"BOT_ENGINE__BACKEND": "chatglm", "BOT_ENGINE__MODEL": "/models/absent"},
            2,
            'bot: engine.model = "/models/absent": no such folder; name a folder, a model of the hub as',
        ),
        (
            {"BOT_ENGINE__BACKEND": "chatglm", "BOT_ENGINE__DEVICE": "cuda:99"},
            1,
            'bot: engine.device = "cuda:99": torch',
        ),
        (
            {"BOT_STORAGE__URL": "sqlite+aiosqlite:////proc/bot/bot.db"},
            1,
            "bot: the database's folder /proc/bot cannot be created (No such file or directory): create it, or name",
        ),
    ],
    ids=["no model", "no GPU", "no folder"],
)
def test_a_missing_model_device_or_folder_is_named(
    tmp_path: Path, settings: dict[str, str], exit_code: int, sentence: str
) -> None:
    code, said = start(tmp_path, **settings)
    assert (code, said.count("\n")) == (exit_code, 1), said
    assert said.startswith(sentence)


def test_a_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o500)
    code, said = start(tmp_path, before=without_privileges())
    assert (code, said.count("\n")) == (1, 1), said
    assert "data/bot.db cannot be opened" in said
    assert "the bot's user needs read and write permission on it and its folder (Permission denied)" in said


def test_a_read_only_file_system_is_named(tmp_path: Path) -> None:
    code, said = start(tmp_path, before=on_tmpfs(tmp_path, "ro"))
    assert (code, said.count("\n")) == (1, 1), said
    assert "(Read-only file system): create it, or name another file in storage.url" in said


def test_a_disk_that_is_full_at_startup_is_named(tmp_path: Path) -> None:
    code, said = start(tmp_path, before=on_tmpfs(tmp_path, "size=16k"))
    assert (code, said.count("\n")) == (1, 1), said
    # SQLite reports one or the other, depending on which of its files has no space.
    assert "the disk is full: free some space" in said


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = start(tmp_path, BOT_OPERATIONS__ENABLED="true", BOT_OPERATIONS__PORT=port)
    assert (code, said.count("\n")) == (1, 1), said
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use); change operations.port" in said


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (lambda file: None, "the file does not exist; name another one, or omit --config"),
        (lambda file: file.touch(mode=0), "the file cannot be read (Permission denied)"),
        (lambda file: file.mkdir(), "the file cannot be read (Is a directory)"),
    ],
    ids=["missing", "unreadable", "a folder"],
)
def test_a_named_config_file_must_be_readable(tmp_path: Path, prepare: Prepare, sentence: str) -> None:
    prepare(tmp_path / "mine.toml")
    before = without_privileges() if (tmp_path / "mine.toml").is_file() else ()
    code, said = start(tmp_path, "run", "--config", "mine.toml", before=before)
    assert (code, said) == (2, f"bot: mine.toml has 1 mistake:\n  {sentence}\n")


def test_a_second_bot_on_the_same_database_exits_without_side_effects(tmp_path: Path) -> None:
    with InstanceLock(url_of(tmp_path / "data" / "bot.db")):
        code, said = start(tmp_path)
        assert (code, said.count("\n")) == (1, 1), said
        assert f"data/bot.db is in use by another bot (process {os.getpid()} on " in said
        assert said.endswith("or let this one wait for it with cluster.enabled = true in both\n")
        assert not (tmp_path / "data" / "bot.db").exists()


def test_read_only_commands_work_while_the_bot_runs(tmp_path: Path) -> None:
    assert bot(tmp_path, "run", stdin="remember this\n").returncode == 0
    with InstanceLock(url_of(tmp_path / "data" / "bot.db")):
        assert bot(tmp_path, "check").returncode == 0
        assert bot(tmp_path, "migrate").stdout == "The database is up to date.\n"
        assert "integrity check passed" in bot(tmp_path, "backup", "backup.db").stdout
        listed = bot(tmp_path, "export").stdout.split()
        assert listed[0] == "1"
        assert '"remember this"' in bot(tmp_path, "export", listed[1]).stdout


def test_a_pending_migration_is_refused_while_the_bot_runs(tmp_path: Path) -> None:
    with InstanceLock(url_of(tmp_path / "data" / "bot.db")):
        code, said = start(tmp_path, "migrate")
    assert (code, said.count("\n")) == (1, 1), said
    assert "is in use by another bot" in said


def test_the_password_of_the_copy_target_is_not_shown(tmp_path: Path) -> None:
    assert bot(tmp_path, "migrate").returncode == 0
    code, said = start(tmp_path, "copy", BOT_COPY_TO="postgresql://bot:hush-hush@127.0.0.1:1/bot")
    assert (code, said.count("\n")) == (1, 1), said
    assert "postgresql://bot@127.0.0.1:1/bot cannot be reached" in said
    assert "hush" not in said
    code, said = start(tmp_path, "copy", BOT_COPY_TO="postgresql://bot:p@hush-hush@127.0.0.1:1/bot")
    assert (code, said.count("\n")) == (1, 1), said
    assert "BOT_COPY_TO is not a database URL" in said
    assert "@ is written %40" in said
    assert "hush" not in said
    code, said = start(tmp_path, "copy", "--to", "postgresql://bot@127.0.0.1:1/bot")
    assert "are host and port in --to right?" in said
    code, said = start(
        tmp_path, "copy", "--to", "sqlite+aiosqlite:///new.db", BOT_STORAGE__URL="postgresql://bot@127.0.0.1:1/bot"
    )
    assert "are host and port in storage.url right?" in said


def test_a_missing_or_wrong_master_key_is_named(tmp_path: Path) -> None:
    key = "a master key of 32 characters or more"
    assert bot(tmp_path, "run", stdin="remember this\n", BOT_STORAGE__MASTER_KEY=key).returncode == 0
    for command in ("run", "check"):
        ran = bot(tmp_path, command)
        assert ran.returncode == 2, ran.stderr
        assert "data/bot.db.keys is encrypted with a master key, and storage.master_key is not set: set" in (
            ran.stdout + ran.stderr
        )
    code, said = start(tmp_path, BOT_STORAGE__MASTER_KEY=key[::-1])
    assert (code, said.count("\n")) == (2, 1), said
    assert (
        "data/bot.db.keys is encrypted with another master key than storage.master_key: set the one from before" in said
    )
    ran = bot(tmp_path, "check", BOT_STORAGE__MASTER_KEY=key)
    assert ran.returncode == 0, ran.stderr
    assert "master_key = (set)" in ran.stdout
    assert key not in ran.stdout + ran.stderr
    assert "remember this" in bot(tmp_path, "export", "console:terminal", BOT_STORAGE__MASTER_KEY=key).stdout


def test_export_exits_quietly_when_the_reader_closes_the_pipe(tmp_path: Path) -> None:
    assert bot(tmp_path, "run", stdin=f"{'x' * 7000}\n" * 20, BOT_LIMITS__REQUESTS_PER_MINUTE="0").returncode == 0
    with subprocess.Popen(
        [sys.executable, "-m", "bot", "export", "console:terminal"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as exporting:
        assert exporting.stdout is not None
        assert exporting.stderr is not None
        exporting.stdout.read(10)
        exporting.stdout.close()
        assert exporting.wait(600) == 1
        assert exporting.stderr.read() == b""


@pytest.mark.parametrize(
    ("name", "token", "wrong", "who_am_i"),
    [
        ("discord", "BOT_DISCORD__TOKEN", "not-the-token-of-the-bot", "GET /users/@me"),
        ("telegram", "BOT_TELEGRAM__TOKEN", "123456789:" + "A" * 35, None),
        ("slack", "BOT_SLACK__BOT_TOKEN", "xoxb-123456789012-wrong", "auth.test"),
        ("slack", "BOT_SLACK__APP_TOKEN", "xapp-1-A0-123456789012", None),
    ],
)
async def test_a_wrong_token_ends_the_bot_without_a_retry(
    tmp_path: Path, name: str, token: str, wrong: str, who_am_i: str | None
) -> None:
    async with PROFILES[name].open() as platform:
        given = on_platforms({name: platform}, tmp_path) | {token: wrong, "BOT_LOGS__LEVEL": "error"}
        ran = await asyncio.to_thread(warm_start.run, ["run"], folder=tmp_path, env=given, login_pause=0.1)
        said = ran.stderr
        refused = list(platform.calls)  # type: ignore[attr-defined]  # each loopback platform notes them
    assert (ran.returncode, said.count("\n")) == (2, 1), said
    assert said.startswith("bot: ")
    assert token in said
    assert wrong not in said
    if who_am_i:  # asked again before the refusal is believed, and nothing after that
        assert set(refused) == {who_am_i}
        assert 2 <= len(refused) <= 3, refused
