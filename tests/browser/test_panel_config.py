"""config.toml in the panel, in a browser."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.adapters.panel_config import Configured, configured
from tests.adapters.test_panel import HOSTILE
from tests.browser.conftest import CHROMIUM, chromium
from tests.browser.test_page import assert_accessible

TEXT = f'[engine]\nmodel = "first"  # ours\n\n[limits]\n\n[personas.cat]\nsystem_prompt = "{HOSTILE}"\n'


@pytest.fixture
async def bot(tmp_path: Path) -> AsyncIterator[Configured]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    async with configured(tmp_path, TEXT) as bot:
        yield bot


async def choose(page: Page, table: str) -> None:
    await page.get_by_label("Table").select_option(label=table)
    await expect(page.locator("#config-fields")).to_contain_text("requests_per_minute" if table == "limits" else "port")


async def test_a_setting_is_changed_by_keyboard_checked_while_typed_and_saved(bot: Configured) -> None:
    async with chromium(bot.served.url) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await choose(page, "limits")
        field = page.get_by_label("requests_per_minute", exact=True)
        await expect(field).to_have_attribute("placeholder", "20")
        await field.focus()
        await page.keyboard.type("many")
        await expect(page.locator("#config-mistakes")).to_contain_text("'many' is not an integer")
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_be_focused()
        save = page.get_by_role("button", name="Save")
        await expect(save).to_be_disabled()
        await assert_accessible(page)
        await page.keyboard.press("Control+A")
        await page.keyboard.type("9")
        await expect(page.locator("#config-effect")).to_have_text("Takes effect at once: limits.requests_per_minute")
        await expect(field).to_be_focused()
        await expect(save).to_be_enabled()
        await save.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_contain_text("Saved.")
        await expect(save).to_be_disabled()
        assert "\nrequests_per_minute = 9  " in bot.text()
        assert "# ours" in bot.text()


async def test_what_was_set_while_the_connection_was_lost_is_sent_later(bot: Configured) -> None:
    async with chromium(bot.served.url, failures=("net::",)) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await choose(page, "limits")
        await page.route("**/admin/config", lambda route: route.abort())
        await page.get_by_label("requests_per_minute", exact=True).fill("9")
        await expect(page.locator("#config-said")).not_to_be_empty()
        await page.unroute("**/admin/config")
        await page.get_by_label("max_message_chars", exact=True).fill("5000")
        await expect(page.locator("#config-effect")).to_have_text(
            "Takes effect at once: limits.requests_per_minute, limits.max_message_chars"
        )
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("status")).to_contain_text("Saved.")
        assert "\nrequests_per_minute = 9  " in bot.text()


async def test_the_text_is_checked_while_typed_and_a_refusal_keeps_what_was_written(bot: Configured) -> None:
    async with chromium(bot.served.url, is_phone=True, failures=("409",)) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await page.get_by_role("button", name="As text").click()
        text = page.get_by_label("Content of config.toml")
        await expect(text).to_have_value(TEXT)
        await text.fill("[enginee]\n")
        await expect(page.locator("#config-mistakes")).to_contain_text("did you mean engine?")
        await text.fill('[engine]\nmodel = "missing"\n')
        await page.get_by_role("button", name="Save").click()
        await expect(page.locator("#config-said")).to_have_text('engine.model = "missing": no such folder')
        await expect(text).to_have_value('[engine]\nmodel = "missing"\n')
        assert bot.text() == TEXT
        await assert_accessible(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.get_by_role("button", name="Discard changes").click()
        await expect(text).to_have_value(TEXT)


async def test_a_file_that_was_changed_elsewhere_is_shown_unless_it_was_changed_here_too(bot: Configured) -> None:
    async with chromium(bot.served.url) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await page.get_by_role("button", name="As text").click()
        text = page.get_by_label("Content of config.toml")
        await expect(text).to_have_value(TEXT)
        bot.path.write_text("# elsewhere\n", encoding="utf-8")
        await expect(text).to_have_value("# elsewhere\n")
        await text.fill("# here\n")
        bot.path.write_text("# again\n", encoding="utf-8")
        await expect(page.locator("#config-said")).to_contain_text("changed meanwhile")
        await expect(text).to_have_value("# here\n")


@pytest.mark.parametrize("is_phone", [False, True])
async def test_hostile_values_are_text_in_chinese_too(bot: Configured, is_phone: bool) -> None:
    bot.path.chmod(0o444)
    async with chromium(bot.served.url, locale="zh-CN", is_phone=is_phone) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await page.get_by_label("表", exact=True).select_option(label="personas.cat")
        await expect(page.locator("#config-fields textarea")).to_have_value(HOSTILE)
        await expect(page.locator("#config-fixed")).to_contain_text("这里不能保存")
        await expect(page.get_by_role("button", name="保存")).to_be_disabled()
        assert await page.evaluate("window.hit") is None
        await assert_accessible(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
