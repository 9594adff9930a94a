"""Hypothesis strategies for Markdown: typical answers of a model, and broken ones."""

from hypothesis import strategies as st

ENGLISH = st.sampled_from(
    ["answer", "the", "of", "1.", "-", "#", "snake_case_name", "a|b", "2*3", "===", "<b>", "&amp;", "\\*"]
)
MARKED = st.sampled_from(["**bold**", "*it*", "`code`", "~~gone~~", "**重点**", "[link](https://example.org/a_b)"])
OTHERS = st.sampled_from(
    ["你好", "世界。", "这是一个例子，", "模型！", "「引用」", "مرحبا", "עולם", "\u202bثلاثة\u202c"]
)
SIGNS = st.sampled_from(["👩\u200d👩\u200d👧\u200d👦", "🇩🇪🇫🇷", "👍🏽", "é", "각", "𠀀"])
WORDS = st.one_of(ENGLISH, MARKED, OTHERS, SIGNS)
LINE = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)
CHINESE = st.text(alphabet="我你他是的在有人这中大为上个国说们，。！？：；", min_size=1, max_size=120)
PARAGRAPH = st.one_of(LINE, CHINESE, st.lists(LINE, min_size=1, max_size=3).map("\n".join))
CODE = st.lists(
    st.sampled_from(
        ["x = 1", "    return None", "", "# 注释", "- no list", "> no quote", "`tick`", "“引号”，", "\tdeep"]
    ),
    max_size=12,
)


@st.composite
def fenced(draw: st.DrawFn) -> str:
    mark = draw(st.sampled_from("`~")) * draw(st.integers(3, 5))
    info = draw(st.sampled_from(["", "py", "python", "c++", " sh"]))
    lines = draw(CODE)
    if draw(st.booleans()) and len(mark) > 3:
        lines = [*lines, mark[0] * 3 + "js", "let a", mark[0] * 3, *draw(CODE)]
    other = "~" if mark[0] == "`" else "`"
    if draw(st.booleans()):
        lines = [*lines, other * 3]
    return "\n".join([mark + info, *lines, mark])


TABLE = st.lists(st.tuples(LINE, CHINESE), min_size=1, max_size=6).map(
    lambda rows: "\n".join(
        ["| a | b |", "|---|:-:|", *(f"| {a.replace('|', '/')} | {b} |" for a, b in rows)],
    )
)


def _indented(text: str, first: str, rest: str) -> str:
    return "\n".join(
        (first if number == 0 else rest) + line if line or ">" in rest else line
        for number, line in enumerate(text.split("\n"))
    )


LEAF = st.one_of(PARAGRAPH, fenced(), TABLE, LINE.map("## {}".format))
BLOCK = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        inner.map(lambda text: _indented(text, "> ", "> ")),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda items: "\n".join(_indented(item, "- ", "  ") for item in items)
        ),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda items: "\n\n".join(_indented(item, f"{n}. ", "   ") for n, item in enumerate(items, 1))
        ),
    ),
    max_leaves=4,
)
FLAT = st.lists(st.one_of(PARAGRAPH, fenced()), min_size=1, max_size=5).map("\n\n".join)
DOCUMENT = st.lists(BLOCK, min_size=1, max_size=6).map("\n\n".join)
# Markup in random order, as of a model that degenerates.
SOUP = st.lists(
    st.one_of(
        st.sampled_from(["```", "~~~", "````", "\n", "\n\n", "  ", "    ", "> ", "- ", "1. ", "|", "**", "\r\n"]), WORDS
    ),
    max_size=80,
).map("".join)
TEXT = st.one_of(DOCUMENT, SOUP, st.text(max_size=300))
