"""`bot setup` over HTTP: its link, its checks, and what it writes; the browser's side is in tests/browser."""

import json
import os
import re
import signal
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.chaos.processes import environment as loopback_environment
from tests.chaos.processes import until
from tests.cli.test_init import TELEGRAM, mode
from tests.cli.test_main import bot, environment
from tests.harness.ports import reserved_port
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import TOKEN
from tests.harness.servers.model_server import MODEL, ModelServer
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.slack_wire import APP_TOKEN, BOT_TOKEN
from tests.harness.warm_start import WarmProcess, start

DEMO = {"way": "demo"}


@dataclass
class SetupProcess:
    """A running `bot setup`, and its first browser."""

    process: WarmProcess
    output: Path
    link: str
    http: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.link.partition("/?")[0]

    @property
    def shown(self) -> str:
        return self.output.read_text(encoding="utf-8")

    async def enter(self, status: int = 204, **headers: str) -> str:
        token = self.link.partition("?link=")[2]
        return str(await self.post("enter", status, headers, link=token))

    async def post(self, path: str, status: int = 200, headers: Mapping[str, str] | None = None, **body: Any) -> Any:
        given = {"Origin": self.url, **(headers or {})}
        async with self.http.post(f"/setup/{path}", json=body, headers=given) as response:
            assert response.status == status, await response.text()
            return await response.json() if response.content_type == "application/json" else await response.text()

    async def check(self, platform: str, **tokens: str) -> Any:
        return await self.post("tokens", platform=platform, tokens=tokens)


@asynccontextmanager
async def setup_process(
    folder: Path, options: tuple[str, ...] = ("--no-browser",), /, **changes: str
) -> AsyncIterator[SetupProcess]:
    output, errors = folder.with_name("setup.out"), folder.with_name("setup.err")
    for file in (output, errors):
        file.write_bytes(b"")
    env = environment(LANG="C.UTF-8", LC_ALL="", **changes)
    process = start(("setup", *options), folder=folder, env=env, stdout=output, stderr=errors, login_pause=0.1)
    try:
        await until(lambda: "quits.\n" in output.read_text() or process.returncode is not None)
        found = re.search(r"http://\S+", output.read_text())
        assert found is not None, errors.read_text()
        jar = aiohttp.CookieJar(unsafe=True)  # cookies of IP addresses
        async with aiohttp.ClientSession(found[0].partition("/?")[0], cookie_jar=jar) as http:
            yield SetupProcess(process, output, found[0], http)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "bot"
    inner.mkdir()
    return inner


