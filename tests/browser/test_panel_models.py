"""The dialog that changes a model, in a browser."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.adapters.panel_config import Configured, configured
from tests.browser.conftest import CHROMIUM, chromium
from tests.browser.test_page import assert_accessible


@pytest.fixture
async def bot(tmp_path: Path) -> AsyncIterator[Configured]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    async with configured(tmp_path) as bot:
        yield bot


async def test_a_model_is_changed_by_keyboard_and_its_progress_shown(bot: Configured) -> None:
    async with chromium(bot.served.url) as context:
        page = await context.new_page()
        await page.goto("/admin")
        button = page.get_by_role("button", name="Change the model engine")
        await button.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog", name="Change the model engine")).to_be_visible()
        await expect(page.get_by_label("Model: demo")).to_be_focused()
        await page.keyboard.press("Control+A")
        await page.keyboard.type("slow")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await expect(button).to_be_focused()
        await expect(page.get_by_role("status")).to_contain_text("Saved in config.toml")
        await expect(page.get_by_text("Loading the new model: 40 %")).to_be_visible()
        await assert_accessible(page)
        bot.models.go_on.set()
        await expect(page.locator("#models").get_by_role("row", name="engine slow")).to_contain_text("ready")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
async def test_a_refusal_is_shown_in_the_dialog_on_a_phone(bot: Configured, locale: str) -> None:
    async with chromium(bot.served.url, locale=locale, is_phone=True, failures=("409",)) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await page.locator(".change").click()
        await page.locator("#model-name").fill("missing")
        await page.locator("#model-save").click()
        await expect(page.get_by_role("alert")).to_have_text('engine.model = "missing": no such folder')
        await assert_accessible(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        assert "missing" not in bot.text()
