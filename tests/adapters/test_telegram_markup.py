"""Markdown for Telegram: no character is lost, and styles become entities."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.adapters.telegram.markup import EN_SPACE, Entity, TelegramFormat
from bot.delivery.markdown.blocks import visible_text
from bot.delivery.markdown.split import split
from tests.harness.servers.telegram_words import refused, words

FORMAT = TelegramFormat()

SCRAPS = """
    a 好 😀 مرحبا é \u2002 \t * ** *** _ __ ~~ ` `` ``` ~~~ # ## > - + 1. 2) [ ] ( ) ![ ]( https://x.y tg://user?id=1
    <b> </b> <!channel> <!-- --> <br> || $ $$ \\( \\) \\ & &amp; | |--|--| --- === @everyone <@U1> <div> <https://a.b>
"""
MARKDOWN = st.lists(
    st.sampled_from([*SCRAPS.split(), EN_SPACE, " ", "\t", "\n", "\n\n", "  \n", "    "]), max_size=60
).map("".join)


def seen(markdown: str) -> str:
    """Return the rendered text without additions and whitespace."""
    return re.sub(r"\s+", "", words(FORMAT.render(markdown).text))


@given(MARKDOWN)
@settings(max_examples=400, deadline=None)
def test_every_visible_character_survives(markdown: str) -> None:
    assert seen(markdown) == visible_text(markdown)


@given(MARKDOWN)
@settings(max_examples=400, deadline=None)
def test_entities_are_valid_for_telegram(markdown: str) -> None:
    rendered = FORMAT.render(markdown)
    refusal = refused(rendered.text, [entity for entity in rendered.entities if isinstance(entity, Entity)])
    assert refusal is None, refusal


def test_trailing_whitespace_is_stripped_as_telegram_does() -> None:
    grown, before = FORMAT.render("好\n```py\na\n  \n"), FORMAT.render("好\n```py\na")
    assert grown == before
    assert grown.text == "好\na"
    assert grown.entities == (Entity("pre", 2, 1, language="py"),)


def looks(markdown: str) -> list[tuple[str, str]]:
    """Return the kind and text of each entity."""
    rendered = FORMAT.render(markdown)
    units = rendered.text.encode("utf-16-le")
    return [
        (entity.kind, units[2 * entity.offset : 2 * (entity.offset + entity.length)].decode("utf-16-le"))
        for entity in rendered.entities
        if isinstance(entity, Entity)
    ]


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("**粗**体 😀 *斜* ~~删~~", [("bold", "粗"), ("italic", "斜"), ("strikethrough", "删")]),
        ("# 标题\n正文", [("bold", "标题")]),
        ("**a `b` c**", [("bold", "a "), ("code", "b"), ("bold", " c")]),
        ("[a `b`](https://x.y)", [("text_link", "a b")]),
        ("```py\n  x = 1\n```", [("pre", "  x = 1")]),
        ("> 引用\n> > 又引\n\nend", [("blockquote", "引用\n又引")]),
        ("- a\n\n      code", [("pre", "code")]),
        ("![图](https://x.y/z.png)", [("text_link", "图")]),
        ("| a | b |\n|---|---|\n| 一 | 二 |", [("pre", f"a  │{EN_SPACE}b\n───┼───{EN_SPACE}\n一 │{EN_SPACE}二")]),
    ],
)
def test_markup_becomes_entities(markdown: str, expected: list[tuple[str, str]]) -> None:
    assert looks(markdown) == expected


def test_code_keeps_its_language() -> None:
    (entity,) = FORMAT.render("```python title\nx\n```").entities
    assert entity == Entity("pre", 0, 1, language="python")


@pytest.mark.parametrize("address", ["tg://user?id=1", "tg://resolve?domain=x", "/relative", "mailto:a@b.c"])
def test_only_web_links_become_links(address: str) -> None:
    rendered = FORMAT.render(f"[Mei]({address})")
    assert (rendered.text, rendered.entities) == (f"[Mei]({address})", ())


@pytest.mark.parametrize(
    "text", ["ask @mei_lin, please", "**@mei_lin**", "<b>@mei_lin", "- 请问@mei_lin", "> (@mei_lin)"]
)
def test_a_name_is_no_mention(text: str) -> None:
    assert ("code", "@mei_lin") in looks(text)
    assert "@mei_lin" not in FORMAT.plain(text).text
    assert FORMAT.plain(text).text.replace("\u2060", "") == text


@pytest.mark.parametrize(
    "text",
    [
        "问@@mei_lin",
        "见 https://example.org，@mei_lin 你好",
        "https://example.org:8080,@mei_lin",
        "https://example.org/x\u3000@mei_lin",
        "https://example.org/x<@mei_lin>",
        "https://localhost/@mei_lin",
        "[“here”](https://example.org)@mei_lin",
        "@~~mei_lin~~",
        "**问 @mei**_lin",
        "~~a @mei~~_lin",
    ],
)
def test_no_notation_around_a_name_makes_it_a_mention(text: str) -> None:
    assert ("code", "@mei_lin") in looks(text)
    assert not re.search(r"(?<!\w)@mei_lin", FORMAT.plain(text).text)


def test_a_name_ends_no_style_around_it() -> None:
    assert looks("> **a @mei_lin b**") == [
        ("blockquote", "a @mei_lin b"),
        ("bold", "a "),
        ("code", "@mei_lin"),
        ("bold", " b"),
    ]


def test_a_name_in_code_or_in_a_link_stays_there() -> None:
    assert looks("`a @mei_lin` [@mei_lin](https://example.org) @`mei_lin`") == [
        ("code", "a @mei_lin"),
        ("text_link", "@mei_lin"),
        ("code", "mei_lin"),
    ]


def test_addresses_are_no_names() -> None:
    assert looks("mei@example.org 见https://example.org/@mei_lin @") == []


def test_lists_show_their_markers_and_their_depth() -> None:
    text = FORMAT.render("3. a\n4. b\n   - c\n   - d\n\nend").text.replace(EN_SPACE, " ")
    assert text == "3. a\n4. b\n   • c\n   • d\n\nend"


def test_blank_lines_are_kept() -> None:
    assert FORMAT.render("a\n- b\n\nc\nd\n\n\n\ne").text.replace(EN_SPACE, " ") == "a\n• b\n\nc\nd\n\ne"


@pytest.mark.parametrize("answer", ["42.", "-", "+", "*", "#", ">", "---", "***", "-\n\n>"])
def test_a_marker_alone_is_the_text(answer: str) -> None:
    assert FORMAT.render(answer).text == answer


def test_raw_html_is_shown_unchanged() -> None:
    assert FORMAT.render("<!channel> a<br>b <@U1> @everyone").text == "<!channel> a<br>b <@U1> @everyone"


def test_a_text_with_too_many_entities_is_split_and_keeps_them() -> None:
    answer = "**b** " * 350
    pieces = [FORMAT.render(piece.text) for piece in split(answer, FORMAT)]
    assert [len(piece.entities) for piece in pieces] == [100, 100, 100, 50]


def test_lengths_are_counted_as_utf_16() -> None:
    assert FORMAT.measure(FORMAT.render("**😀** 好")) == 4


def test_plain_text_is_unchanged() -> None:
    assert FORMAT.plain("**a**").text == "**a**"
    assert FORMAT.plain("**a**").entities == ()


@given(MARKDOWN, st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_no_message_of_a_long_text_exceeds_the_limit(markdown: str, times: int) -> None:
    small = SmallFormat()
    for piece in split(f"{markdown}\n\n" * times, small):
        assert small.measure(small.render(piece.text)) <= small.limit


def test_the_messages_of_a_long_answer_show_all_of_it() -> None:
    step = "## 第一步\n\n**重点**：先看 `main.py`，再看[说明](https://x.y)。😀\n\n```py\nfor i in range(9):\n    print(i)\n```\n"
    table = "| 名称 | 值 |\n|---|---|\n" + "| 一 | 二 |\n" * 40
    answer = (step * 30 + table) * 3
    pieces = split(answer, FORMAT)
    assert len(pieces) > 2
    assert "".join(seen(piece.text) for piece in pieces) == visible_text(answer)


class SmallFormat(TelegramFormat):
    limit = 64
