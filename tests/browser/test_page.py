"""The chat page in a browser."""

import asyncio
from pathlib import Path

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Locator, Page, Route, expect

from tests.browser.conftest import chromium
from tests.harness.fakes import ScriptedEngine
from tests.reading.hostile_pictures import drawn

HOSTILE = """<script>window.hit = 1</script>

<img src=x onerror="window.hit = 1"> <b onclick="window.hit = 1">bold</b>

[link](javascript:window.hit=1) [data](data:text/html,x) <javascript:window.hit=1> ![pixel](http://evil.example/x.png)

```<script>window.hit = 1</script>
</code></pre><script>window.hit = 1</script>
```
"""


async def ask(page: Page, text: str) -> Locator:
    """Ask by keyboard; return the new exchange."""
    count = await page.locator(".exchange").count()
    await page.get_by_label("Your message").fill(text)
    await page.keyboard.press("Enter")
    exchange = page.locator(".exchange").nth(count)
    await expect(exchange.locator(".bubble")).to_have_text(text)
    return exchange


def answer(exchange: Locator) -> Locator:
    return exchange.locator(".reply:not(.open) .answer")


async def test_an_answer_streams_can_be_stopped_and_is_regenerated(url: str, engine: ScriptedEngine) -> None:
    engine.add(["begun ", asyncio.Event()], "another answer")
    async with chromium(url) as context:
        page = await context.new_page()
        await page.goto("/")
        exchange = await ask(page, "long")
        await expect(exchange.locator(".open .answer")).to_have_text("begun")
        await page.get_by_role("button", name="Stop").click()
        await expect(exchange.locator(".notice")).to_have_text("(stopped)")
        await expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        await exchange.get_by_role("button", name="Regenerate").click()
        await expect(answer(exchange)).to_have_text("another answer")


async def test_an_edited_question_is_answered_again_and_a_reload_loses_nothing(
    url: str, engine: ScriptedEngine
) -> None:
    async with chromium(url) as context:
        page = await context.new_page()
        await page.goto("/")
        exchange = await ask(page, "wrong")
        await expect(answer(exchange)).to_contain_text("天气")
        engine.add("right answer")
        await exchange.get_by_role("button", name="Edit").click()
        await exchange.get_by_role("textbox", name="Edit").fill("right")
        await page.keyboard.press("Enter")
        await expect(answer(exchange)).to_have_text("right answer")
        await page.reload()
        await expect(exchange.locator(".bubble")).to_have_text(["right"])
        await expect(answer(exchange)).to_have_text("right answer")
        second = await context.new_page()
        await second.goto(page.url)
        await expect(answer(second.locator(".exchange"))).to_have_text("right answer")
        await ask(second, "from the second tab")
        await expect(page.locator(".bubble").nth(1)).to_have_text("from the second tab")
        await expect(page.locator(".reply:not(.open) .answer").nth(1)).to_contain_text("天气")


async def test_older_conversations_are_listed_on_request_and_after_a_reload(url: str) -> None:
    async with chromium(url) as context:
        page = await context.new_page()
        await page.goto("/")
        for text in ("an older one", "a newer one"):
            await expect(answer(await ask(page, text))).to_contain_text("天气")
            await page.get_by_role("button", name="New chat").click()
        await page.evaluate("sessionStorage.setItem('listed', 1)")
        await page.reload()
        chats = page.get_by_role("navigation").get_by_role("link")
        await expect(chats).to_have_text(["a newer one"])
        await page.get_by_role("button", name="Show older ones").click()
        await expect(chats).to_have_text(["a newer one", "an older one"])
        await expect(page.get_by_role("button", name="Show older ones")).to_be_hidden()
        await page.reload()
        await expect(chats).to_have_text(["a newer one", "an older one"])


