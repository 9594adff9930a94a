"""Backups in the panel, in a browser."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.adapters.test_panel import HOSTILE, Served, panel_of
from tests.browser.conftest import CHROMIUM, chromium
from tests.browser.test_page import assert_accessible
from tests.harness.fakes import ScriptedEngine


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    async with panel_of(tmp_path, ScriptedEngine()) as served:
        yield served


@pytest.mark.parametrize(("locale", "is_phone"), [("en-US", False), ("zh-CN", True)])
async def test_a_backup_is_made_by_keyboard_and_downloaded(
    served: Served, tmp_path: Path, locale: str, is_phone: bool
) -> None:
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / (HOSTILE.replace("/", "|") + ".db")).write_bytes(b"x")
    async with chromium(served.url, locale=locale, is_phone=is_phone) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await expect(
            page.locator("#backup")
        ).to_be_visible()  # once the page has its first event; before, it takes no focus
        await page.locator("#backup").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#backup")).to_be_focused()
        await expect(page.get_by_role("status")).to_contain_text("MB")
        links = page.locator("#backups").get_by_role("link")
        await expect(links).to_have_count(3)
        async with page.expect_download() as download:
            await links.first.press("Enter")
        assert (await (await download.value).path()).read_bytes().startswith(b"SQLite format 3\0")
        assert await page.evaluate("window.hit") is None
        await assert_accessible(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
