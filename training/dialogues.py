"""Parser of the dialogues in training/dialogues.

Dialogues are separated by empty lines.  The first characters of a line name its type:

    ? a question            consecutive lines are phrasings of one question
    ~ a phrasing            held back for the evaluation
    > the answer            may have several lines
    ...                     other rounds may be inserted here
    ^                       this dialogue always opens a conversation

A question after an answer begins the next round.  Placeholders such as {name} are replaced
by words of words.toml, consistently within a dialogue.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "dialogues"
LANGUAGES = ("en", "zh")
PLACEHOLDER = re.compile(r"\{(name|place|person|thing|message|number|said)\}")


@dataclass(frozen=True, slots=True)
class DialogueRound:
    """A question in several phrasings, and its answer; `after_gap` if other rounds may precede it."""

    asked: tuple[str, ...]
    held_back: tuple[str, ...]
    answer: str
    after_gap: bool = False


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One or more rounds; the last answer is the training target."""

    language: str
    theme: str
    rounds: tuple[DialogueRound, ...]
    opens: bool = False

    @property
    def text(self) -> str:
        return "\n".join(line for r in self.rounds for line in (*r.asked, *r.held_back, r.answer))

    @property
    def placeholders(self) -> frozenset[str]:
        return frozenset(PLACEHOLDER.findall(self.text))


@dataclass(frozen=True, slots=True)
class PlaceholderWords:
    """Words for the placeholders of one language."""

    lists: dict[str, tuple[str, ...]]

    def __getitem__(self, placeholder: str) -> tuple[str, ...]:
        return self.lists[placeholder]


class DialogueError(ValueError):
    """A format error in a file of dialogues; the message names file and line."""


def read_all(folder: Path = FOLDER) -> list[Dialogue]:
    """Read every dialogue, in a fixed order."""
    return [
        dialogue
        for language in LANGUAGES
        for path in sorted((folder / language).glob("*.txt"))
        for dialogue in parse(path.read_text(encoding="utf-8"), language, path.stem)
    ]


def read_words(language: str, folder: Path = FOLDER) -> PlaceholderWords:
    """Read words.toml: entries are separated by semicolons, or else by spaces."""
    tables = tomllib.loads((folder / language / "words.toml").read_text(encoding="utf-8"))
    return PlaceholderWords(
        {
            name: tuple(entry for part in (text.split(";") if ";" in text else text.split()) if (entry := part.strip()))
            for name, text in tables.items()
        }
    )


def parse(text: str, language: str, theme: str) -> Iterator[Dialogue]:
    r"""Parse the dialogues of one file.

    >>> [dialogue] = parse("? Hi\n~ hi there\n> Hello!", "en", "hello")
    >>> dialogue.rounds[0].answer
    'Hello!'
    """
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip() and not line.startswith("# "):
            block.append((number, line.rstrip()))
        elif block and not line.strip():
            yield _dialogue(block, language, theme)
            block = []


def _dialogue(lines: Sequence[tuple[int, str]], language: str, theme: str) -> Dialogue:
    rounds: list[DialogueRound] = []
    asked: list[str] = []
    held_back: list[str] = []
    answer: list[str] = []
    gap = opens = False

    def finish_round() -> None:
        nonlocal gap
        if answer:
            rounds.append(DialogueRound(tuple(asked), tuple(held_back), "\n".join(answer), gap))
            gap = False
            for part in (asked, held_back, answer):
                part.clear()

    for number, line in lines:
        mark, rest = line[:1], line[2:]
        place = f"{language}/{theme}.txt:{number}"
        if mark in "?~" and rest:
            finish_round()
            (asked if mark == "?" else held_back).append(rest)
        elif mark == ">" and asked:
            answer.append(rest)
        elif line == "..." and not asked:
            gap = True
        elif line == "..." and answer:
            finish_round()
            gap = True
        elif line == "^" and not rounds and not asked:
            opens = True
        else:
            raise DialogueError(f"{place}: unexpected line {line!r}")
    finish_round()
    if asked or not rounds:
        raise DialogueError(f"{language}/{theme}.txt:{lines[-1][0]}: a question has no answer")
    return Dialogue(language, theme, tuple(rounds), opens)
