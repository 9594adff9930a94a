"""Answers to deliver: 1 to 20,000 characters of what models write, made by hypothesis, numbered and reproducible."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from bot.delivery.markdown.blocks import visible_text
from bot.util.text import clean
from tests.delivery.markdown.texts import BLOCK, DOCUMENT, PARAGRAPH, SOUP

LONGEST = 20_000


@dataclass(frozen=True, slots=True)
class Case:
    """An answer, and the pieces in which the model says it."""

    number: int
    answer: str
    deltas: tuple[str, ...]


@st.composite
def _long_block(draw: st.DrawFn) -> str:
    """A code block, maybe around another one, or a table: longer than a message, or in a list or a quote."""
    count = draw(st.integers(20, 150))
    match draw(st.sampled_from(["code", "nested", "table"])):
        case "code":
            lines = ["```py", *(f"line_{number} = '第 {number} 行'  # 注释" for number in range(count)), "```"]
        case "nested":
            inner = ["```sh", "echo 你好 | cat", "```", ""]
            lines = ["~~~~md", *(line for number in range(count // 4) for line in [*inner, f"Step {number}."]), "~~~~"]
        case _:
            rows = (f"| {number} | 第 {number} 格 😀 |" for number in range(count))
            lines = ["| a | b |", "|---|:-:|", *rows]
    match draw(st.sampled_from(["alone", "alone", "list", "quote"])):
        case "list":
            lines = ["1. First:", "", *(f"   {line}" for line in lines)]
        case "quote":
            lines = [f"> {line}" for line in lines]
    return "\n".join(lines)


@st.composite
def _of_length(draw: st.DrawFn, lengths: st.SearchStrategy[int]) -> str:
    """Blocks that come again in another order; the end may stand anywhere, in a code block too."""
    length = draw(lengths)
    blocks = draw(st.lists(st.one_of(BLOCK, PARAGRAPH, _long_block()), min_size=2, max_size=8))
    chance = random.Random(draw(st.integers(0, 2**32)))
    text = ""
    for number in cycle(range(1, 1000)):
        text += f"{chance.choice(blocks)}\n\n"
        if chance.random() < 0.3:
            text += f"第 {number} 段 — part {number}.\n\n"
        if len(text) >= length:
            return text[:length]
    raise AssertionError("unreachable")


# By a case's number: a few words; about one message; many of them, the longest too; whatever comes.
_KINDS = (
    _of_length(st.integers(1, 300)),
    _of_length(st.integers(300, 4_500)),
    _of_length(st.one_of(st.integers(4_500, LONGEST), st.just(LONGEST))),
    st.one_of(DOCUMENT, SOUP),
)


def cases(numbers: Iterable[int], of_seed: int) -> list[Case]:
    """The answers with these numbers; each depends on its number and the seed alone."""
    answers = [(number, _answer(number, of_seed)) for number in numbers]
    return [Case(number, answer, tuple(_deltas(answer, number))) for number, answer in answers]


def _can_be_seen(text: str) -> bool:
    # To an answer of which nothing would be seen the bot has a sentence of its own.
    return len(text) <= LONGEST and visible_text(text) != ""


def _answer(number: int, of_seed: int) -> str:
    drawn: list[str] = []

    # The first example of every seed is the simplest there is, the second one is drawn.
    @seed(of_seed * 1_000_003 + number)
    @settings(
        max_examples=2,
        derandomize=False,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_KINDS[number % len(_KINDS)].map(clean).filter(_can_be_seen))
    def draw(answer: str) -> None:
        drawn.append(answer)

    draw()
    return drawn[-1]


def _deltas(answer: str, number: int) -> Iterator[str]:
    """Pieces of very different lengths, about forty for a long answer; they may tear signs and marks."""
    chance = random.Random(number)
    at = 0
    while at < len(answer):
        size = 1 + int(chance.expovariate(1.0) * max(4, len(answer) / 40))
        yield answer[at : at + size]
        at += size
