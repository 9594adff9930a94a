"""The command line: output and exit codes."""

import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine.sentences import make_encoder
from tests.harness import warm_start

ROOT = Path(__file__).parents[2]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BOT_")}
    return kept | {"PYTHONPATH": str(ROOT), "BOT_ENGINE__BACKEND": "echo"} | changes


def bot(folder: Path, *args: str, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
    return warm_start.run(args, folder=folder, env=environment(**changes), stdin=stdin)


def test_run_answers_and_keeps_the_conversation(tmp_path: Path) -> None:
    assert bot(tmp_path, "run", stdin="remember this\n").stdout == "remember this\n"
    second = bot(tmp_path, "run", stdin="/clear\n")
    assert "(1)" in second.stdout
    for file in (tmp_path / "data").iterdir():
        assert b"remember this" not in file.read_bytes()


def test_ask_prints_one_answer_and_stores_nothing(tmp_path: Path) -> None:
    assert bot(tmp_path, "ask", "how", "are you?").stdout == "how are you?\n"
    assert bot(tmp_path, "ask", "summarise:", stdin="a text\n").stdout == "summarise:\n\na text\n"
    assert list(tmp_path.iterdir()) == []
    controls = "a\x1b]52;c;eA==\x07b\x9b2J\r\nc"
    assert bot(tmp_path, "ask", controls).stdout == "a]52;c;eA==b2J\nc\n"
    nothing = bot(tmp_path, "ask")
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "there is no question" in nothing.stderr


def test_ask_refuses_what_is_no_text_in_a_sentence(tmp_path: Path) -> None:
    def ask(*words: str, **streams: Any) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "bot", "ask", *words]
        env = environment(PYTHONIOENCODING="utf-8:strict")
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False, **streams)

    piped = ask("summarise:", input="¿qué?".encode("latin-1"))
    assert (piped.returncode, piped.stdout) == (2, b"")
    assert piped.stderr.endswith(b"standard input is not text in UTF-8: convert it first, as with iconv or pdftotext\n")
    typed = ask(os.fsdecode(b"qu\xe9?"), input=b"")
    assert (typed.returncode, typed.stdout) == (2, b"")
    assert typed.stderr.endswith(b"the question is not text in UTF-8\n")
    # Closed, as by a shell's <&-.
    assert ask("hello", preexec_fn=lambda: os.close(0)).stdout == b"hello\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_output_to_a_full_disk_ends_with_a_sentence(tmp_path: Path) -> None:
    assert bot(tmp_path, "run", stdin="hello\n").returncode == 0
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "bot", "export", "--plain"],
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == "bot: the output is not complete: No space left on device"
    assert "Traceback" not in ran.stderr


def test_commands_read_the_settings_without_the_chat() -> None:
    code = (
        "import sys\nfrom bot.cli.common import load\nload(None)\n"
        "print([name for name in ('bot.chat.intake', 'prometheus_client', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment())
    assert done.stdout == "[]\n"


def test_ask_uses_the_model_that_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        "[engine]\nbackend = 'chatglm'\nmodel = '/absent'\n[models.other]\nbackend = 'echo'\n"
    )
    assert bot(tmp_path, "ask", "--model", "other", "hi", BOT_ENGINE__BACKEND="").stdout == "hi\n"
    unknown = bot(tmp_path, "ask", "--model", "others", "hi", BOT_ENGINE__BACKEND="")
    assert unknown.returncode == 2
    assert "--model others: config.toml has only engine, other" in unknown.stderr


def test_no_message_text_is_in_the_log(tmp_path: Path) -> None:
    ran = bot(tmp_path, "run", stdin="swordfish\n", BOT_LOGS__LEVEL="debug")
    assert '"exchange": 1' in ran.stderr
    assert "swordfish" not in ran.stderr


def test_all_mistakes_in_the_settings_are_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[engine]\nquantisation = "int8"\nmax_waiting = -1\n\n[adapters.console]\ntoken = "abc"\n'
    )
    ran = bot(tmp_path, "check")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "3 mistakes" in ran.stderr
    assert "line 2, engine.quantisation" in ran.stderr
    assert "did you mean engine.quantization" in ran.stderr
    assert "line 3, engine.max_waiting" in ran.stderr
    assert "abc" not in ran.stderr


def test_a_named_config_file_must_exist(tmp_path: Path) -> None:
    ran = bot(tmp_path, "run", "--config", "absent.toml")
    assert ran.returncode == 2
    assert "absent.toml" in ran.stderr


def test_the_environment_names_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[sampling]\ntop_k = 7\n")
    assert "top_k = 7 " in bot(tmp_path, "check", BOT_CONFIG="mine.toml").stdout
    ran = bot(tmp_path, "check", BOT_CONFIG="absent.toml")
    assert ran.returncode == 2
    assert "absent.toml" in ran.stderr


