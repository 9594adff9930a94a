"""Generated answers in mathematics, code and prose, each with the text that users must see.

An answer is composed of pieces whose visible text is known by construction: no renderer and no
Markdown parser takes part.  `python -m tests.delivery.markdown.answers` compares 10,000.
"""

import random
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bot.adapters.telegram.markup import EN_SPACE, TelegramFormat

# Shown as it is written.
_WORDS = [
    "the",
    "value",
    "grows",
    "because",
    "因此",
    "结果",
    "我们",
    "得到",
    "answer",
    "is",
    "about",
    "roughly",
    "大约",
    "很重要",
    "step",
    "步骤",
    "function",
    "函数",
    "变量",
    "result",
]
_MATHS = [
    "2**10",
    "3**2",
    "2*3*4",
    "5*4=20",
    "a*b+c*d",
    "(a+b)*(c+d)*e",
    "(x+1)**2",
    "n*(n-1)",
    "a_1+a_2",
    "x_{i+1}",
    "\\frac{a_1}{b_2}",
    "\\(x_1*y_1\\)",
    "\\(a^{*}b^{*}\\)",
    "$x_1*y_2*z$",
    "$$\\sum_{i=1}^{n}i$$",
    "\\alpha\\_\\beta",
    "a^*b^*",
    "长*宽*高",
    "半径**2",
    "x<y",
    "a>b",
    "|x|+|y|",
    "1~2",
    "5~~10",
    "100%",
    "3!",
    "f'(x)",
    "10^{-3}",
    "\\{1,2\\}",
    "\\[x\\]",
    "a&b",
    "2**-1",
    "1e-5",
    "[0,1)",
    "(0,1]",
    "-3",
    "√2*π",
    "½*h",
    "x**y",
    "{x|x>0}",
]
_CODE = [
    "__init__",
    "__name__=='__main__'",
    "snake_case_name",
    "a_b_c",
    "_private",
    "__all__",
    "f(*args,**kwargs)",
    "print(x**2)",
    "C:\\new\\table",
    "\\d+\\.\\d*",
    "\\*",
    ".*foo.*",
    "[a-z]*x*",
    "^\\s*#.*$",
    "src/**/*.py",
    "*.txt",
    "char*",
    "int*p",
    "arr[i](x)",
    "dict[str,int]",
    "<div>",
    "<br/>",
    "&amp;",
    "&lt;",
    "a&&b",
    "x||y",
    "$HOME",
    "${USER}",
    "~/.bashrc",
    "--help",
    "-v",
    "@property",
    "#include",
    "!important",
    "a?b:c",
    "i++",
    "*ptr=1;",
    "&x",
    "/*note*/",
    "//note",
    "T_*_x",
    "\\\\server\\share",
    "%s\\n",
    "std::vector<int>",
    "lambda*x:x",
    "{**a,**b}",
    "[*a,*b]",
    "1..10",
    "foo_bar_",
    "_foo",
    "`",
]
_LINES = [
    "$ pip install torch",
    "#!/bin/sh",
    "#include <stdio.h>",
    ">>> print(2**10)",
    "1986. A great year",
    "42.",
    "@decorator",
    "[1]: https://example.org/a_b_c",
    "PATH=$PATH:~/bin",
    "= 5 * 4 * 3",
    "+ 5 + 6",
    "- 3 + 4",
    "\\[",
    "a_1 * b_1 \\\\",
    "\\]",
    "|x| = |y|",
    "C:\\> dir *.* /s",
    "~/src$ ls *",
    "&nbsp; is a space",
    "第1*2步：见__doc__",
]


@dataclass(frozen=True, slots=True)
class Piece:
    markdown: str
    visible: str


def _plain(text: str) -> Piece:
    return Piece(text, text)


def _phrase(dice: random.Random) -> str:
    return " ".join(dice.choices(_WORDS, k=dice.randint(1, 3)))


def _styled(dice: random.Random) -> Piece:
    words = _phrase(dice)
    before, after = dice.choice(
        [("**", "**"), ("*", "*"), ("`", "`"), ("~~", "~~"), ("***", "***"), ("[", "](https://example.org/a_b)")]
    )
    return Piece(f"{before}{words}{after}", words)


def _chinese_bold(dice: random.Random) -> Piece:
    words = dice.choice(["重点", "注意：", "第一步", "“引用”", "Python", "3"])
    return Piece(f"这是**{words}**的内容", f"这是{words}的内容")


