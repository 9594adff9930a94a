"""Split Markdown into messages."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.adapters.telegram.markup import TelegramFormat
from bot.delivery.markdown.blocks import is_balanced, visible_text
from bot.delivery.markdown.format import CachedFormat, Format, MarkdownFormat, PlainFormat, Rendered, utf16_units
from bot.delivery.markdown.split import Chunk, Splitter, join, split
from tests.delivery.markdown.texts import DOCUMENT, FLAT, TEXT


def texts(markdown: str, limit: int) -> list[str]:
    chunks = split(markdown, MarkdownFormat(limit))
    assert join(chunks) == markdown
    assert all(len(chunk.text) <= limit for chunk in chunks)
    return [chunk.text for chunk in chunks]


def test_a_short_text_is_one_chunk_and_an_empty_one_none() -> None:
    assert texts("short", 28) == ["short"]
    assert texts("", 28) == []


def test_a_code_block_is_closed_and_reopened_with_its_language() -> None:
    assert texts("```py\na = 1\nb = 2\nc = 3\nd = 4\n```", 28) == [
        "```py\na = 1\nb = 2\nc = 3\n```",
        "```py\nd = 4\n```",
    ]


def test_an_unfinished_code_block_is_closed() -> None:
    assert texts("```py\na = 1", 28) == ["```py\na = 1\n```"]
    assert texts("```py\na = 1\n", 28) == ["```py\na = 1\n```"]
    assert texts("```py", 28) == ["```py\n```"]


def test_tildes_and_longer_fences_are_reopened_with_the_same_marker() -> None:
    cut = texts("~~~~md\n~~~\nnested text\n~~~\nand much more text\n~~~~", 40)
    assert all(text.startswith("~~~~md\n") and text.endswith("\n~~~~") for text in cut)
    assert len(cut) == 2


def test_a_long_language_is_dropped_when_a_fence_is_reopened() -> None:
    assert texts("```a-language-of-28-letters-or\ncode one\ncode two\ncode three\n```", 48)[1].startswith("```\ncode ")


def test_a_code_block_in_a_list_is_reopened_at_its_indentation() -> None:
    cut = texts("1. Run\n\n   ```sh\n   first\n   second\n   third\n   fourth\n   ```\n2. Done", 44)
    assert cut == [
        "1. Run\n\n   ```sh\n   first\n   second\n   ```",
        "   ```sh\n   third\n   fourth\n   ```\n2. Done",
    ]


def test_a_code_block_in_a_nested_list_is_reopened_in_a_list() -> None:
    cut = texts("- a\n  - b\n    ```py\n    one = 1\n    two = 2\n    three = 3\n    ```\n- next", 45)
    assert cut[1].startswith("+\n    ```py\n")
    assert "".join(map(visible_text, cut)) == "abone=1two=2three=3next"


def test_a_code_block_in_a_quote_keeps_its_quote_marks() -> None:
    cut = texts("> look:\n> ```py\n> one = 1\n> two = 2\n> three = 3\n> ```\n> end", 44)
    assert cut[1].startswith("> ```py\n> ")
    assert all(is_balanced(text) for text in cut)


def test_the_rest_of_a_long_quoted_line_is_quoted() -> None:
    assert texts("> one two three four five six seven", 28) == ["> one two three four five ", "> six seven"]


def test_the_rest_of_a_long_indented_line_stays_code() -> None:
    assert texts("    one two three four five six seven", 30)[1].startswith("    ")


def test_nested_items_do_not_become_code() -> None:
    cut = texts("- a first point\n    - a nested point\n    - another nested point", 45)
    assert cut[1] == "+\n    - another nested point"


def test_the_rest_of_a_table_is_a_table() -> None:
    table = "| a | b |\n|---|---|\n" + "| one | two |\n" * 4
    cut = texts(table, 60)
    assert cut[1] == "|  |  |\n|---|---|\n| one | two |\n| one | two |\n"
    assert "".join(map(visible_text, cut)) == visible_text(table)


def test_a_table_header_that_takes_too_much_room_is_not_repeated() -> None:
    table = "| a | b |\n|----------|----------|\n" + "| one | two |\n" * 4
    assert texts(table, 60)[1].startswith("| one | two |\n")


@pytest.mark.parametrize(
    ("markdown", "first"),
    [
        ("A paragraph.\n\nAnother one that is long", "A paragraph.\n\n"),
        ("# Title of this\ntext that follows it", "# Title of this\n"),
        ("a first line here\nand a second line", "a first line here\n"),
        ("The first sentence. The second sentence", "The first sentence. "),
        ("这是第一个很长很长的句子没有空格。这是第二个句子，也没有空格", "这是第一个很长很长的句子没有空格。"),
        ("onewordthatislong another-word-that-is", "onewordthatislong "),
        ("**one two three** *four five six* seven", "**one two three** "),
        ("and a [link with](https://example.org)", "and a "),
        ("no marker may begin the next - item", "no marker may begin the "),
    ],
)
def test_the_best_boundary_is_chosen(markdown: str, first: str) -> None:
    assert texts(markdown, 28)[0] == first


def test_whitespace_after_a_cut_stays_with_the_chunk_before_it() -> None:
    assert texts("a" * 20 + "\n\n" + "b" * 20, 28) == ["a" * 20 + "\n\n", "b" * 20]


@pytest.mark.parametrize("sign", ["👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "e\u0301", "\r\n", "\u1112\u1161\u11ab", "\ud83d\ude00"])
def test_no_grapheme_is_split(sign: str) -> None:
    for before in range(20, 28):
        cut = texts("x" * before + sign * 8, 28)
        assert all(not unicodedata.combining(text[0]) for text in cut)
        assert sum(text.count(sign) for text in cut) == 8


def test_chinese_punctuation_does_not_begin_a_message() -> None:
    assert texts("字" * 28 + "」" + "字" * 5, 28)[1].startswith("字")


def test_a_grapheme_longer_than_a_message_is_split() -> None:
    assert len(texts("e" + "\u0301" * 100, 28)) > 3


def test_a_fence_longer_than_a_message_is_split_like_text() -> None:
    texts("`" * 30 + "\ncode\n" + "`" * 30, 28)
    texts("```" + "info" * 20 + "\ncode that is long enough to be cut\n```", 28)


def test_lengths_are_in_the_units_of_the_platform() -> None:
    chunks = split("😀" * 40, MarkdownFormat(28, utf16_units))
    assert [len(chunk.body) for chunk in chunks] == [14, 14, 12]


class Shortening:
    """Omits the text between slashes, as rendering omits the address of a link."""

    limit = 50

    def render(self, markdown: str) -> Rendered:
        return Rendered("".join(markdown.split("/")[::2]))

    def plain(self, markdown: str) -> Rendered:
        return Rendered(markdown)

    def measure(self, rendered: Rendered) -> int:
        return len(rendered.text)


def test_the_length_of_the_rendered_text_counts() -> None:
    format: Format = CachedFormat(Shortening())
    text = "word /hidden/ " * 20
    chunks = split(text, format)
    assert join(chunks) == text
    assert all(40 < format.measure(format.render(chunk.text)) <= 50 for chunk in chunks[:-1])
    assert len(split(text, PlainFormat(format))) > len(chunks)


@settings(max_examples=120, deadline=None)
@given(TEXT, st.integers(100, 400))
@example("> 1. > ````py\n>    > x = 1\n>    > ```js\n>    > let a\n>    > ```\n>    > ````", 100)
def test_every_chunk_fits_and_is_balanced_and_no_text_is_lost(markdown: str, limit: int) -> None:
    assert all(is_balanced(text) for text in texts(markdown, limit))


@settings(max_examples=70, deadline=None)
@given(FLAT, st.integers(28, 100))
def test_every_chunk_fits_and_is_balanced_at_the_smallest_limits(markdown: str, limit: int) -> None:
    assert all(is_balanced(text) for text in texts(markdown, limit))


@settings(max_examples=70, deadline=None)
@given(DOCUMENT, st.integers(300, 2000))
def test_the_visible_text_is_unchanged(markdown: str, limit: int) -> None:
    assert "".join(map(visible_text, texts(markdown, limit))) == visible_text(markdown)


@settings(max_examples=25, deadline=None)
@given(DOCUMENT, st.integers(60, 200), st.integers(10, 80))
def test_a_growing_text_has_the_same_chunks_and_only_its_last_ones_change(markdown: str, limit: int, step: int) -> None:
    splitter = Splitter(MarkdownFormat(limit))
    before: list[Chunk] = []
    for begin in range(0, len(markdown), step):
        splitter.append(markdown[begin : begin + step])
        now = splitter.chunks()
        assert now[: max(0, len(before) - 3)] == before[:-3]
        before = now
    assert before == split(markdown, MarkdownFormat(limit))


@pytest.mark.parametrize("piece", ["~~a", "*_*_a"])
def test_messages_of_dense_markup_fit(piece: str) -> None:
    format = TelegramFormat()
    splitter = Splitter(format)
    for _ in range(2):
        splitter.append((piece * 1400)[:3000])
        assert all(format.measure(format.render(chunk.text)) <= format.limit for chunk in splitter.chunks())


def test_settled_chunks_are_not_rendered_again() -> None:
    rendered = 0

    class Counting(Shortening):
        limit = 2000

        def render(self, markdown: str) -> Rendered:
            nonlocal rendered
            rendered += len(markdown)
            return Rendered(markdown)

    splitter = Splitter(Counting())
    text = "A sentence of an answer, **bold** here and there. " * 400
    for begin in range(0, len(text), 80):
        splitter.append(text[begin : begin + 80])
        splitter.chunks()
    # The last two messages at most: each call renders the growing one, each cut some more.
    assert rendered < 4 * 2000 * 250


def test_messages_are_filled_although_a_large_block_begins_early() -> None:
    prose = "一段话，讲的是这件事的来龙去脉。" * 12
    code = "```py\n" + "value = compute(value)  # 一步\n" * 90 + "```"
    text = f"{prose * 9}\n\n{code}\n\n{prose * 9}"
    cut = texts(text, 4096)
    assert len(cut) == -(-len(text) // 4096) == 2
    assert len(cut[0]) > 3000


class Counting:
    """Counts the characters that it renders."""

    limit = 400

    def __init__(self) -> None:
        self.characters = 0

    def render(self, markdown: str) -> Rendered:
        self.characters += len(markdown)
        return Rendered(markdown)

    def plain(self, markdown: str) -> Rendered:
        return Rendered(markdown)

    def measure(self, rendered: Rendered) -> int:
        return len(rendered.text)


@pytest.mark.parametrize("piece", ["> " * 9, "*_*_a", "**a ", "# a\n", "- ```\n", "`", "[a](b", "a|b\n-|-\n"])
def test_the_work_for_a_message_does_not_grow_with_the_text(piece: str) -> None:
    def characters(length: int) -> int:
        format = Counting()
        chunks = split((piece * length)[:length], format)
        return format.characters // len(chunks)

    assert characters(16_000) <= 1.5 * characters(4_000)
