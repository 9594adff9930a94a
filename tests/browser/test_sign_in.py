"""Sign-in from elsewhere in a browser: the link, its button, and the end of a session."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from itsdangerous import TimestampSigner
from playwright.async_api import Page, expect

from bot.adapters.web import page as chat_page
from bot.config.http import ServerSection
from tests.browser.conftest import CHROMIUM, chromium
from tests.browser.test_page import assert_accessible
from tests.harness.elsewhere import Elsewhere, elsewhere
from tests.harness.fakes import ScriptedEngine
from tests.harness.ports import reserved_port

# What a browser writes to its console about the answers 401 and 403 of a server.
REFUSALS = ("the server responded with a status of 40",)


@pytest.fixture
async def place(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Elsewhere]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    with reserved_port() as port:
        # Browsers look names below localhost up by themselves; to the server it is another name than loopback's.
        server = ServerSection(public_url=f"http://bot.localhost:{port}", panel=True)
        async with elsewhere(tmp_path, engine, server, port=port) as place:
            yield place


async def sign_in(page: Page, place: Elsewhere) -> None:
    await page.goto(await place.link())
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="Operator's panel")).to_be_visible()


async def test_a_link_signs_in_by_keyboard_and_the_panel_works(place: Elsewhere) -> None:
    async with chromium(place.public, failures=REFUSALS) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await expect(page.get_by_text("send /signin to the bot")).to_be_visible()
        await page.goto(await place.link())
        await expect(page.get_by_role("button", name="Sign in")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("#state")).to_have_text("Accepting questions")
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#state")).to_have_text("Paused: new questions are refused.")
        assert place.harness.access.is_paused
        await expect(page.locator("header")).to_contain_text("Ada")
        await assert_accessible(page)
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await page.goto("/admin")
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


async def test_a_used_link_is_explained(place: Elsewhere) -> None:
    link = await place.link()
    assert place.links.redeem(link.partition("#")[2]) is not None
    async with chromium(place.public, failures=REFUSALS) as context:
        page = await context.new_page()
        await page.goto(link)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("status")).to_contain_text("it was used already, or is too old")
        await expect(page.get_by_text("send /signin to the bot")).to_be_visible()
        await assert_accessible(page)


@pytest.mark.parametrize("is_phone", [False, True])
async def test_the_page_is_accessible_in_chinese_and_on_a_phone(place: Elsewhere, is_phone: bool) -> None:
    async with chromium(place.public, locale="zh-CN", dark=is_phone, is_phone=is_phone) as context:
        page = await context.new_page()
        await page.goto(await place.link())
        await expect(page.get_by_role("button", name="登录")).to_be_visible()
        await assert_accessible(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.get_by_role("button", name="登录").click()
        await expect(page.get_by_role("button", name="退出登录")).to_be_visible()
        await page.goto("/")
        await expect(page.locator(".person a")).to_have_text("面板")
        await assert_accessible(page)


async def test_a_session_that_ends_in_the_middle_of_an_answer_loses_nothing(
    place: Elsewhere, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_page, "PING_SECONDS", 0.05)
    go_on = asyncio.Event()
    engine.add(["one ", go_on, "two"], "three")
    async with chromium(place.public, failures=REFUSALS) as context:
        page = await context.new_page()
        await sign_in(page, place)
        await page.goto("/")
        await page.get_by_label("Your message").fill("count")
        await page.keyboard.press("Enter")
        await expect(page.locator(".answer")).to_contain_text("one")
        now = TimestampSigner.get_timestamp
        monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: now(signer) + 13 * 3600)
        status = page.get_by_role("status").first
        await expect(status).to_contain_text("Your session has ended. Nothing is lost.")
        await page.get_by_label("Your message").fill("and then?")
        await page.keyboard.press("Enter")
        await assert_accessible(page)
        go_on.set()
        other = await context.new_page()  # where the link of the chat app opens
        await sign_in(other, place)
        await page.bring_to_front()
        await page.evaluate("dispatchEvent(new Event('focus'))")
        await expect(page.locator(".answer")).to_have_text(["one two", "three"])
        await expect(status).to_be_hidden()


async def test_the_offer_leads_back_to_the_conversation(
    place: Elsewhere, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_page, "PING_SECONDS", 0.05)
    engine.add("one", "two")
    async with chromium(place.public, failures=REFUSALS) as context:
        page = await context.new_page()
        await sign_in(page, place)
        await page.goto("/")
        await page.get_by_label("Your message").fill("count")
        await page.keyboard.press("Enter")
        await expect(page.locator(".answer")).to_have_text("one")
        now = TimestampSigner.get_timestamp
        monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: now(signer) + 13 * 3600)
        await expect(page.get_by_role("status").first).to_contain_text("Your session has ended")
        await page.get_by_label("Your message").fill("and then?")
        await page.keyboard.press("Enter")
        await page.keyboard.type("not sent yet")
        await page.get_by_role("link", name="Sign in").click()
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await sign_in(page, place)
        await page.goto("/")
        await expect(page.locator(".answer")).to_have_text(["one", "two"])
        await expect(page.get_by_label("Your message")).to_have_value("not sent yet")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert await page.evaluate("JSON.stringify(sessionStorage)") == "{}"