_INLINE: tuple[tuple[int, Callable[[random.Random], Piece]], ...] = (
    (6, lambda dice: _plain(_phrase(dice))),
    (4, lambda dice: _plain(dice.choice(_MATHS))),
    (4, lambda dice: _plain(dice.choice(_CODE))),
    (2, _styled),
    (1, _chinese_bold),
)


def _joined(pieces: Iterable[Piece], by: str) -> Piece:
    pieces = list(pieces)
    return Piece(by.join(piece.markdown for piece in pieces), by.join(piece.visible for piece in pieces))


def _sentence(dice: random.Random) -> Piece:
    makers = dice.choices([make for _, make in _INLINE], [weight for weight, _ in _INLINE], k=dice.randint(2, 7))
    pieces = [_plain(dice.choice(_WORDS)), *(make(dice) for make in makers)]
    # Two lone backticks of a paragraph would be a code span.
    if sum(piece.markdown.count("`") for piece in pieces) > 1:
        pieces = [piece for piece in pieces if piece.markdown != "`"]
    end = dice.choice(["", ".", "。", ":"]) if pieces[-1].visible[-1].isalpha() else ""
    sentence = _joined(pieces, " ")
    return Piece(sentence.markdown + end, sentence.visible + end)


def _code_block(dice: random.Random) -> Piece:
    code = "\n".join(" ".join(dice.choices([each for each in _CODE if each != "`"], k=3)) for _ in range(3))
    return Piece(f"```python\n{code}\n```", code)


def _table(dice: random.Random) -> Piece:
    cells = [dice.choice(["a_b", "2**3", "值", "**x**"]) for _ in range(4)]
    shown = "".join(cell.strip("*") for cell in cells)
    return Piece(f"| {cells[0]} | {cells[1]} |\n|---|---|\n| {cells[2]} | {cells[3]} |", shown)


def _block(dice: random.Random) -> Piece:
    inner = _sentence(dice)
    match dice.randrange(9):
        case 0:
            return Piece(f"## {inner.markdown}", inner.visible)
        case 1:
            items = [_sentence(dice) for _ in range(3)]
            return Piece("\n".join(f"- {item.markdown}" for item in items), "\n".join(item.visible for item in items))
        case 2:
            numbers = dice.choice([(1, 2, 3), (1, 3, 5), (7, 8, 9)])
            items = [Piece(f"{n}. {(each := _sentence(dice)).markdown}", f"{n}. {each.visible}") for n in numbers]
            return _joined(items, "\n")
        case 3:
            return Piece(f"> {inner.markdown}", inner.visible)
        case 4:
            return _code_block(dice)
        case 5:
            return _table(dice)
        case 6:
            return _plain(dice.choice([line for line in _LINES if line not in ("\\[", "\\]")]))
        case 7:
            return _plain("\\[\na_1 * b_1\n+ c_*d_*\n- e**2\n= \\frac{1}{2}\n\\]")
        case _:
            return inner


def generated(seed: int) -> Piece:
    """Return an answer of a few paragraphs."""
    dice = random.Random(seed)
    return _joined((_block(dice) for _ in range(dice.randint(1, 6))), "\n\n")


def shown(markdown: str) -> str:
    """Return what Telegram shows, without bullets, the lines of tables and white space."""
    text = TelegramFormat().render(markdown).text
    text = re.sub(rf"•{EN_SPACE}|[│─┼]", "", text)
    return re.sub(r"\s+", "", text)


def differences(seeds: Iterable[int]) -> list[tuple[int, str, str]]:
    """Return seed, expected and shown text of each answer that is not shown as it should be."""
    found = []
    for seed in seeds:
        answer = generated(seed)
        expected = re.sub(r"\s+", "", answer.visible)
        if (seen := shown(answer.markdown)) != expected:
            found.append((seed, expected, seen))
    return found


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    wrong = differences(range(count))
    for seed, expected, seen in wrong[:20]:
        at = next((n for n, pair in enumerate(zip(expected, seen, strict=False)) if pair[0] != pair[1]), 0)
        sys.stdout.write(
            f"{seed}: …{expected[max(0, at - 20) : at + 30]!r}\n      …{seen[max(0, at - 20) : at + 30]!r}\n"
        )
    sys.stdout.write(f"{count} answers, {len(wrong)} differ\n")
    sys.exit(bool(wrong))