async def test_conversations_are_listed_and_deleted_by_keyboard_alone(url: str) -> None:
    async with chromium(url) as context:
        page = await context.new_page()
        page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        await page.goto("/")
        await ask(page, "first conversation")
        await page.get_by_role("button", name="New chat").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator(".exchange")).to_have_count(0)
        await ask(page, "second conversation")
        await expect(page.locator("#chats a")).to_have_text(["second conversation", "first conversation"])
        await page.get_by_role("link", name="first conversation").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator(".bubble")).to_have_text(["first conversation"])
        await page.keyboard.type("typed without a click")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("in two lines")
        await page.keyboard.press("Enter")
        await expect(page.locator(".bubble").nth(1)).to_have_text("typed without a click\nin two lines")
        await page.get_by_role("button", name="Delete: first conversation").focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#chats a")).to_have_text(["second conversation"])
        await expect(page.locator(".exchange")).to_have_count(0)


async def test_news_from_elsewhere_leaves_the_focus_and_the_selection(url: str) -> None:
    async with chromium(url) as context:
        page = await context.new_page()
        await page.goto("/")
        await expect(answer(await ask(page, "older"))).to_contain_text("天气")
        await page.get_by_role("button", name="New chat").click()
        exchange = await ask(page, "newer")
        await expect(answer(exchange)).to_contain_text("天气")
        await expect(page.locator("#chats a")).to_have_text(["newer", "older"])
        other = await context.new_page()
        await other.goto("/")
        await other.get_by_role("link", name="older").click()
        await expect(other.locator(".bubble")).to_have_text(["older"])
        older = page.get_by_role("button", name="Delete: older")
        await older.focus()
        await ask(other, "moves its conversation to the top")
        await expect(page.locator("#chats a")).to_have_text(["older", "newer"])
        await expect(older).to_be_focused()
        await other.get_by_role("link", name="newer").click()
        await expect(other.locator(".bubble")).to_have_text(["newer"])
        await answer(exchange).select_text()
        selected = await page.evaluate("getSelection().toString()")
        edit = exchange.get_by_role("button", name="Edit")
        await edit.focus()
        await expect(answer(await ask(other, "in the same conversation"))).to_contain_text("天气")
        await expect(page.locator(".reply:not(.open) .answer")).to_have_count(2)
        await expect(edit).to_be_focused()
        assert selected
        assert await page.evaluate("getSelection().toString()") == selected


async def test_a_hostile_answer_runs_nothing_and_asks_nobody(url: str, engine: ScriptedEngine) -> None:
    engine.add(HOSTILE)
    async with chromium(url) as context:
        page = await context.new_page()
        await page.goto("/")
        exchange = await ask(page, HOSTILE.strip())
        await expect(answer(exchange)).to_contain_text("<script>window.hit = 1</script>")
        assert await exchange.locator("script, img, [onerror], [onclick]").count() == 0
        links = await exchange.locator("a").evaluate_all("links => links.map(link => link.href)")
        assert links == ["http://evil.example/x.png"]
        assert await page.evaluate("window.hit") is None


async def test_the_page_has_no_violation_of_axe_and_no_scrollbar_on_a_phone(url: str) -> None:
    async with chromium(url, is_phone=True) as context:
        page = await context.new_page()
        await page.goto("/")
        exchange = await ask(page, "What is the weather like today?")
        await expect(answer(exchange)).to_contain_text("sun")
        await ask(page, "/help")
        await expect(page.locator(".notice").nth(1)).to_contain_text("/clear")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await assert_accessible(page)
        await page.get_by_role("button", name="Show the conversations").click()
        await expect(page.get_by_role("link", name="What is the weather like today?")).to_be_visible()
        await assert_accessible(page)
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("link", name="What is the weather like today?")).to_be_hidden()


