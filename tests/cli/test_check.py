"""`bot check` finds what would stop the start, with the exit code of the start."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bot.storage.instance_lock import InstanceLock
from tests.cli.test_bad_situations import without_privileges
from tests.cli.test_main import bot, environment
from tests.harness.servers.model_server import ModelServer
from tests.storage import url_of

LLAMA = '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'


def prepare(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "llama").mkdir()
    (folder / "llama" / "config.json").write_text(LLAMA)
    (folder / "mounted" / "discord__token").mkdir(parents=True)


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("toml", "variables", "sentence"),
    [
        ("[engine]\nmodle = 'x'", {}, "unknown setting; did you mean engine.model?"),
        ("[limits]\nanswer_seconds = 'x'", {}, "'x' is not a number"),
        ("[engine]\nbackend = 'remote'", {}, "it must name a server, as in urls ="),
        ("[engine]\nmodel = '/models/absent'", {}, 'engine.model = "/models/absent": no such folder'),
        ("[engine]\nmodel = 'empty'", {}, "config.json is missing"),
        ("[engine]\nmodel = 'llama'\nbackend = 'chatglm'", {}, 'set engine.backend = "auto" or "transformers"'),
        ("[models.big]\nmodel = '/models/absent'", {}, 'models.big.model = "/models/absent": no such folder'),
        (
            "[server]\nenabled = true\nport = 0\n[embeddings]\nmodel = '/models/absent'",
            {},
            'embeddings.model = "/models/absent": no such folder',
        ),
        ("", {"BOT_SECRETS_DIR": "mounted"}, "discord__token: cannot be read: Is a directory"),
    ],
    ids=["key", "type", "no servers", "no folder", "empty folder", "backend", "second model", "embeddings", "secret"],
)
def test_a_mistake_in_the_settings_ends_with_2(
    tmp_path: Path, command: str, toml: str, variables: dict[str, str], sentence: str
) -> None:
    prepare(tmp_path)
    (tmp_path / "config.toml").write_text(toml)
    backend = "" if "engine" in toml else "echo"
    ran = bot(tmp_path, command, BOT_ENGINE__BACKEND=backend, **variables)
    assert ran.returncode == 2, ran.stderr
    assert sentence in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "data").exists() or command == "run"


async def test_online_asks_model_servers(tmp_path: Path) -> None:
    async with ModelServer(context_length=900) as server:
        (tmp_path / "config.toml").write_text(
            f'[engine]\nurls = ["{server.url}"]\n[models.away]\nurls = ["http://127.0.0.1:9/v1"]\n'
            f'[models.typo]\nurls = ["{server.url}"]\nmodel = "skripted"\n'
        )
        ran = await asyncio.to_thread(bot, tmp_path, "check", "--online", BOT_ENGINE__BACKEND="")
    assert ran.returncode == 1
    assert "model engine:\n  ok  scripted at 127.0.0.1:" in ran.stdout
    assert "context 900" in ran.stdout
    assert "model away:\n  !!  127.0.0.1:9: no connection (ConnectError): is the server running?" in ran.stdout
    assert "the model is not in a server's list" in ran.stderr


@pytest.mark.parametrize("arguments", [("serve",), ("ask", "hello")])
def test_the_other_commands_end_with_2_too(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = bot(tmp_path, *arguments, BOT_ENGINE__BACKEND="", BOT_ENGINE__MODEL="/models/absent")
    assert (ran.returncode, ran.stdout) == (2, "")


def test_a_port_in_use_ends_with_1_unless_it_may_be_the_running_bots(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {"BOT_SERVER__ENABLED": "true", "BOT_SERVER__PORT": str(taken.getsockname()[1])}
        ran = bot(tmp_path, "check", **settings)
        assert ran.returncode == 1, ran.stderr
        assert "!! port of [server]: the HTTP server of [server] cannot listen on 127.0.0.1" in ran.stdout
        with InstanceLock(url_of(tmp_path / "data" / "bot.db")):
            ran = bot(tmp_path, "check", **settings)
            assert ran.returncode == 0, ran.stderr
            assert "-- port of [server]: " in ran.stdout


def test_a_database_without_permission_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o500)
    ran = subprocess.run(
        [*without_privileges(), sys.executable, "-m", "bot", "check"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert "!! database: data/bot.db cannot be opened: it must be a file" in ran.stdout
    assert list((tmp_path / "data").iterdir()) == []


def test_a_well_configured_bot_needs_nothing_more(tmp_path: Path) -> None:
    ran = bot(tmp_path, "check", BOT_SERVER__ENABLED="true", BOT_SERVER__PORT="0")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("Needed by the start:\n  ok model engine\n  ok database\n  ok port of [server]\n")
    assert list(tmp_path.iterdir()) == []
