"""Hostile Markdown: texts on which parsers, splitters and renderers take longest."""

import random
from collections.abc import Iterator

# The most characters of an answer that its platform shows in a few messages.
LENGTH = 8_000

_PIECES = (
    "[",
    "]",
    "![",
    "[a](",
    "[a](b ",
    "[a][b]",
    "[a]: b\n",
    "[^1]",
    "(",
    "*",
    "**",
    "*a ",
    "**a*",
    "a*",
    "*a_",
    "_",
    "__a",
    "~",
    "~~a",
    "||",
    "`",
    "``",
    "` `` ",
    "`a``b```c",
    "```\n",
    "```a\n```\n",
    "~~~\n",
    "    ```\n",
    "````\n```\n",
    "- ```\n",
    "> ```\n",
    ">",
    "> ",
    ">\n",
    "- ",
    "- a\n",
    "  - a\n",
    "1. ",
    "1)\n",
    "+ - * ",
    "#",
    "# a\n",
    "a\n=\n",
    "a\n-\n",
    "---\n",
    "|",
    "|a|\n|-|\n",
    "|-",
    "<",
    "<a ",
    "<a href='",
    "<!--",
    "<!-- -->",
    "<?",
    "<![CDATA[",
    "</",
    "<http://a",
    "http://a.b/(",
    "www.",
    "a@b.",
    "&",
    "&#",
    "&#x110000;",
    "&amp",
    "\\",
    "\\*",
    "$",
    "$$",
    "\\(",
    " ",
    "\t",
    "\n",
    "\r\n",
    " \n",
    "  \n",
    "\\\n",
    "a",
    "一",
    "！",
    "e\u0301",
    "\u200b",
    "\u202e",
    "\U0001f468\u200d",
    "\U0001f1e8\U0001f1f3",
    "\ufe0f",
    "**一**",
    "<@",
    "<@1>",
    "@a",
    "<#",
    "<:a:",
    "<t:",
    ":a:",
    "-# a\n",
    "/a",
)


def hostile_texts(count: int, seed: int) -> Iterator[str]:
    """Return texts of `LENGTH` characters: each piece again and again, then mixtures of a few."""
    chance = random.Random(f"{seed} hostile")
    pure = chance.sample(_PIECES, len(_PIECES))
    for number in range(count):
        if number < len(pure):
            text = pure[number] * (LENGTH // len(pure[number]) + 1)
        else:
            text = _mixture(chance)
        yield text[:LENGTH]


def _mixture(chance: random.Random) -> str:
    pieces = chance.choices(_PIECES, k=chance.randrange(2, 6))
    parts: list[str] = []
    length = 0
    while length < LENGTH:
        part = chance.choice(pieces) * chance.choice((1, 1, 2, 5, 50, 1000))
        parts.append(part + chance.choice(("", "", " ", "\n", "a")))
        length += len(parts[-1])
    opening = chance.choice(("", "", "```\n", "> ", "- ", "| a | b |\n|---|---|\n", "*", "`"))
    return opening + "".join(parts)
