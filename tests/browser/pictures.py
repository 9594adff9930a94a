"""Draw the pictures of docs/WEB.md and docs/FIRST_STEPS.md: `python -m tests.browser.pictures [web|panel|signin|setup ...]`."""

import asyncio
import io
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import chdir
from datetime import timedelta
from pathlib import Path

import structlog
from playwright.async_api import Page, expect

from bot.config.http import ServerSection
from bot.config.schema import LogsSection
from bot.domain import Answer, Author, ChannelKey, Kind, Scope, Usage
from bot.observability.logging import configure_logging
from tests.adapters.panel_config import configured
from tests.adapters.test_panel import Platform as PlatformState
from tests.adapters.test_panel import Served
from tests.adapters.test_web import served
from tests.browser.conftest import chromium
from tests.browser.test_setup import opened
from tests.cli.test_setup import loopback_urls, setup_process
from tests.harness.elsewhere import elsewhere
from tests.harness.fakes import ScriptedEngine
from tests.harness.messages import a_message
from tests.harness.ports import reserved_port
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_gateway import TOKEN

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"

_CONFIG = """[engine]
model = "THUDM/chatglm-6b"
quantization = "int4"

[models.full]
model = "THUDM/chatglm-6b"

[limits]
requests_per_minute = 30              # requests per minute and user; 0 = no limit
"""
_QUESTIONS = {
    "en": ["Plan a weekend in Lisbon", "How do I read a file line by line in Python, and what if it is huge?"],
    "zh": ["帮我写一封请假邮件", "怎样用 Python 逐行读取一个文件？文件很大怎么办？"],
}
_ANSWERS = {
    "en": """A file object **is** an iterator, so a loop reads one line at a time:

```python
with open("words.txt", encoding="utf-8") as file:
    for line in file:
        print(line.rstrip())
```

| way | memory |
|---|---|
| `for line in file` | one line |
| `file.readlines()` | the whole file |

A huge file is no problem for the loop.""",
    "zh": """文件对象**本身就是迭代器**，用循环一次读一行：

```python
with open("words.txt", encoding="utf-8") as file:
    for line in file:
        print(line.rstrip())
```

| 写法 | 内存 |
|---|---|
| `for line in file` | 一行 |
| `file.readlines()` | 整个文件 |

文件再大，循环也没有问题。""",
}


async def draw(name: str, language: str, *, is_phone: bool = False, dark: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = ScriptedEngine("ok", _ANSWERS[language])
        locale = "zh-CN" if language == "zh" else "en-US"
        async with (
            served(Path(folder), engine) as url,
            chromium(url, locale=locale, is_phone=is_phone, dark=dark) as context,
        ):
            page = await context.new_page()
            for number, question in enumerate(_QUESTIONS[language]):
                await page.goto("/")
                await page.locator("#text").fill(question)
                await page.keyboard.press("Enter")
                await expect(page.locator(".reply:not(.open) .answer")).not_to_be_empty()
                await expect(page.locator("#chats li")).to_have_count(number + 1)
            await page.screenshot(path=PICTURES / f"web-{name}.png")


async def draw_setup(name: str, language: str, *, is_phone: bool = False) -> None:
    locale = "zh-CN" if language == "zh" else "en-US"
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "bot")
        folder.mkdir()
        async with DiscordPlatform() as platform:
            platform.channel("general")
            async with (
                setup_process(folder, **loopback_urls(platform, Path(root))) as setup,
                opened(setup, locale=locale, is_phone=is_phone) as page,
            ):
                await page.get_by_label("Discord").check()
                await page.locator("#discord [data-token]").fill(TOKEN)
                await expect(page.locator("#discord .invite")).to_be_visible()
                await page.locator("h1").click()  # no field has the focus
                await page.screenshot(path=PICTURES / f"setup-{name}.png")


async def draw_panel(name: str, language: str, *, is_phone: bool = False, dark: bool = False) -> None:
    locale = "zh-CN" if language == "zh" else "en-US"
    configure_logging(LogsSection(format="json"), stream=io.StringIO())  # the panel shows these lines
    data = Path("data")
    # The page names the folder of the backups.
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        data.mkdir()
        async with (
            configured(data, _CONFIG, mebibytes=12_400) as bot,
            chromium(bot.served.url, locale=locale, is_phone=is_phone, dark=dark) as context,
        ):
            await used_for_a_month(bot.served)
            text = _CONFIG.replace("requests_per_minute = 30 ", "requests_per_minute = 20 ")
            await bot.served.panel.post("config/save", text=text, revision=bot.editor.read().revision)
            log_a_start()
            page = await context.new_page()
            await page.goto("/admin")
            await expect(page.locator("#usage svg")).to_be_visible()
            await page.locator("#backup").click()
            await expect(page.locator("#backups a").first).to_be_visible()
            await expect(page.locator("#log li").first).to_be_visible()
            await page.locator("#config-table").select_option(label="limits")
            await expect(page.locator("#config-fields")).to_contain_text("requests_per_minute")
            await page.evaluate("tell(''), scrollTo(0, 0)")
            if is_phone:
                await page.screenshot(path=PICTURES / f"panel-{name}.png")
            elif language == "zh":
                await draw_parts(page, "-zh")
            else:
                await page.screenshot(path=PICTURES / f"panel-{name}.png", full_page=True)
                await draw_parts(page, "")


