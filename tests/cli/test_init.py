"""`bot init` on a real terminal and in scripts: what it asks, checks and writes."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import which

import pytest
import yaml  # type: ignore[import-untyped]  # has no types

from bot.config.services import compose_file, systemd_unit
from bot.config.setup import FoundServer, find_servers, models_of
from tests.chaos.processes import ROOT as CHECKOUT
from tests.chaos.processes import environment as loopback_environment
from tests.chaos.processes import run_bot
from tests.cli.test_main import bot, environment
from tests.harness.ports import reserved_port
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import TOKEN
from tests.harness.servers.model_server import MODEL, ModelServer
from tests.harness.terminal import Terminal

TELEGRAM = "123456789:" + "A" * 35


@pytest.fixture
async def platform() -> AsyncIterator[DiscordPlatform]:
    async with DiscordPlatform() as platform:
        platform.channel("general")
        yield platform


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def on_terminal(folder: Path, *options: str, **changes: str) -> Terminal:
    return Terminal("init", *options, folder=folder, env=environment(LANG="C.UTF-8", LC_ALL="", **changes))


def answer_the_rest(terminal: Terminal, *, model: str = "", service: str = "") -> None:
    """Answer the questions behind the tokens: the model by its title, the service by its number."""
    menu = terminal.wait_for("Number [1]")
    line = next((line for line in menu.splitlines() if model in line), "")
    terminal.type(f"{line.split()[0] if model else ''}\r")
    terminal.wait_for("own messages?")
    terminal.wait_for("Number [1]")
    terminal.type("\r")
    if service:
        terminal.wait_for("How will the bot be started?")
        terminal.wait_for("Number [1]")
        terminal.type(f"{service}\r")
    terminal.wait_for("Write these files?")


async def test_the_answers_become_files_with_which_a_bot_starts(platform: DiscordPlatform, tmp_path: Path) -> None:
    urls = {
        name: value
        for name, value in loopback_environment({"discord": platform}, tmp_path).items()
        if name in ("BOT_DISCORD__API_URL", "BOT_DISCORD__GATEWAY_URL")
    }

    def interview() -> str:
        with on_terminal(tmp_path, **urls) as terminal:
            terminal.wait_for("empty for this terminal only")
            terminal.type("1\r")
            terminal.wait_for("Reset Token):")
            terminal.type("a wrong token\r")
            terminal.wait_for("!! ")
            terminal.wait_for("Reset Token):")
            terminal.type(f"{TOKEN}\r")
            terminal.wait_for("ok the token is valid")
            answer_the_rest(terminal, model="the demo model", service="2")
            terminal.type("y\r")
            assert terminal.ended() == 0, terminal.shown
            return terminal.shown

    shown = await asyncio.to_thread(interview)
    assert TOKEN not in shown
    assert "systemctl --user enable --now" in shown
    config, secret = tmp_path / "config.toml", tmp_path / "secrets" / "discord__token"
    assert secret.read_text() == f"{TOKEN}\n"
    assert (mode(secret), mode(secret.parent), mode(config)) == (0o600, 0o700, 0o644)
    assert all(TOKEN not in file.read_text() for file in (config, tmp_path / "chatglm-bot.service"))
    checked = await asyncio.to_thread(bot, tmp_path, "check", "--online", **urls, BOT_OPERATIONS__PORT="0")
    assert "secrets/discord__token" in checked.stdout, checked.stderr
    assert "ok model engine" in checked.stdout
    async with run_bot({"discord": platform}, tmp_path, {"BOT_DISCORD__TOKEN": ""}) as running:
        await running.connected()
        await platform.say("hello")
        await platform.until(lambda: any(each.author == "bot" for each in platform.seen("general")))


def test_the_terminals_language_and_nothing_written_after_ctrl_c(tmp_path: Path) -> None:
    with Terminal("init", folder=tmp_path, env=environment(LC_ALL="zh_CN.UTF-8")) as terminal:
        terminal.wait_for("留空则只在本终端使用")
        terminal.type("\x03")
        assert terminal.ended() == 130
        assert "没有写入任何内容" in terminal.shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["ctrl-c", "end of input"])
def test_leaving_at_the_token_or_the_last_question_writes_nothing(tmp_path: Path, key: str) -> None:
    with on_terminal(tmp_path, "--offline") as terminal:
        terminal.wait_for("terminal only")
        terminal.type("2\r")
        terminal.wait_for("@BotFather")
        terminal.type(key)
        assert terminal.ended() == 130
    with on_terminal(
        tmp_path, "--offline", "--platform", "telegram", "--model", "demo", "--language", "zh"
    ) as terminal:
        terminal.wait_for("@BotFather")
        terminal.type(f"{TELEGRAM}\r")
        terminal.wait_for("Number [1]")
        terminal.type("\r")
        terminal.wait_for("Write these files?")
        terminal.type(key)
        assert terminal.ended() == 130
        assert "Nothing was written." in terminal.shown
    assert list(tmp_path.iterdir()) == []


def test_a_platform_that_cannot_be_reached_keeps_its_token_if_wanted(tmp_path: Path) -> None:
    with reserved_port() as port, on_terminal(tmp_path, BOT_TELEGRAM__API_URL=f"http://127.0.0.1:{port}") as terminal:
        terminal.wait_for("terminal only")
        terminal.type("2\r")
        terminal.wait_for("@BotFather")
        terminal.type("no token\r")
        terminal.wait_for("not a Telegram token")
        terminal.wait_for("@BotFather, 123456")
        terminal.type(f"{TELEGRAM}\r")
        terminal.wait_for("Telegram could not be reached. Keep the token without a check?")
        terminal.type("y\r")
        answer_the_rest(terminal, model="the demo model", service="1")
        terminal.type("y\r")
        assert terminal.ended() == 0
        assert TELEGRAM not in terminal.shown
    assert (tmp_path / "secrets" / "telegram__token").read_text() == f"{TELEGRAM}\n"


async def test_a_model_server_is_found_and_its_models_are_offered(tmp_path: Path) -> None:
    async with ModelServer() as server:
        url = server.url
        with reserved_port() as port:
            nowhere = f"http://127.0.0.1:{port}/v1"
            assert await find_servers({"vLLM": url, "Ollama": nowhere}) == [FoundServer("vLLM", url, [MODEL])]
            assert await models_of(nowhere) is None
        ran = await asyncio.to_thread(
            bot, tmp_path, "init", "--yes", "--server", url, "--model", MODEL, BOT_ENGINE__BACKEND=""
        )
        assert ran.returncode == 0, ran.stderr
        checked = await asyncio.to_thread(bot, tmp_path, "check", BOT_ENGINE__BACKEND="")
        assert f'* model = "{MODEL}"' in checked.stdout
        assert checked.returncode == 0, checked.stderr


def test_a_script_gives_options_and_tokens_in_the_environment(tmp_path: Path) -> None:
    options = ("init", "--yes", "--offline", "--folder", "new/place", "--language", "zh", "--service", "system")
    ran = bot(tmp_path, *options, BOT_TELEGRAM__TOKEN=TELEGRAM, LANG="C")
    assert ran.returncode == 0, ran.stderr
    place = tmp_path / "new" / "place"
    assert TELEGRAM not in ran.stdout + ran.stderr + (place / "config.toml").read_text()
    header, *_, language = (place / "config.toml").read_text().splitlines()
    assert header.startswith("# Settings that differ from the defaults")
    assert language.startswith('language = "zh"')
    assert mode(place / "secrets" / "telegram__token") == 0o600
    checked = bot(tmp_path, "check", "--config", str(place / "config.toml"), BOT_OPERATIONS__PORT="0")
    assert checked.returncode == 0, checked.stdout
    assert "Adapters that will run: telegram" in checked.stdout
    again = bot(tmp_path, *options, BOT_TELEGRAM__TOKEN=TELEGRAM)
    assert again.returncode == 2
    assert "has settings: name another --folder, or add --overwrite" in again.stderr
    for path, program in (("", str(Path(sys.executable).with_name("bot"))), (str(Path(sys.executable).parent), "bot")):
        ran = bot(tmp_path, "init", "--yes", "--folder", ".", PATH=path)
        assert f"  {program} check --online\n  {program} run\n" in ran.stdout
    in_a_file = bot(tmp_path, "init", "--yes", "--folder", str(place / "config.toml"))
    assert (in_a_file.returncode, "is a file; name a folder" in in_a_file.stderr) == (2, True)
    assert bot(tmp_path, *options, "--overwrite", BOT_TELEGRAM__TOKEN=TELEGRAM).returncode == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "bot init asks on a terminal; in a script use --yes with options"),
        (("--yes", "--platform", "slack"), "set BOT_SLACK__BOT_TOKEN and BOT_SLACK__APP_TOKEN"),
        (("--yes", "--server", "gpu1:8000"), "engine.urls"),
        (("--yes", "--model", "/absent"), 'engine.model = "/absent": no such folder'),
        (("--yes", "--service", "user"), "--service user needs a platform"),
    ],
    ids=["no terminal", "no token", "no address", "no folder", "no platform"],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    ran = bot(tmp_path, "init", *options, BOT_ENGINE__BACKEND="")
    assert ran.returncode == 2, ran.stderr
    assert sentence in ran.stderr
    assert "Traceback" not in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_comments_of_a_config_without_settings_stay(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_bytes(b"\xef\xbb\xbf" + (CHECKOUT / "config.toml").read_bytes())  # as some editors save it
    before = config.read_text("utf-8-sig").splitlines()
    assert bot(tmp_path, "init", "--yes", "--language", "en").returncode == 0
    changed = [line for line in config.read_text().splitlines() if line not in before]
    assert len(changed) == 1
    assert changed[0].startswith('language = "en"')
    assert len(config.read_text().splitlines()) == len(before)


@pytest.mark.parametrize("user", [None, "root"], ids=["user unit", "system unit"])
@pytest.mark.skipif(which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path, user: str | None) -> None:
    folder = tmp_path / 'a 100% "new" $HOME'
    folder.mkdir()
    unit = tmp_path / "chatglm-bot.service"
    unit.write_text(systemd_unit(folder, folder / "secrets", sys.executable, user))
    ran = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--user" if user is None else "--system",
            "--man=no",
            "--recursive-errors=no",
            str(unit),
        ],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "chatglm-bot.service" not in ran.stderr


def test_a_unit_without_secrets_names_no_folder_that_is_missing(tmp_path: Path) -> None:
    assert "BOT_SECRETS_DIR" not in systemd_unit(tmp_path, None, sys.executable, None)


def test_the_compose_file_reaches_a_server_on_loopback(tmp_path: Path) -> None:
    def parsed(url: str) -> dict[str, object]:
        service: dict[str, object] = yaml.safe_load(compose_file(tmp_path, tmp_path / "se$crets", None, url))[
            "services"
        ]["bot"]
        return service

    assert parsed("http://localhost:11434/v1")["network_mode"] == "host"
    service = parsed("http://gpu1:8000/v1")
    assert "network_mode" not in service
    assert {"type": "bind", "source": f"{tmp_path}/se$$crets", "target": "/run/secrets", "read_only": True} in service[
        "volumes"
    ]  # type: ignore[operator]  # a list
    assert "BOT_SECRETS_DIR" not in str(service)
