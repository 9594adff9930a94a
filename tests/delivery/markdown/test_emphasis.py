"""Emphasis: beside Chinese text, in ordinary prose as in CommonMark, and not in code."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from bot.delivery.markdown.emphasis import careful_emphasis

OURS = MarkdownIt("commonmark").use(careful_emphasis)
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
def test_careful_emphasis(markdown: str, html: str) -> None:
    assert OURS.render(markdown).strip() == f"<p>{html}</p>"


@given(
    st.lists(
        st.sampled_from(
            ["*a b*", "**ab**", "***ab***", "_ab cd_", "_ab_", "`a*b`", "ab", "(*ab*),", "**a b**.", "*a **b** c*", "2"]
        ),
        max_size=12,
    ).map(" ".join)
)
def test_emphasis_between_spaces_is_commonmark(markdown: str) -> None:
    assert OURS.render(markdown) == THEIRS.render(markdown)


@pytest.mark.parametrize(
    "text",
    [
        "2**10 and 3**2",
        "(a+b)*(c+d)*(e+f), (a+b)**2*(c)**2",
        "长*宽*高，半径**2，高**2",
        "f(*args, **kwargs); g(*a)",
        "def __init__(self): self.__dict__, __name__ == '__main__'",
        "_private _x1_ __all__",
        "src/**/*.py, **/*.js",
        ".*foo.* [a-z]*x* ^a*b*$",
        "/* a */ b /* c */",
        "int *p = q; int* r",
        "**kwargs, args*",
        "\\mathbf{x}_{i} + \\mathbf{y}_{j}, a^*b^*",
        "p****d",
    ],
)
def test_operators_names_and_patterns_are_no_emphasis(text: str) -> None:
    assert "<em>" not in (html := OURS.render(text))
    assert "<strong>" not in html


@pytest.mark.parametrize(
    "text",
    [
        "(*_*)",
        "hello (*_*) and (*-*)",
        "_*_ or *.* or _._",
        "(*^_^*) 好的(*^▽^*)",
        "嗨(*￣▽￣*)，(*´∀｀*)",
        "(**_**) __*__ **...**",
        "(*- -*)",
    ],
)
def test_signs_alone_are_no_emphasis(text: str) -> None:
    assert OURS.render(text) == f"<p>{text}</p>\n"


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("*well (*_*) done*", "<em>well (*_*) done</em>"),
        ("(*_*) is *sad*", "(*_*) is <em>sad</em>"),
        ("**>** is more, *🎉*", "<strong>&gt;</strong> is more, <em>🎉</em>"),
        ("*`+`* and **`;`**", "<em><code>+</code></em> and <strong><code>;</code></strong>"),
        ("**“a”?!**", "<strong>“a”?!</strong>"),
    ],
)
def test_emphasis_beside_signs_stays(markdown: str, html: str) -> None:
    assert OURS.render(markdown) == f"<p>{html}</p>\n"