def test_check_prints_current_settings_and_their_sources(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[sampling]\ntop_k = 7\n")
    ran = bot(tmp_path, "check")
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^\* top_k = 7 +# config.toml, line 2; default: 50$", ran.stdout, re.MULTILINE)
    assert re.search(r"^\* backend = \"echo\" +# BOT_ENGINE__BACKEND; default", ran.stdout, re.MULTILINE)
    assert "Adapters that will run: console" in ran.stdout


def test_the_config_of_the_repository_is_all_defaults(tmp_path: Path) -> None:
    ran = bot(tmp_path, "check", "--config", str(ROOT / "config.toml"), BOT_ENGINE__BACKEND="")
    assert "Changed settings: 0" in ran.stdout, ran.stderr


def test_migrate_creates_the_database(tmp_path: Path) -> None:
    ran = bot(tmp_path, "migrate")
    assert (ran.returncode, ran.stdout) == (0, "The database is up to date.\n"), ran.stderr
    assert (tmp_path / "data" / "bot.db").exists()


def test_a_database_newer_than_the_program_is_left_unchanged(tmp_path: Path) -> None:
    bot(tmp_path, "migrate")
    file = tmp_path / "data" / "bot.db"
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    before = file.read_bytes()
    ran = bot(tmp_path, "run", stdin="hello\n")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("bot: ")
    assert "Update the program" in ran.stderr
    assert file.read_bytes() == before


def test_a_folder_without_a_model_gives_one_sentence(tmp_path: Path) -> None:
    ran = bot(tmp_path, "run", BOT_ENGINE__BACKEND="chatglm", BOT_ENGINE__MODEL=str(tmp_path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "config.json" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_sigterm_shuts_down_cleanly(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "bot", "run"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write("hello\n")
        running.stdin.flush()
        assert running.stdout.readline() == "hello\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(120) == 0
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()


def test_serve_answers_over_http_without_a_platform(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bot", "serve"]
    env = environment(BOT_SERVER__PORT="0", BOT_DISCORD__TOKEN="not used")
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as served:
        assert served.stderr is not None
        lines = (json.loads(line) for line in served.stderr)
        port = next(line["port"] for line in lines if line.get("section") == "server")
        body = json.dumps({"prompt": "over the wire"}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", body) as response:
            assert json.load(response)["response"] == "over the wire"
        served.send_signal(signal.SIGTERM)
        assert served.wait() == 0


SERVING_A_LOG = """
import logging, os, pathlib, bot.app
from bot import cli

async def serve(config, progress, source):
    pathlib.Path("engine__key").write_text("a newer key")
    assert source.load().engine.key.get_secret_value() == "a newer key"
    logging.getLogger("bot.part").error("neither a newer key nor an older key")

bot.app.serve = serve
cli.main()
"""


def test_a_key_that_is_replaced_while_it_runs_is_redacted_as_well(tmp_path: Path) -> None:
    (tmp_path / "engine__key").write_text("an older key")
    command = [sys.executable, "-c", SERVING_A_LOG, "serve"]
    env = environment(BOT_SECRETS_DIR=".", BOT_ENGINE__BACKEND="remote", BOT_ENGINE__URLS="http://127.0.0.1:9/v1")
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "neither (secret) nor (secret)" in ran.stderr


def test_serve_embeds_for_the_client_of_openai(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-bert"
    make_encoder(folder)
    command = [sys.executable, "-m", "bot", "serve"]
    env = environment(BOT_SERVER__PORT="0", BOT_EMBEDDINGS__MODEL=str(folder))
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as served:
        assert served.stderr is not None
        lines = (json.loads(line) for line in served.stderr)
        port = next(line["port"] for line in lines if line.get("section") == "server")
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client:
            found = client.embeddings.create(model="tiny-bert", input=["cat", "dog"])
        assert [len(each.embedding) for each in found.data] == [32, 32]
        assert sum(number**2 for number in found.data[1].embedding) == pytest.approx(1)
        served.send_signal(signal.SIGTERM)
        assert served.wait() == 0


def test_serve_fails_before_it_is_ready_if_its_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # A model that cannot be loaded is noticed later.
        ran = bot(tmp_path, "serve", BOT_SERVER__PORT=str(port), BOT_ENGINE__BACKEND="remote", BOT_ENGINE__URLS="x://y")
    assert ran.returncode == 1
    assert f"the HTTP server of [server] cannot listen on 127.0.0.1:{port}" in ran.stderr
    assert '"ready"' not in ran.stderr


def test_serve_listens_before_it_is_ready(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bot", "serve"]
    env = environment(BOT_SERVER__PORT="0")
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as served:
        assert served.stderr is not None
        events = []
        for line in served.stderr:
            events.append(json.loads(line)["event"])
            if events[-1] == "ready":
                break
        served.send_signal(signal.SIGTERM)
        assert served.wait() == 0
    assert "HTTP server listening" in events


def test_serve_checks_the_embedding_model_before_it_loads_the_chat_model(tmp_path: Path) -> None:
    ran = bot(tmp_path, "serve", BOT_ENGINE__BACKEND="chatglm", BOT_EMBEDDINGS__MODEL=str(tmp_path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"{tmp_path} has no config.json" in ran.stderr
    assert "cpu needs" not in ran.stderr  # the log line of a chat model that loads
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("run", "--help")])
def test_help_and_version_need_no_settings(tmp_path: Path, args: tuple[str, ...]) -> None:
    (tmp_path / "config.toml").write_text("nonsense")
    assert bot(tmp_path, *args).returncode == 0


def test_an_unknown_option_is_a_mistake_on_the_command_line(tmp_path: Path) -> None:
    ran = bot(tmp_path, "run", "--quiet")
    assert ran.returncode == 2
    assert "--quiet" in ran.stderr


def test_it_may_open_as_many_files_as_the_system_grants() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = "import os, resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0]); os._exit(0)"
    script = f'from importlib import import_module; import_module("bot.cli.run")._raise_file_limit(); {count}'
    run = subprocess.run(
        ["sh", "-c", 'ulimit -S -n 64 && exec "$0" -c "$1"', sys.executable, script],
        capture_output=True,
        encoding="utf-8",
        check=True,
        env=environment(),
    )
    assert run.stdout == f"{hard}\n"