async def test_a_chosen_file_goes_with_the_question(url: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    (tmp_path / "菜单.md").write_text("# Menu\n\nsoup 4.50", encoding="utf-8")
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")
    async with chromium(url) as context:
        page = await context.new_page()
        await page.goto("/")
        await page.locator("#chosen").set_input_files([tmp_path / "菜单.md", tmp_path / "cat.png"])
        await expect(page.get_by_role("status")).to_contain_text("cat.png")
        await expect(page.locator("#files li")).to_have_text(["菜单.md✕"])
        await assert_accessible(page)
        exchange = await ask(page, "What is the soup?")
        await expect(answer(exchange)).to_contain_text("天气")
        await expect(exchange.locator(".files")).to_have_text("菜单.md")
        await expect(page.locator("#files li")).to_have_count(0)
        assert "soup 4.50" in engine.requests[-1].messages[-1].content


async def test_chosen_pictures_are_shown_to_a_model_that_sees(url: str, engine: ScriptedEngine, tmp_path: Path) -> None:
    engine.most_pictures = 4
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(drawn("PNG"))
    async with chromium(url) as context:
        page = await context.new_page()
        await page.goto("/")
        await page.locator("#chosen").set_input_files([tmp_path / f"{number}.png" for number in range(2)])
        await expect(page.locator("#files li")).to_have_text(["0.png✕", "1.png✕"])
        exchange = await ask(page, "What is it?")
        await expect(answer(exchange)).to_contain_text("天气")
        await expect(exchange.locator(".files li")).to_have_text(["0.png", "1.png"])
        assert len(engine.requests[-1].messages[-1].pictures) == 2


async def test_a_refused_question_stays_beside_the_draft_and_is_sent_again(
    url: str, engine: ScriptedEngine, tmp_path: Path
) -> None:
    (tmp_path / "menu.md").write_text("soup 4.50", encoding="utf-8")
    is_typed = asyncio.Event()

    async def refuse(route: Route) -> None:
        await is_typed.wait()
        await route.fulfill(status=413, body="This is <b>too long</b>.")

    async with chromium(url, failures=("413",)) as context:
        page = await context.new_page()
        await page.goto("/")
        await page.locator("#chosen").set_input_files(tmp_path / "menu.md")
        await expect(page.locator("#files li")).to_have_count(1)
        await page.route("**/web/ask", refuse)
        exchange = await ask(page, "What is the soup?")
        await page.keyboard.type("another question")
        is_typed.set()
        await expect(exchange.locator(".notice")).to_have_text("This is <b>too long</b>.")
        await expect(page.get_by_label("Your message")).to_have_value("another question")
        await assert_accessible(page)
        await page.reload()
        await expect(exchange.locator(".notice")).to_have_text("This is <b>too long</b>.")
        await page.unroute("**/web/ask")
        await exchange.get_by_role("button", name="Send again").focus()
        await page.keyboard.press("Enter")
        await expect(answer(exchange)).to_contain_text("天气")
        assert "soup 4.50" in engine.requests[-1].messages[-1].content
        await page.route("**/web/ask", refuse)
        await page.get_by_label("Your message").fill("forget it")
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Your message")).to_have_value("forget it")
        await expect(page.locator(".exchange")).to_have_count(1)


async def test_a_reload_keeps_the_draft_and_waiting_questions_beside_large_pictures(
    url: str, engine: ScriptedEngine, tmp_path: Path
) -> None:
    (tmp_path / "menu.md").write_text("soup 4.50", encoding="utf-8")
    picture = {"name": "cat.png", "size": 1, "text": "", "picture": "data:image/jpeg;base64," + "A" * 6_000_000}
    async with chromium(url, failures=("net::",)) as context:
        page = await context.new_page()
        await page.goto("/")
        await page.route("**/web/ask", lambda route: route.abort())
        waiting = await ask(page, "still to be sent")
        await page.evaluate("picture => { files = [picture]; field.value = 'too large to keep'; ask(); }", picture)
        await expect(page.locator(".exchange")).to_have_count(2)
        await page.locator("#chosen").set_input_files(tmp_path / "menu.md")
        await expect(page.locator("#files li")).to_have_count(1)
        await page.get_by_label("Your message").fill("What is the soup?")
        await page.reload()
        await expect(page.get_by_label("Your message")).to_have_value("What is the soup?")
        await expect(page.locator("#files li")).to_have_text(["menu.md✕"])
        await expect(waiting.locator(".bubble")).to_have_text("still to be sent")
        await page.unroute("**/web/ask")
        await expect(answer(waiting)).to_contain_text("天气")
        await page.get_by_label("Your message").press("Enter")
        await expect(answer(page.locator(".exchange").nth(1))).to_contain_text("天气")
        assert "soup 4.50" in engine.requests[-1].messages[-1].content
        await page.reload()
        await expect(page.locator(".exchange")).to_have_count(2)
        await expect(page.get_by_label("Your message")).to_have_value("")


async def test_every_file_that_is_not_attached_is_named(url: str, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")
    for number in range(11):
        (tmp_path / f"{number}.md").write_text(f"number {number}", encoding="utf-8")

    async with chromium(url, failures=("net::",)) as context:
        page = await context.new_page()
        await page.goto("/")
        await page.route("**/web/read*name=0.md", lambda route: route.abort())
        chosen = [tmp_path / name for name in ("cat.png", "0.md", "1.md")]
        await page.locator("#chosen").set_input_files(chosen)
        status = page.get_by_role("status")
        await expect(status).to_contain_text("I cannot see pictures, so I skipped cat.png.")
        await expect(status).to_contain_text("The connection to the bot was lost, so 0.md was not attached.")
        await expect(page.locator("#files li")).to_have_text(["1.md✕"])
        await page.locator("#chosen").set_input_files([tmp_path / f"{number}.md" for number in range(1, 11)])
        await expect(status).to_contain_text("Only 10 files go with a question")
        await expect(page.locator("#files li")).to_have_count(10)


async def test_settings_are_changed_by_keyboard_for_this_conversation_only(url: str, engine: ScriptedEngine) -> None:
    async with chromium(url) as context:
        page = await context.new_page()
        await page.goto("/")
        await page.get_by_role("button", name="Settings").focus()
        await page.keyboard.press("Enter")
        temperature = page.get_by_label("Temperature")
        await expect(temperature).to_have_value("0.95")
        await temperature.focus()
        async with page.expect_response("**/web/settings"):
            await page.keyboard.press("Home")
        await page.get_by_label("Longest answer").fill("32")
        async with page.expect_response("**/web/settings"):
            await page.keyboard.press("Tab")
        await expect(page.locator("output").first).to_have_text("0")
        await assert_accessible(page)
        await page.keyboard.press("Escape")
        await expect(page.locator("dialog")).to_be_hidden()
        await expect(answer(await ask(page, "How warm is it?"))).to_contain_text("天气")
        assert (engine.requests[-1].params.temperature, engine.requests[-1].params.max_tokens) == (0.0, 32)
        await page.get_by_role("button", name="Settings").click()
        await page.get_by_role("button", name="Back to the defaults").click()
        await expect(temperature).to_have_value("0.95")
        await expect(page.get_by_label("Longest answer")).to_have_value("0")
        await page.get_by_role("button", name="Done").click()
        await expect(answer(await ask(page, "And now?"))).to_contain_text("天气")
        assert (engine.requests[-1].params.temperature, engine.requests[-1].params.max_tokens) == (0.95, None)


async def test_ones_own_vote_is_shown_also_after_a_reload(voted_url: str) -> None:
    async with chromium(voted_url) as context:
        page = await context.new_page()
        await page.goto("/")
        await expect(answer(await ask(page, "How warm is it?"))).to_contain_text("天气")
        good, bad = (page.get_by_role("button", name=name) for name in ("Good answer", "Bad answer"))
        await expect(good).to_have_attribute("aria-pressed", "false")
        await good.click()
        await expect(good).to_have_attribute("aria-pressed", "true")
        await page.reload()
        await expect(good).to_have_attribute("aria-pressed", "true")
        await bad.focus()
        await page.keyboard.press("Enter")
        await expect(bad).to_have_attribute("aria-pressed", "true")
        await expect(good).to_have_attribute("aria-pressed", "false")
        await expect(bad).to_be_focused()
        await assert_accessible(page)
        await bad.click()
        await page.reload()
        await expect(bad).to_have_attribute("aria-pressed", "false")


async def test_the_page_is_in_chinese_and_dark(url: str) -> None:
    async with chromium(url, locale="zh-CN", dark=True) as context:
        page = await context.new_page()
        await page.goto("/")
        await page.get_by_label("输入消息").fill("你好")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("button", name="重新生成")).to_be_visible()
        await assert_accessible(page)


async def assert_accessible(page: Page) -> None:
    results = await Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
