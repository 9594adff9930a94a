"""Show hostile texts in the pages and count the scripts that run: `python -m tests.browser.hostile [COUNT] [SEED]`.

The full count is 10,000.  Hypothesis makes the texts.  The browser ignores the Content-Security-Policy
here: what would run but for it is counted too.
"""

import asyncio
import itertools
import logging
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import structlog
import tomlkit
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from playwright.async_api import Page, expect

from bot.adapters.web.session import COOKIE
from bot.config.edit import secret_lines
from bot.config.http import WEB_PLATFORM
from bot.domain import Answer, Attachment, Author, ChannelKey, Kind, Scope
from tests.adapters.panel_config import Configured, configured
from tests.adapters.test_panel import Platform
from tests.adapters.test_web import served_on
from tests.browser.conftest import chromium
from tests.harness.fakes import ScriptedEngine
from tests.harness.harness import NO_LIMITS, Harness, make_harness
from tests.harness.messages import a_message

COUNT = 10_000
# Shown by one load of a page: exchanges of a conversation, changes of either kind in the panel.
_EXCHANGES = 200
_CHANGES = 100
# Answers of a load that are written while the page is open.
_STREAMED = 3

COUNTER = "window.hits = 0; window.hit = () => { window.hits += 1; };"
# Elements and attributes that no text may become.
_MADE = """() => [...document.querySelectorAll("*")].filter((each) =>
  each.matches("iframe, object, embed, base, style, video, audio, math, template, marquee, frame, area")
  || (each.matches("script") && !each.src.startsWith(`${location.origin}/web/`))
  || (each.matches("img") && !each.src.endsWith("/web/icon.svg"))
  || (each.matches("a[href]") && !/^(https?|mailto):$/.test(each.protocol))
  || [...each.attributes].some(({ name }) => name.startsWith("on"))
).map((each) => each.outerHTML.slice(0, 200))"""

_TAGS = (
    *("script", "img", "svg", "iframe", "object", "embed", "video", "details", "body"),
    *("style", "link", "meta", "base", "form", "input", "a", "math", "template", "b"),
)
_HANDLERS = (
    *("onerror", "onload", "onclick", "onfocus"),
    *("ontoggle", "onmouseover", "onanimationstart", "onbegin", "onpointerenter"),
)
_RUNS = ("hit()", "parent.hit()", "top.hit``", "hit&#40;&#41;", "window['hit']()", "eval('hit()')")
_SCHEMES = (
    "javascript:",
    "JaVaScRiPt:",
    "java\tscript:",
    "&#106;avascript:",
    "javascript&colon;",
    "vbscript:",
    "data:text/html,",
)
# Run by themselves where they become elements of a page that is open.
_FIRES = (
    *("<img src=x onerror={}>", "<svg onload={}>", "<details open ontoggle={}>x</details>"),
    *(
        "<input autofocus onfocus={}>",
        "<video><source onerror={}></video>",
        '<iframe srcdoc="<script>parent.{}</script>">',
    ),
)
_MARKDOWN = (
    *("```", "`", "**", "~~", "[", "](", ")", "![x](", "<", ">", "\n", "\n\n", "&lt;", "&", "\\", "> ", "- ", "# "),
    *(
        "| a | b |\n|---|---|\n| ",
        "</code></pre>",
        "</td></tr></table>",
        "</textarea>",
        "</title>",
        "-->",
        "<!--",
        "]]>",
    ),
    *('"', "'", '">', "'>", "${hit()}", "{{hit()}}", "$words", "\u202e", "\u2028", "\x1b[31m"),
)


@dataclass(slots=True)
class Found:
    """What was shown by kind, the scripts that ran, and the elements that texts became."""

    shown: Counter[str] = field(default_factory=Counter)
    ran: int = 0
    made: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = ", ".join(f"{each:,} {kind}" for kind, each in self.shown.items())
        return f"{shown}: {self.ran} scripts ran, {len(self.made)} texts became elements or attributes"

    async def look(self, page: Page) -> None:
        """Count what became of the texts of a page."""
        # Handlers of errors and of loads run in later tasks.
        await page.evaluate("new Promise((done) => setTimeout(() => requestAnimationFrame(done)))")
        self.ran += await page.evaluate("window.hits")
        self.made += await page.evaluate(_MADE)
        print(self, file=sys.stderr)  # noqa: T201


