"""The form of a channel's settings in the panel, in a browser."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Route, expect

from bot.domain import Author, Scope
from tests.adapters.test_panel import HOSTILE as WITH_SPACES
from tests.adapters.test_panel import Served, panel_of
from tests.browser.conftest import CHROMIUM, chromium
from tests.browser.test_page import assert_accessible
from tests.harness.fakes import ScriptedEngine

# Ids have no spaces.
HOSTILE = WITH_SPACES.replace(" ", "")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    async with panel_of(tmp_path, ScriptedEngine()) as served:
        choices = served.harness.intake.choices
        await choices.set(Scope("channel", f"discord:{HOSTILE}"), "temperature", Author("discord", "1", HOSTILE), "0.5")
        yield served


@pytest.mark.parametrize(("locale", "is_phone"), [("en-US", False), ("zh-CN", True)])
async def test_settings_of_any_channel_are_changed_by_keyboard(served: Served, locale: str, is_phone: bool) -> None:
    async with chromium(served.url, locale=locale, is_phone=is_phone) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await page.locator("#place").focus()
        await page.keyboard.type("discord:77")
        await page.keyboard.press("Enter")
        await expect(page.locator("#place-heading")).to_contain_text("discord:77")
        await page.locator("#place-temperature").fill("0.25")
        await page.keyboard.press("Tab")
        await expect(page.locator("#place-said")).to_contain_text("0.25")
        await assert_accessible(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.keyboard.press("Escape")
        await expect(page.locator("#place-open")).to_be_focused()
        await expect(page.locator("#channels").get_by_role("row", name="discord:77 temperature 0.25")).to_be_visible()
        await page.locator("#channels .place").last.press("Enter")
        await expect(page.locator("#place-heading")).to_contain_text(HOSTILE)
        assert await page.evaluate("window.hit") is None


async def test_the_answer_to_a_change_leaves_the_field_that_is_written_in(served: Served) -> None:
    go_on = asyncio.Event()

    async def delay(route: Route) -> None:
        if "0.25" in (route.request.post_data or ""):
            await go_on.wait()
        await route.continue_()

    async with chromium(served.url) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await page.locator("#place").fill("discord:77")
        await page.keyboard.press("Enter")
        await page.route("**/admin/place", delay)
        await page.locator("#place-temperature").fill("0.25")
        await page.locator("#place-triggers").fill("glm")
        go_on.set()
        await expect(page.locator("#place-said")).to_contain_text("0.25")
        await expect(page.locator("#place-triggers")).to_be_focused()
        await expect(page.locator("#place-triggers")).to_have_value("glm")
        await page.keyboard.press("Tab")
        await expect(page.locator("#place-said")).to_contain_text("glm")
        order = await page.locator("#place-fields [data-setting]").evaluate_all("all => all.map(each => each.id)")
        await page.reload()
        await page.locator("#place").fill("discord:77")
        await page.keyboard.press("Enter")
        await expect(page.locator("#place-temperature")).to_have_value("0.25")
        await expect(page.locator("#place-triggers")).to_have_attribute("placeholder", "a text of 3 characters")
        again = await page.locator("#place-fields [data-setting]").evaluate_all("all => all.map(each => each.id)")
        assert order == again