@pytest.fixture
async def discord(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """Return the variables that lead the bot to a loopback Discord."""
    async with DiscordPlatform() as platform:
        platform.channel("general")
        yield loopback_urls(platform, tmp_path)


def loopback_urls(platform: DiscordPlatform, folder: Path) -> dict[str, str]:
    given = loopback_environment({"discord": platform}, folder)
    return {name: given[name] for name in ("BOT_DISCORD__API_URL", "BOT_DISCORD__GATEWAY_URL")}


async def test_the_link_opens_the_page_once(folder: Path) -> None:
    async with setup_process(folder) as setup:
        wrong = setup.link[:-1] + ("A" if setup.link[-1] != "A" else "B")
        for path in ("/", "/?link=", wrong.removeprefix(setup.url), "/?link=%F0%9F%90%B1"):
            async with setup.http.get(path) as response:
                assert response.status == 403
                assert "used already" in await response.text()
        await setup.post("enter", 403, link="guess")
        await setup.post("enter", 403, link=["guess"])
        await setup.post("local", 403)
        for _ in range(2):  # a preview of the link uses nothing up
            async with setup.http.get(setup.link.removeprefix(setup.url)) as response:
                assert response.status == 200
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "script-src 'self'" in policy
                assert response.headers["Cache-Control"] == "no-store"
        await setup.enter()
        async with setup.http.get("/") as response:
            assert response.status == 200
        await setup.enter(403)
        async with (
            aiohttp.ClientSession() as other,
            other.get(setup.link) as replayed,
        ):
            assert replayed.status == 403
        async with (
            aiohttp.ClientSession(cookies={"setup_session": "guess"}) as other,
            other.post(f"{setup.url}/setup/write", json={"model": DEMO}, headers={"Origin": setup.url}) as forged,
        ):
            assert forged.status == 403
        for header, value in (
            ("Host", "evil.example"),
            ("Origin", "http://evil.example"),
            ("X-Forwarded-For", "1.1.1.1"),
        ):
            await setup.post("write", 403, {header: value}, model=DEMO)
    assert list(folder.iterdir()) == []


async def test_a_token_is_checked_and_never_returned(folder: Path, discord: dict[str, str]) -> None:
    async with setup_process(folder, **discord) as setup:
        await setup.enter()
        refused = await setup.check("discord", token="not-the-token-of-a-bot")
        assert refused["verdict"] == "refused"
        assert "not-the-token-of-a-bot" not in str(refused)
        assert refused["lines"][-1]["text"].startswith("Discord does not accept this token:")
        answers: dict[str, Any] = {"platforms": {"discord": {"token": "not-the-token-of-a-bot"}}, "model": DEMO}
        assert "not accepted" in await setup.post("write", 409, **answers)
        accepted = await setup.check("discord", token=f" {TOKEN}\n")
        assert accepted["verdict"] == "accepted"
        assert accepted["lines"][0]["text"].startswith("the token is valid; the bot is ")
        assert re.fullmatch(
            r"https://discord\.com/oauth2/authorize\?client_id=\d+&\S*permissions=\d+", accepted["link"]
        )
        assert "bot+applications.commands" in accepted["link"]
        assert TOKEN not in str(accepted)
        assert "not checked yet" in await setup.post("write", 409, **answers)
        assert "enter its token" in await setup.post("write", 409, platforms={"discord": {}}, model=DEMO)
        assert list(folder.iterdir()) == []
        answers["platforms"] = {"discord": {"token": TOKEN}}
        planned = await setup.post("files", **answers, language="zh")
        assert [Path(file["path"]).name for file in planned["files"]] == ["config.toml", "discord__token"]
        assert planned["missing"] == []
        assert 'language = "zh"' in planned["config"]
        assert TOKEN not in str(planned)
        assert list(folder.iterdir()) == []
        await setup.post("end", 409, starts=True)
        written = await setup.post("write", **answers, language="zh")
        assert TOKEN not in str(written)
        assert written["chat"] == ""
        assert "written already" in await setup.post("write", 409, **answers)
        await setup.post("end", 204, starts=False)
        assert await setup.process.wait() == 0
        assert "Written:" in setup.shown
        assert " run" in setup.shown
        assert TOKEN not in setup.shown
    config, secret = folder / "config.toml", folder / "secrets" / "discord__token"
    assert secret.read_text() == f"{TOKEN}\n"
    assert (mode(secret), mode(secret.parent), mode(config)) == (0o600, 0o700, 0o644)
    assert TOKEN not in config.read_text()
    assert stat.S_ISREG(config.stat().st_mode)


async def test_a_platform_that_cannot_be_reached_keeps_its_token_if_wanted(folder: Path) -> None:
    with reserved_port() as port:
        async with setup_process(folder, BOT_TELEGRAM__API_URL=f"http://127.0.0.1:{port}") as setup:
            await setup.enter()
            malformed = await setup.check("telegram", token="no token")
            assert malformed["verdict"] == "refused"
            chinese = await setup.post(
                "tokens", 200, {"Accept-Language": "zh-CN"}, platform="telegram", tokens={"token": "no token"}
            )
            assert chinese["lines"][0]["text"].startswith("这不是 Telegram 令牌")
            assert malformed["lines"][0]["text"].startswith("not a Telegram token")
            assert (await setup.check("telegram", token=TELEGRAM))["verdict"] == "unreachable"
            answers: dict[str, Any] = {"platforms": {"telegram": {"token": TELEGRAM}}, "model": DEMO}
            assert "could not be reached" in await setup.post("write", 409, **answers)
            await setup.post("write", unchecked=["telegram"], **answers)
    assert (folder / "secrets" / "telegram__token").read_text() == f"{TELEGRAM}\n"


async def test_models_are_checked_before_they_are_written(folder: Path) -> None:
    async with ModelServer() as server, setup_process(folder, BOT_ENGINE__BACKEND="") as setup:
        await setup.enter()
        found = await setup.post("local")
        assert any("ChatGLM-6B with quantization = int4: " in line for line in found["fits"])
        if any(": fits, " in line for line in found["fits"]):
            assert "not known before a benchmark" in found["fits"][-1]
        absent = await setup.post("model", way="folder", name="/absent", quantization="auto")
        assert absent["verdict"] == "refused"
        not_named = await setup.post("model", way="hub", name="a model", quantization="auto")
        assert not_named["verdict"] == "refused"
        served = await setup.post("model", way="server", url=server.url)
        assert (served["verdict"], served["models"]) == ("refused", [MODEL])
        model: dict[str, Any] = {"way": "server", "url": server.url, "name": MODEL, "key": "a-key-of-the-server"}
        assert "Model: " in await setup.post("write", 409, model={**model, "name": "another"})
        assert (await setup.post("model", **model))["verdict"] == "accepted"
        written = await setup.post("write", model=model)
        assert written["chat"] == "http://127.0.0.1:8000/"
        assert len(written["commands"]) == 2
    config = (folder / "config.toml").read_text()
    assert f'model = "{MODEL}"' in config
    assert f'urls = ["{model["url"]}"]' in config
    assert "a-key-of-the-server" not in config
    assert mode(folder / "secrets" / "engine__key") == 0o600


async def test_both_tokens_of_slack_are_checked(folder: Path) -> None:
    async with SlackServer() as slack:
        api = {name: value for name, value in loopback_environment({"slack": slack}, folder).items() if "URL" in name}
        async with setup_process(folder, **api) as setup:
            await setup.enter()
            tokens = {"bot_token": BOT_TOKEN, "app_token": APP_TOKEN}
            swapped = await setup.check("slack", bot_token=APP_TOKEN, app_token=BOT_TOKEN)
            assert swapped["verdict"] == "refused"
            assert APP_TOKEN not in str(swapped)
            for wrong in tokens:
                refused = await setup.check("slack", **{**tokens, wrong: f"{tokens[wrong]}-wrong"})
                name = wrong.replace("_", " ")
                assert refused["lines"][-1]["text"].startswith(f"Slack does not accept the {name}:"), refused
            await setup.post("tokens", 400, platform="slack", tokens={"bot_token": BOT_TOKEN})
            checked = await setup.check("slack", **tokens)
            assert checked["verdict"] == "accepted", checked
            await setup.post("write", platforms={"slack": tokens}, model=DEMO)
    assert {path.name for path in (folder / "secrets").iterdir()} == {"slack__bot_token", "slack__app_token"}


async def test_variables_that_outrank_the_files_are_named(folder: Path) -> None:
    async with setup_process(folder, BOT_ENGINE__MODEL="/other", BOT_CONVERSATION__LANGUAGE="zh") as setup:
        await setup.enter()
        planned = await setup.post("files", model=DEMO, language="zh")
        assert [note.split()[0] for note in planned["notes"]] == ["BOT_ENGINE__BACKEND", "BOT_ENGINE__MODEL"]


async def test_a_platform_of_an_earlier_run_is_named(folder: Path) -> None:
    (folder / "secrets").mkdir()
    token = folder / "secrets" / "telegram__token"
    token.write_text(TELEGRAM)
    (folder / "secrets" / "slack__bot_token").write_text("xoxb-1")  # Slack needs two
    async with setup_process(folder, BOT_ENGINE__BACKEND="") as setup:
        await setup.enter()
        planned = await setup.post("files", model=DEMO)
        assert planned["notes"] == [f"Telegram will run too, because its token is there: {token}"]
        assert (await setup.post("files", model=DEMO, platforms={"telegram": {"token": TELEGRAM}}))["notes"] == []


def test_a_port_in_use_and_a_file_in_place_of_the_folder_are_one_sentence(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ran = bot(folder, "setup", "--no-browser", "--port", str(listener.getsockname()[1]))
    assert (ran.returncode, "cannot be used; choose another --port" in ran.stderr) == (1, True), ran.stderr
    (folder / "file").touch()
    ran = bot(folder, "setup", "--no-browser", "--folder", "file")
    assert (ran.returncode, "is a file; name a folder" in ran.stderr) == (2, True)


async def test_a_browser_opens_the_link_and_does_not_hold_the_command(folder: Path) -> None:
    browser, opened, window = folder.parent / "browser", folder.parent / "opened", folder.parent / "window"
    os.mkfifo(window)
    browser.write_text(f'#!/bin/sh\necho "$1" >{opened}.part\nmv {opened}.part {opened}\nexec cat {window}\n')
    browser.chmod(0o700)
    async with setup_process(folder, (), BROWSER=f"{browser} %s") as setup:
        await until(opened.exists)
        assert opened.read_text().strip() == setup.link
        setup.process.send_signal(signal.SIGINT)
        assert await setup.process.wait() == 130
    window.write_text("closed")  # ends the browser


async def test_without_a_platform_the_chat_in_the_browser_starts(folder: Path) -> None:
    async with setup_process(folder, BOT_SERVER__PORT="0", BOT_LOGS__FORMAT="json") as setup:
        await setup.enter()
        await setup.post("write", model=DEMO)
        await setup.post("end", 204, starts=True)
        log = setup.output.with_name("setup.err")
        await until(lambda: '"section": "server"' in log.read_text() or setup.process.returncode is not None)
        line = next(line for line in log.read_text().splitlines() if '"section": "server"' in line)
        url = f"http://127.0.0.1:{json.loads(line)['port']}/"
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            assert response.status == 200
            assert "/web/chat.js" in await response.text()
        setup.process.send_signal(signal.SIGTERM)
        assert await setup.process.wait() == 0
        assert "Written:" in setup.shown


async def test_settings_are_replaced_only_after_a_confirmation(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text("[engine]\nmax_waiting = 7\n")
    async with setup_process(folder) as setup:
        await setup.enter()
        assert (await setup.post("files", model=DEMO))["replaces"] is True
        assert "has settings" in await setup.post("write", 409, model=DEMO)
        assert config.read_text() == "[engine]\nmax_waiting = 7\n"
        await setup.post("write", model=DEMO, language="en", replaces=True)
    assert "max_waiting = 7" not in config.read_text()
    assert 'language = "en"' in config.read_text()


async def test_ctrl_c_leaves_without_a_file(folder: Path) -> None:
    async with setup_process(folder) as setup:
        await setup.enter()
        await setup.post("files", model=DEMO, language="zh")
        setup.process.send_signal(signal.SIGINT)
        assert await setup.process.wait() == 130
        assert "Nothing was written." in setup.output.with_name("setup.err").read_text()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "body",
    [{"model": {"way": "magic"}}, {"platforms": {"irc": {}}}, {"model": {"name": "x" * 5000}}, {"surprise": 1}],
    ids=["way", "platform", "long", "unknown"],
)
async def test_wrong_values_are_one_sentence(folder: Path, body: dict[str, Any]) -> None:
    async with setup_process(folder) as setup:
        await setup.enter()
        assert (await setup.post("write", 400, **body)).startswith("not an answer of the page: ")
        for path in ("tokens", "model", "files"):
            async with setup.http.post(f"/setup/{path}", data=b"[" * 9000, headers={"Origin": setup.url}) as response:
                assert response.status == 400
    assert list(folder.iterdir()) == []


async def test_a_file_that_cannot_be_written_is_one_sentence(folder: Path) -> None:
    (folder / "secrets").write_text("a file in place of the folder")
    with reserved_port() as port:
        async with setup_process(folder, BOT_TELEGRAM__API_URL=f"http://127.0.0.1:{port}") as setup:
            await setup.enter()
            await setup.check("telegram", token=TELEGRAM)
            answers: dict[str, Any] = {
                "platforms": {"telegram": {"token": TELEGRAM}},
                "model": DEMO,
                "unchecked": ["telegram"],
            }
            assert "cannot be written" in await setup.post("write", 409, **answers)
    assert [path.name for path in folder.iterdir()] == ["secrets"]
