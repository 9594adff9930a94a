"""Hostile texts in a browser; `python -m tests.browser.hostile` shows more of them."""

from pathlib import Path

import pytest

from tests.browser.conftest import CHROMIUM, chromium
from tests.browser.hostile import COUNTER, Found, attack, made


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt install chromium")
async def test_no_text_becomes_a_script_an_element_or_a_request(tmp_path: Path) -> None:
    found = await attack(tmp_path, made(100, 1))
    assert sum(found.shown.values()) >= 100
    assert found.made == []
    assert found.ran == 0


async def test_a_script_and_an_element_that_a_text_became_are_counted(url: str) -> None:
    async with chromium(url, bypass_csp=True) as context:
        await context.add_init_script(COUNTER)
        page = await context.new_page()
        await page.goto("/")
        await page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=/web/icon.svg onload=hit()>')")
        await page.wait_for_function("window.hits === 1")
        found = Found()
        await found.look(page)
        assert (found.ran, found.made) == (1, ['<img src="/web/icon.svg" onload="hit()">'])
