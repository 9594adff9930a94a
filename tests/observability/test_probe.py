"""`bot health`: finds the bot as the settings do, understands its answer, and costs next to nothing."""

import asyncio
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from bot.config.http import OperationsSection
from bot.observability import probe
from bot.observability.health import Components, Health
from bot.observability.http import create_app, serve_operations
from bot.observability.probe import query_readiness
from tests.harness.fakes import ManualClock, ScriptedEngine
from tests.harness.ports import reserved_port
from tests.storage import temporary_store

ANY_PORT = OperationsSection(port=0)


def health(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BOT_")}
    return subprocess.run(
        [sys.executable, "-m", "bot", "health", *arguments],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


async def test_another_process_can_query_readiness(tmp_path: Path) -> None:
    parts = Components()
    app = create_app(Health(parts, 60.0, ManualClock()), CollectorRegistry())
    async with serve_operations(ANY_PORT, app) as port, temporary_store(tmp_path) as store:
        parts.store = store
        loading = (False, "program: ok\nstore: ok\nengine: loading")
        assert await asyncio.to_thread(query_readiness, "0.0.0.0", port) == loading
        parts.engine = ScriptedEngine()
        assert await asyncio.to_thread(query_readiness, "0.0.0.0", port) == (
            True,
            "program: ok\nstore: ok\nengine: ok",
        )


async def test_the_command_finds_the_bot_by_file_secret_and_environment(tmp_path: Path) -> None:
    parts = Components()
    app = create_app(Health(parts, 60.0, ManualClock()), CollectorRegistry())
    async with serve_operations(ANY_PORT, app) as port:
        (tmp_path / "secrets").mkdir()
        config, secret = tmp_path / "bot.toml", tmp_path / "secrets" / "operations__port"
        config.write_text(f'[operations]\nhost = "127.0.0.1"\nport = {port}\n', encoding="utf-8")
        named = ("--config", str(config))
        said = await asyncio.to_thread(health, tmp_path, *named)
        assert (said.returncode, said.stdout) == (1, "program: ok\nstore: opening\nengine: loading\n")
        secret.write_text("1\n", encoding="utf-8")
        said = await asyncio.to_thread(health, tmp_path, *named, BOT_SECRETS_DIR="secrets")
        assert "no bot answers on 127.0.0.1:1:" in said.stdout
        assert 'operations.enabled = true turns on ("auto" does so only with a chat platform)' in said.stdout
        variables = {"BOT_SECRETS_DIR": "secrets", "BOT_OPERATIONS__PORT": str(port)}
        said = await asyncio.to_thread(health, tmp_path, *named, **variables)
        assert "engine: loading" in said.stdout
        secret.unlink()
        said = await asyncio.to_thread(health, tmp_path, BOT_CONFIG=str(config))
        assert "engine: loading" in said.stdout


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[operations]\n# port = 1\n",
        '[operations]\nhost = "::1" # all\nport = 90\n[server]\nport = 8000\n',
        "[operations]\nhost = '::1'\nport=0x5A",
        "operations = { port = 90 }",
        "operations.port = 9_0",
        "[ operations ]\nport = 90",
        '["operations"]\nport = 90',
        '[conversation]\nsystem_prompt = """\n[operations]\nport = 1\n"""\n[operations]\nport = 90\n',
        "[conversation]\nsystem_prompt = '''\n[operations]\nport = 1\n'''",
        '[operations]\nhost = "a#b"\nport = 90',
        '[logs]\nlevels = { "bot.operations" = "debug" }\n[operations]\nport = 90',
    ],
)
def test_the_table_is_read_as_toml_is(text: str) -> None:
    table = tomllib.loads(text).get("operations", {})
    assert {name: str(value) for name, value in probe._operations(text).items()} == {
        name: str(value) for name, value in table.items()
    }


def test_settings_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    (tmp_path / "bot.toml").write_text("[operations\n", encoding="utf-8")
    said = health(tmp_path, "--config", "bot.toml")
    assert said.returncode == 2
    assert "bot.toml" in said.stderr
    assert health(tmp_path, "--config", "none.toml").returncode == 2
    assert health(tmp_path, BOT_CONFIG="none.toml").returncode == 2
    assert "Usage" in health(tmp_path, "--help").stdout


def test_it_imports_only_what_a_query_needs(tmp_path: Path) -> None:
    with reserved_port() as port:
        code = (
            "import json, sys\n"
            "from bot.__main__ import main\n"
            "sys.argv = ['bot', 'health']\n"
            "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, json.dumps(sorted(sys.modules)))\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"BOT_OPERATIONS__PORT": str(port)},
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=True,
        )
    said, _, rest = ran.stdout.partition("\n")
    code, _, names = rest.partition(" ")
    assert (said.startswith(f"no bot answers on 127.0.0.1:{port}"), code) == (True, "1")
    modules = set(json.loads(names))
    assert not modules & {"click", "pydantic", "asyncio", "ssl", "email", "http.client", "bot.cli", "bot.config"}


def test_the_defaults_are_those_of_the_settings() -> None:
    default = OperationsSection()
    assert (default.host, default.port) == (probe.DEFAULT_HOST, probe.DEFAULT_PORT)


@pytest.mark.parametrize(
    "greeting", [b"220 mail here\r\n", b"HTTP/1.0 200 OK\r\n\r\n[]", b"HTTP/1.0 200 OK\r\n\r\n{}", b""]
)
async def test_another_server_on_the_port_is_not_ready(greeting: bytes) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert not (await asyncio.to_thread(query_readiness, "127.0.0.1", port))[0]
