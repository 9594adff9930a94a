"""A real browser, Debian's Chromium, before a real server with scripted answers."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, ConsoleMessage, async_playwright, expect

from bot.config.schema import FeedbackSection
from tests.adapters.test_web import served, served_on
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import NO_LIMITS, make_harness

# Milliseconds; only a page that hangs takes as long, on any machine.
_HANGS = 300_000
expect.set_options(timeout=_HANGS)

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

ANSWER = """It is **天气**: see [the page](https://example.org).

| day | weather |
|---|---|
| today | sun |

```python
print("a long line of code that is wider than a phone and must be scrolled, not cut off")
```
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@asynccontextmanager
async def chromium(
    url: str,
    *,
    locale: str = "en-US",
    is_phone: bool = False,
    dark: bool = False,
    failures: tuple[str, ...] = (),
    bypass_csp: bool = False,
) -> AsyncIterator[BrowserContext]:
    """Open a browser with a fresh profile; its pages must log no error but `failures`, and ask no other server."""
    troubles: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and not any(failure in message.text for failure in failures):
            troubles.append(message.text)

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = await browser.new_context(
            base_url=url,
            locale=locale,
            viewport={"width": 390, "height": 780} if is_phone else {"width": 1200, "height": 760},
            has_touch=is_phone,
            color_scheme="dark" if dark else "light",
            bypass_csp=bypass_csp,
        )
        context.set_default_timeout(_HANGS)
        context.on("request", lambda request: troubles.append(request.url) if not request.url.startswith(url) else None)
        context.on("console", note)
        context.on("weberror", lambda error: troubles.append(str(error.error)))
        try:
            yield context
        finally:
            await browser.close()
    assert troubles == []


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(default=[ANSWER[:30], ANSWER[30:]])


@pytest.fixture
async def url(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[str]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    async with served(tmp_path, engine) as url:
        yield url


@pytest.fixture
async def voted_url(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[str]:
    """Yield the address of a page where votes are asked for."""
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    async with engine, make_harness(tmp_path, engine, limits=NO_LIMITS) as harness:
        harness.settings.feedback = FeedbackSection(enabled=True)
        async with served_on(tmp_path, harness) as url:
            yield url