def hostile() -> st.SearchStrategy[str]:
    """Return texts of tags, links, Markdown and anything else, whole and broken."""
    run, quote = st.sampled_from(_RUNS), st.sampled_from(('"', "'", "", "`"))
    space, end = st.sampled_from((" ", "/", "\n", "\t")), st.sampled_from((">", "/>", "", "\n>", " x>"))
    tags = st.sampled_from(_TAGS).flatmap(lambda tag: st.sampled_from((tag, tag.upper(), tag.title())))
    handlers = st.builds(lambda name, by, code: f"{name}={by}{code}{by}", st.sampled_from(_HANDLERS), quote, run)
    links = st.builds(lambda scheme, code: f"{scheme}{code}", st.sampled_from(_SCHEMES), run)
    sources = st.one_of(st.just("src=x"), st.just("autofocus"), st.just("open"), links.map(lambda link: f"href={link}"))
    document = run.map(lambda code: f'srcdoc="<script>parent.{code}</script>"')
    attributes = st.lists(st.one_of(handlers, sources, document), max_size=3)
    opened = st.builds(lambda tag, by, each, stop: f"<{tag}{by}{by.join(each)}{stop}", tags, space, attributes, end)
    element = st.builds(lambda tag, code: f"<{tag}>{code}</{tag}>", tags, run)
    link = st.builds(
        lambda form, url: form.format(url), st.sampled_from(("[x]({})", "<{}>", "[x]: {}\n[x]", "![x]({})")), links
    )
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
    fires = st.builds(lambda form, code: form.format(code), st.sampled_from(_FIRES), run)
    part = st.one_of(fires, opened, element, link, st.sampled_from(_MARKDOWN), text)
    return st.lists(part, min_size=1, max_size=8).map("".join).filter(is_shown)


def is_shown(text: str) -> bool:
    """Return False for a blank text, and for one that the panel refuses as a secret."""
    return bool(text.strip()) and not secret_lines(text, ())


def made(count: int, number: int) -> list[str]:
    """Return different texts, always the same for a `number`."""
    texts: dict[str, None] = {}
    while len(texts) < count:  # some examples are equal
        number += 1
        texts |= dict.fromkeys(_examples(max(count - len(texts), 10), number))
    found = list(texts)
    random.Random(number).shuffle(found)  # the first ones are the simplest
    return found[:count]


def _examples(count: int, number: int) -> list[str]:
    found: list[str] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile())
    def collect(text: str) -> None:
        found.append(text)

    collect()
    return found


async def attack(folder: Path, texts: Sequence[str]) -> Found:
    """Show all texts, each in one place."""
    found = Found()
    answers, questions, files, names, values = (texts[kind::5] for kind in range(5))
    chat = folder / "chat"
    chat.mkdir()
    async with (
        ScriptedEngine() as engine,
        make_harness(chat, engine, limits=NO_LIMITS) as harness,
        served_on(chat, harness) as url,
        chromium(url, bypass_csp=True) as context,
    ):
        await context.add_init_script(COUNTER)
        page = await context.new_page()
        async with page.expect_response("**/web/session"):
            await page.goto("/")
        for start in range(0, len(answers), _EXCHANGES):
            end = start + _EXCHANGES
            await show_conversation(page, harness, answers[start:end], questions[start:end], files[start:end], found)
    for start in range(0, len(names), _CHANGES):
        called, set_to = (each[start : start + _CHANGES] for each in (names, values))
        panel = folder / f"panel {start}"
        panel.mkdir()
        async with configured(panel, "") as bot, chromium(bot.served.url, bypass_csp=True) as context:
            await context.add_init_script(COUNTER)
            await show_panel(await context.new_page(), bot, called, set_to, found)
    return found


