"""CJK-friendly emphasis; without CJK text the result is CommonMark's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bot.delivery.markdown.emphasis import cjk_friendly_emphasis

OURS = MarkdownIt("commonmark").use(cjk_friendly_emphasis)
THEIRS = MarkdownIt("commonmark")


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("**重点：**你好", "<strong>重点：</strong>你好"),
        ("这是**重点。**然后", "这是<strong>重点。</strong>然后"),
        ("**“引用”**说", "<strong>“引用”</strong>说"),
        ("用**`int4`**加载", "用<strong><code>int4</code></strong>加载"),
        ("（**注意**）小心", "（<strong>注意</strong>）小心"),
        ("**제목:**본문", "<strong>제목:</strong>본문"),
        ("*斜体！*和**粗体**", "<em>斜体！</em>和<strong>粗体</strong>"),
        ("2 ** 3 和 ** 不是粗体", "2 ** 3 和 ** 不是粗体"),
        ("snake_case_名称", "snake_case_名称"),
    ],
)
def test_cjk_friendly_emphasis(markdown: str, html: str) -> None:
    assert OURS.render(markdown).strip() == f"<p>{html}</p>"


@given(st.text(alphabet="ab *_.!(\"'`\n", max_size=40))
def test_emphasis_without_chinese_is_commonmark(markdown: str) -> None:
    assert OURS.render(markdown) == THEIRS.render(markdown)
