"""The operator's panel in a browser."""

import io
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from bot.domain import Author, ChannelKey, Scope
from bot.observability.logging import LineHandler
from tests.adapters.test_panel import HOSTILE, Platform, Served, panel_of
from tests.browser.conftest import CHROMIUM, chromium
from tests.browser.test_page import assert_accessible
from tests.harness.fakes import ScriptedEngine
from tests.harness.messages import a_message


@pytest.fixture
async def served(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[Served]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    async with panel_of(tmp_path, engine) as served:
        served.components.adapters = {"discord": Platform(), HOSTILE: Platform(HOSTILE)}
        here = ChannelKey("discord", "5", "7")
        await served.harness.ask(a_message("hello", channel=here, is_direct=False))
        choices = served.harness.intake.choices
        for value in ("0.5", "0.9"):
            await choices.set(Scope("thread", str(here)), "temperature", Author("discord", "1", HOSTILE), value)
        yield served


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    # Without the handler of an earlier test, which has that test's lines.
    monkeypatch.setattr(logging.getLogger(), "handlers", [LineHandler(io.StringIO())])
    logger = logging.getLogger("panel")
    logger.error("the first line %s", HOSTILE)
    logger.warning("the second line")
    return logger


async def test_pause_and_resume_by_keyboard(served: Served) -> None:
    async with chromium(served.url) as context:
        page = await context.new_page()
        await page.goto("/admin")
        pause = page.get_by_role("button", name="Pause")
        await expect(pause).to_be_enabled()  # once the page knows the state; a disabled button takes no focus
        await pause.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#state")).to_have_text("Paused: new questions are refused.")
        assert served.harness.access.is_paused
        resume = page.get_by_role("button", name="Resume")
        await expect(resume).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("#state")).to_have_text("Accepting questions")
        assert not served.harness.access.is_paused


async def test_a_state_that_changes_is_shown_without_a_reload_and_hostile_names_are_text(served: Served) -> None:
    async with chromium(served.url) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await expect(page.get_by_role("row", name="discord connected")).to_be_visible()
        served.components.adapters = {"discord": Platform("the token was rejected"), HOSTILE: Platform(HOSTILE)}
        await expect(page.get_by_role("row", name="discord Not served: the token was rejected")).to_be_visible()
        await expect(page.locator("#platforms").get_by_role("row", name=HOSTILE)).to_be_visible()
        assert await page.evaluate("window.hit") is None


async def test_a_change_is_undone_by_keyboard(served: Served) -> None:
    async with chromium(served.url) as context:
        page = await context.new_page()
        await page.goto("/admin")
        row = page.locator("#channels").get_by_role("row", name="discord:5:7 temperature")
        await expect(row).to_contain_text(f"0.9{HOSTILE}")
        undo = row.get_by_role("button", name="Undo the last change in discord:5:7")
        await undo.focus()
        await page.keyboard.press("Enter")
        await expect(row).to_contain_text("0.5operator")
        await expect(undo).to_be_focused()
        await expect(page.get_by_role("status")).to_contain_text("From the next message on")


async def test_changes_are_filtered_and_stay_so_when_others_come(served: Served) -> None:
    async with chromium(served.url) as context:
        page = await context.new_page()
        await page.goto("/admin")
        rows = page.locator("#audit tbody tr:visible")
        await expect(rows).to_have_count(2)
        await page.get_by_label("Only those with").focus()
        await page.keyboard.type("TEMPERATURE 0.9")
        await expect(rows).to_have_count(1)
        await served.harness.intake.choices.set(
            Scope("thread", "discord:5:7"), "top_p", Author("discord", "1", HOSTILE), "0.9"
        )
        await expect(page.locator("#audit tbody tr")).to_have_count(3)
        await expect(rows).to_have_count(1)
        await page.get_by_label("Only those with").fill("nothing has this")
        await expect(page.get_by_text("No change has these words.")).to_be_visible()
        assert await page.evaluate("window.hit") is None


async def test_the_log_is_filtered_by_level_and_grows_at_the_top(served: Served, logger: logging.Logger) -> None:
    async with chromium(served.url) as context:
        page = await context.new_page()
        await page.goto("/admin")
        lines = page.locator("#log li:visible span")
        await expect(lines).to_have_text(["the second line", f"the first line {HOSTILE}"])
        await page.get_by_label("Lines of level").select_option("error and above")
        await expect(lines).to_have_text([f"the first line {HOSTILE}"])
        logger.error("the third line")
        logger.warning("the fourth line")
        await expect(lines).to_have_text(["the third line", f"the first line {HOSTILE}"])
        await page.get_by_label("Lines of level").select_option("all")
        await expect(lines).to_have_count(4)


@pytest.mark.usefixtures("logger")
@pytest.mark.parametrize("is_phone", [False, True])
async def test_it_has_no_violation_of_axe_and_no_scrollbar_on_a_phone(served: Served, is_phone: bool) -> None:
    async with chromium(served.url, is_phone=is_phone) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await expect(page.get_by_role("row", name="discord connected")).to_be_visible()
        await expect(page.get_by_role("button", name="Pause")).to_be_enabled()
        await expect(page.get_by_role("img", name="Tokens by day")).to_be_visible()
        await assert_accessible(page)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_it_is_in_chinese_and_dark(served: Served) -> None:
    async with chromium(served.url, locale="zh-CN", dark=True) as context:
        page = await context.new_page()
        await page.goto("/admin")
        await expect(page.get_by_role("button", name="暂停")).to_be_enabled()
        await expect(page.get_by_role("heading", name="运维面板")).to_be_visible()
        await assert_accessible(page)