async def show_conversation(
    page: Page, harness: Harness, answers: Sequence[str], questions: Sequence[str], files: Sequence[str], found: Found
) -> None:
    """Load a conversation that has them, and write some answers while the page is open."""
    (cookie,) = [each["value"] for each in await page.context.cookies() if each["name"] == COOKIE]
    author, chat = Author(WEB_PLATFORM, cookie.partition(".")[0], ""), uuid4().hex
    channel = ChannelKey(WEB_PLATFORM, author.id, chat)
    said = itertools.zip_longest(answers, questions, files, fillvalue="x")
    await asyncio.gather(*(_store(harness, channel, author, *each) for each in said))
    await page.goto("about:blank")
    await page.goto(f"/#{chat}")
    exchanges = page.locator(".exchange")
    await expect(exchanges).to_have_count(len(answers))
    shown = await exchanges.locator(".bubble").evaluate_all("all => all.map((each) => each.textContent)")
    assert Counter(questions) <= Counter(shown)
    shown = await exchanges.locator(".files li").evaluate_all("all => all.map((each) => each.textContent)")
    assert Counter(files) <= Counter(shown)
    found.shown += Counter(answers=len(answers), questions=len(questions), files=len(files))
    for number, answer in enumerate(answers[:_STREAMED], 1):
        harness.engine.add([answer[: len(answer) // 2], answer[len(answer) // 2 :]])
        await page.locator("#text").fill(f"question {number}")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text(f"question {number}", exact=True)).to_be_visible()
        await expect(page.locator(".reply.open")).to_have_count(0)
        found.shown["answers that were streamed"] += 1
    await found.look(page)


async def _store(harness: Harness, channel: ChannelKey, author: Author, answer: str, question: str, file: str) -> None:
    message = a_message(question, id=uuid4().hex, channel=channel, author=author)
    exchange = await harness.store.enqueue(replace(message, files=(Attachment(file, size=1),)), Kind.CHAT)
    assert exchange is not None
    await harness.store.record_answer(exchange, Answer(answer))
    await harness.store.complete(exchange)


async def show_panel(page: Page, bot: Configured, names: Sequence[str], values: Sequence[str], found: Found) -> None:
    """Load a panel with names of people and platforms, and with values of config.toml, now and before."""
    choices = bot.served.harness.intake.choices
    for number, name in enumerate(names):
        scope = Scope("channel", f"discord:{number}")
        await choices.set(scope, "temperature", Author("discord", f"{number}", name), "0.5")
    bot.served.components.adapters = {name: Platform(name) for name in names[:20]}
    personas = {f"p{number}": {"system_prompt": value} for number, value in enumerate(values)}
    text = tomlkit.dumps({"personas": personas})
    await bot.served.panel.post("config/save", text=text, revision=bot.editor.read().revision)
    await page.goto("/admin")
    rows = page.locator("#audit tbody")
    await expect(rows.locator("tr")).to_have_count(len(names) + len(values))
    shown = await rows.evaluate("rows => rows.textContent")
    missing = [name for name in names if re.sub("\r\n?", "\n", name) not in shown]  # as HTML has it
    assert missing == []
    if values:
        await page.locator("#config-table").select_option(label="personas.p0")
        await expect(page.locator("#config-fields textarea")).to_be_visible()
    found.shown += Counter(names=len(names), values=len(values))
    await found.look(page)


async def main(count: int, number: int) -> int:
    texts = made(count, number)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        found = await attack(Path(folder), texts)
    print(f"{len(texts):,} texts (seed {number}), {found}")  # noqa: T201
    for each in found.made[:20]:
        print(each)  # noqa: T201
    return int(found.ran > 0 or bool(found.made))


if __name__ == "__main__":
    arguments = [int(each) for each in sys.argv[1:]] + [COUNT, 1][len(sys.argv) - 1 :]
    sys.exit(asyncio.run(main(*arguments)))
