"""`bot setup` in a browser: from the link to the first answer in a loopback Discord."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml  # type: ignore[import-untyped]  # has no types
from playwright.async_api import Page, expect

from bot.adapters.slack.manifest import manifest
from tests.browser.conftest import CHROMIUM, chromium
from tests.browser.test_page import assert_accessible
from tests.chaos.processes import replies, until
from tests.cli.test_init import TELEGRAM
from tests.cli.test_main import bot
from tests.cli.test_setup import SetupProcess, loopback_urls, setup_process
from tests.harness.ports import reserved_port
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import TOKEN
from tests.harness.servers.discord_world import APPLICATION
from tests.harness.servers.model_server import MODEL, ModelServer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt install chromium")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = tmp_path / "bot"
    inner.mkdir()
    return inner


@asynccontextmanager
async def opened(
    setup: SetupProcess, *, locale: str = "en-US", is_phone: bool = False, dark: bool = False
) -> AsyncIterator[Page]:
    """Open the link; the page is ready when it knows this machine."""
    async with chromium(setup.url, locale=locale, is_phone=is_phone, dark=dark) as context:
        page = await context.new_page()
        await page.goto(setup.link)
        await expect(page.locator("#memory")).to_be_visible()
        yield page


async def test_the_page_leads_to_the_first_answer_by_keyboard(folder: Path, tmp_path: Path) -> None:
    async with DiscordPlatform() as platform:
        platform.channel("general")
        urls = loopback_urls(platform, tmp_path)
        more = {"BOT_OPERATIONS__PORT": "0", "BOT_CONVERSATION__CATCH_UP_MINUTES": "10000000"}
        async with setup_process(folder, **urls, **more) as setup:
            async with opened(setup) as page:
                await page.get_by_label("Discord").focus()
                await page.keyboard.press("Space")
                await expect(page.locator("#discord").get_by_label("Token")).to_be_focused()
                await page.keyboard.type("not-the-token-of-a-bot")
                await expect(page.locator("#discord .bad")).not_to_be_empty()
                await expect(page.locator("#missing")).to_contain_text("its token is not accepted")
                await assert_accessible(page)
                await page.keyboard.press("Control+A")
                await page.keyboard.insert_text(TOKEN)
                await expect(page.locator("#discord .good").first).to_contain_text("the token is valid")
                invite = page.get_by_role("link", name="Invite the bot to your server")
                await expect(invite).to_have_attribute("href", re.compile(rf"client_id={APPLICATION}&.*permissions="))
                await expect(page.locator("#missing")).to_be_hidden()
                await page.get_by_label("Language of the bot's own messages?").select_option("en")
                await expect(page.locator("#config")).to_contain_text('language = "en"')
                await expect(page.locator("#files")).to_contain_text("discord__token")
                assert list(folder.iterdir()) == []
                await page.get_by_role("button", name="Write these files").press("Enter")
                await expect(page.get_by_role("heading", name="The files are written")).to_be_focused()
                await expect(page.locator("#commands")).to_contain_text("run")
                await assert_accessible(page)
                await page.get_by_role("button", name="Start the bot now").press("Enter")
                await expect(page.locator("#ended")).to_contain_text("You can close this page")
            await until(lambda: len(platform.identified) > 0)
            await platform.say("hello")
            await platform.until(lambda: bool(replies(platform, "general")))
            setup.process.send_signal(signal.SIGTERM)
            assert await setup.process.wait() == 0
            assert TOKEN not in setup.shown
        checked = await asyncio.to_thread(bot, folder, "check", "--online", **urls, BOT_OPERATIONS__PORT="0")
        assert "the token is valid" in checked.stdout


async def test_a_phone_sets_the_bot_up_in_chinese_without_a_platform(folder: Path) -> None:
    async with setup_process(folder) as setup:
        async with opened(setup, locale="zh-CN", is_phone=True, dark=True) as page:
            await page.get_by_text("这台机器能装下什么").click()
            await assert_accessible(page)
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= 390
            await page.get_by_role("button", name="写入这些文件").click()
            await expect(page.get_by_role("heading", name="文件已写入")).to_be_visible()
            await page.get_by_role("button", name="暂不启动").click()
            await expect(page.locator("#ended")).not_to_be_empty()
        assert await setup.process.wait() == 0
    assert [path.name for path in folder.iterdir()] == ["config.toml"]


async def test_models_are_chosen_and_hostile_names_are_text(folder: Path) -> None:
    hostile = "<img src=x onerror='window.hit = 1'>"
    async with ModelServer() as server, setup_process(folder, BOT_ENGINE__BACKEND="") as setup:
        found = {
            "servers": [{"name": hostile, "url": server.url, "models": [MODEL, hostile]}],
            "cached": [hostile],
            "folders": [hostile],
            "fits": [hostile],
        }
        async with chromium(setup.url) as context:
            page = await context.new_page()
            await page.route("**/setup/local", lambda route: route.fulfill(json=found))
            await page.goto(setup.link)
            await page.get_by_role("radio", name=hostile).first.check()
            names = page.locator("#models .choice:has([name=model]:checked) [data-model=name]")
            await names.select_option(hostile)
            await expect(page.locator("#model-result .bad")).to_have_text("Choose one of its models.")
            await names.select_option(MODEL)
            await expect(page.locator("#model-result .good")).to_contain_text("The server answers")
            await expect(page.locator("#config")).to_contain_text(server.url)
            with reserved_port() as port:
                await page.get_by_role("radio", name="A model server at another").check()
                await page.get_by_label("Address, as in").fill(f"http://127.0.0.1:{port}/v1")
                await expect(page.locator("#model-result .bad")).to_contain_text("could not be reached")
                await page.get_by_role("textbox", name="Model").fill("llama3.2")
                await expect(page.locator("#missing")).to_contain_text("could not be reached")
                await page.get_by_label("Keep it without a check").and_(page.locator("#model-result input")).check()
                await expect(page.locator("#missing")).to_be_hidden()
            await page.get_by_label("Address, as in").fill(server.url)
            await expect(page.locator("#model-result .good")).to_contain_text("The server answers")
            await page.get_by_role("button", name="Write these files").click()
            await expect(page.get_by_role("heading", name="The files are written")).to_be_focused()
            assert await page.evaluate("window.hit") is None
        config = (folder / "config.toml").read_text()
        assert f'model = "{MODEL}"' in config
        assert f'urls = ["{server.url}"]' in config


async def test_what_is_kept_unchecked_or_replaced_needs_a_tick(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text("[engine]\nmax_waiting = 7\n")
    with reserved_port() as port:
        async with (
            setup_process(folder, BOT_TELEGRAM__API_URL=f"http://127.0.0.1:{port}", BOT_ENGINE__BACKEND="") as setup,
            chromium(setup.url, failures=("409",)) as context,
        ):
            page = await context.new_page()
            await page.goto(setup.link)
            telegram, missing = page.locator("#telegram"), page.locator("#missing")
            await page.get_by_role("checkbox", name="Telegram").check()
            await telegram.get_by_label("Token").fill(TELEGRAM)
            await expect(telegram.locator(".bad")).not_to_be_empty()
            async with page.expect_response("**/setup/tokens"):
                await telegram.get_by_role("button", name="Check again").press("Enter")
            await expect(missing).to_contain_text("Telegram could not be reached.")
            await telegram.get_by_label("Keep it without a check").check()
            await expect(missing).to_be_hidden()
            await page.get_by_role("button", name="Write these files").click()
            await expect(page.get_by_role("alert")).to_contain_text("has settings")
            assert config.read_text() == "[engine]\nmax_waiting = 7\n"
            await page.get_by_label("config.toml has settings. Replace them.").check()
            await page.get_by_role("button", name="Write these files").click()
            await expect(page.get_by_role("heading", name="The files are written")).to_be_focused()
    assert "max_waiting = 7" not in config.read_text()
    assert (folder / "secrets" / "telegram__token").read_text() == f"{TELEGRAM}\n"


async def test_slack_gets_its_manifest(folder: Path) -> None:
    async with setup_process(folder) as setup, opened(setup) as page:
        await page.get_by_label("Slack").check()
        await page.get_by_text("Manifest of the app").click()
        await assert_accessible(page)
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.get_by_role("button", name="Copy").click()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert yaml.safe_load(copied) == yaml.safe_load(manifest())
        link = await page.get_by_role("link", name="Create the app from this manifest").get_attribute("href")
        assert parse_qs(urlsplit(link or "").query)["manifest_yaml"] == [manifest()]


async def test_a_used_link_and_the_end_of_the_command_are_said(folder: Path) -> None:
    async with (
        setup_process(folder) as setup,
        chromium(setup.url, failures=("403", "ERR_CONNECTION_REFUSED")) as context,
    ):
        page = await context.new_page()
        await page.goto(setup.link)
        await expect(page.locator("#memory")).to_be_visible()
        assert "link" not in page.url
        await page.reload()
        await expect(page.locator("#memory")).to_be_visible()
        await context.clear_cookies()
        other = await context.new_page()
        await other.goto(setup.link)
        await expect(other.get_by_text("This link was used already")).to_be_visible()
        await assert_accessible(other)
        setup.process.send_signal(signal.SIGINT)
        assert await setup.process.wait() == 130
        await page.get_by_role("button", name="Write these files").click()
        await expect(page.get_by_role("alert")).to_contain_text("bot setup has ended in the terminal")
    assert list(folder.iterdir()) == []