async def draw_parts(page: Page, suffix: str) -> None:
    """Draw the parts of the panel that the pages show by themselves."""
    for part in ("usage", "audit", "config", "log"):
        await page.locator(f"[aria-labelledby={part}-heading]").first.screenshot(
            path=PICTURES / f"panel-{part}{suffix}.png"
        )
    for part, button in (("model", ".change"), ("place", ".place")):
        await page.locator(button).first.click()
        dialog = page.locator("dialog[open]")
        await expect(dialog.locator("select").first).to_be_visible()
        await dialog.screenshot(path=PICTURES / f"panel-{part}{suffix}.png")
        await page.keyboard.press("Escape")


async def draw_sign_in(name: str, language: str, *, is_phone: bool = False, dark: bool = False) -> None:
    locale = "zh-CN" if language == "zh" else "en-US"
    with tempfile.TemporaryDirectory() as folder, reserved_port() as port:
        server = ServerSection(public_url=f"http://bot.localhost:{port}", panel=True)
        async with (
            elsewhere(Path(folder), ScriptedEngine(), server, port=port) as place,
            chromium(place.public, locale=locale, is_phone=is_phone, dark=dark) as context,
        ):
            page = await context.new_page()
            if not is_phone:
                await page.set_viewport_size({"width": 640, "height": 400})
            await page.goto(await place.link())
            await expect(page.locator("#enter")).to_be_focused()
            await page.screenshot(path=PICTURES / f"signin-{name}.png")


def log_a_start() -> None:
    """Log what a start and an hour with it leave in the log."""
    logs = {name: structlog.get_logger(f"bot.{name}") for name in ("app", "adapters.supervisor")}
    logs["app"].info("ready", adapters=["discord", "slack", "telegram"], model="THUDM/chatglm-6b", device="cpu")
    logs["adapters.supervisor"].error(
        "platform refused, the others go on", platform="slack", error="the token was rejected (invalid_auth)"
    )
    logs["adapters.supervisor"].warning("telegram: rate limited, the edit waits", seconds=3)


async def used_for_a_month(served: Served) -> None:
    """Fill ledger, settings and platforms with what a bot in use has."""
    served.components.adapters = {
        "discord": PlatformState(),
        "slack": PlatformState("the token was rejected (invalid_auth): set BOT_SLACK__BOT_TOKEN"),
        "telegram": PlatformState(),
    }
    store, today = served.harness.store, served.harness.intake.today()
    for days in range(30):
        channel = ChannelKey("discord", "1099511627776") if days % 3 else ChannelKey("telegram", "-1002147483648")
        question = a_message(channel=channel, is_direct=False)
        exchange = await store.enqueue(question, Kind.CHAT)
        assert exchange is not None
        # A week has its quiet days.
        tokens = 4_000 + 900 * days // (4 if days % 7 in (2, 3) else 1)
        await store.record_answer(
            exchange, Answer("ok", usage=Usage(tokens, tokens // 4)), (today - timedelta(29 - days)).date(), 90 * tokens
        )
    mei = Author("discord", "1", "Mei")
    choices = served.harness.intake.choices
    await choices.set(Scope("channel", "telegram:-1002147483648"), "language", mei, "zh")
    await choices.set(Scope("channel", "discord:1099511627776"), "temperature", mei, "0.5")
    await choices.set(Scope("channel", "discord:1099511627776"), "persona", mei, None, "You are a patient teacher.")


async def main(chosen: list[str]) -> None:
    drawings: dict[str, tuple[Callable[[], Awaitable[None]], ...]] = {
        "panel": (
            lambda: draw_panel("desktop", "en"),
            lambda: draw_panel("parts", "zh"),
            lambda: draw_panel("phone", "zh", is_phone=True, dark=True),
        ),
        "signin": (
            lambda: draw_sign_in("desktop", "en"),
            lambda: draw_sign_in("phone", "zh", is_phone=True, dark=True),
        ),
        "setup": (lambda: draw_setup("desktop", "en"), lambda: draw_setup("phone", "zh", is_phone=True)),
        "web": (lambda: draw("desktop", "en"), lambda: draw("phone", "zh", is_phone=True, dark=True)),
    }
    for name in chosen or drawings:
        for drawing in drawings[name]:
            await drawing()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
