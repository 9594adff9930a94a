"""Create training conversations from dialogues: phrasings, typing habits, history, names.

All randomness comes from one `random.Random`, so a seed reproduces everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from bot.domain import ChatMessage
from training.dialogues import LANGUAGES, PLACEHOLDER, Dialogue, PlaceholderWords, read_all, read_words
from training.phrasings import plain, reframed

Said = tuple[str, str]  # a question and its answer

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FACTS = frozenset({"name", "place", "thing", "number"})


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation whose last answer is the target; `dialogue` is the index of its dialogue."""

    dialogue: int
    rounds: tuple[Said, ...]

    @property
    def messages(self) -> list[ChatMessage]:
        """The conversation without its last answer: the model's input."""
        chat = [
            m for asked, answer in self.rounds for m in (ChatMessage("user", asked), ChatMessage("assistant", answer))
        ]
        return chat[:-1]

    @property
    def answer(self) -> str:
        return self.rounds[-1][1]


class Examples:
    def __init__(self, rng: Random) -> None:
        self.dialogues = read_all()
        self._words = {language: read_words(language) for language in LANGUAGES}
        self._rng = rng
        rounds = [each for dialogue in self.dialogues for each in dialogue.rounds]
        self._held_back = {plain(question) for each in rounds for question in each.held_back}
        self._written = self._held_back | {plain(question) for each in rounds for question in each.asked}
        self._copies = [
            number
            for number, dialogue in enumerate(self.dialogues)
            if PLACEHOLDER.search(dialogue.rounds[-1].answer) and "number" not in dialogue.placeholders
        ]
        # May precede or separate other rounds: short, and without facts that are asked for later.
        self._fillers = {
            language: [
                d
                for d in self.dialogues
                if d.language == language and len(d.rounds) == 1 and not d.opens and not d.rounds[0].after_gap
                if len(d.rounds[0].answer) < 130 and d.theme != "memory"
            ]
            for language in LANGUAGES
        }

    def texts(self) -> list[str]:
        """Return all texts, to train the tokenizer."""
        written = [dialogue.text for dialogue in self.dialogues]
        words = [" ".join(entries) for each in self._words.values() for entries in each.lists.values()]
        return written + words

    def epoch(self, history: float, keep: Sequence[float]) -> list[Example]:
        """Return every training phrasing once, those with many possible words more often.

        `history` is the share of conversations with unrelated rounds before them; `keep` is
        the probability of each dialogue's phrasings.
        """
        made = [
            self.example(number, phrasing, history=history)
            for number, dialogue in enumerate(self.dialogues)
            for phrasing in dialogue.rounds[-1].asked
            for _ in range(_times(dialogue))
            if self._rng.random() < keep[number]
        ]
        self._rng.shuffle(made)
        return made

    def copying(self, text: str) -> Example:
        """Return a conversation whose last answer repeats `text` from the question or an earlier round."""
        number = self._rng.choice(self._copies)
        dialogue = self.dialogues[number]
        filling = _Filling(self._rng, self._words[dialogue.language], text)
        rounds = [(text, "...")] if quotes(dialogue) else []
        for each in dialogue.rounds:
            answer = filling.fill(each.answer).replace("{said}", text)
            rounds.append((filling.fill(self._rng.choice(each.asked)), answer))
        return Example(number, tuple(rounds))

    def example(self, number: int, phrasing: str, *, as_written: bool = False, history: float = 0.0) -> Example:
        """Return a conversation that ends with this phrasing of a dialogue's last question.

        `as_written` omits typing habits and speakers' names; `history` is the probability of
        unrelated rounds before it.
        """
        rng = self._rng
        dialogue = self.dialogues[number]
        # A name before each message would add another name to remember.
        names = self._words[dialogue.language]["name"] if dialogue.theme != "memory" or quotes(dialogue) else ()
        habits = None if as_written else _Habits(rng, dialogue.language, names)
        filling = _Filling(rng, self._words[dialogue.language])
        rounds: list[Said] = []
        if not dialogue.opens and rng.random() < history:
            rounds += self._others(dialogue, habits, rng.choice((1, 1, 1, 1, 2, 2, 3, 6)))
        for index, each in enumerate(dialogue.rounds):
            if each.after_gap:
                least = 0 if rounds else 1
                rounds += self._others(dialogue, habits, rng.choice((1, 1, 2)) if rng.random() < 2 * history else least)
            is_last = index == len(dialogue.rounds) - 1
            asked = phrasing if is_last else rng.choice(each.asked)
            asked = self._asked(asked, filling, habits)
            said = rounds[-1][0] if rounds else ""
            rounds.append((asked, filling.fill(each.answer).replace("{said}", said)))
        return Example(number, tuple(rounds))

    def _others(self, dialogue: Dialogue, habits: _Habits | None, count: int) -> list[Said]:
        rng = self._rng
        made = []
        for _ in range(count):
            # Users switch languages within a conversation, but rarely.
            language = rng.choice(LANGUAGES) if rng.random() < 0.1 else dialogue.language
            other = rng.choice(self._fillers[language])
            if quotes(dialogue) and rng.random() < 0.6:
                other = rng.choice([d for d in self._fillers[language] if "message" in d.placeholders])
            only = other.rounds[0]
            filling = _Filling(rng, self._words[language])
            asked = self._asked(rng.choice(only.asked), filling, habits)
            made.append((asked, filling.fill(only.answer)))
        return made

    def _asked(self, question: str, filling: _Filling, habits: _Habits | None) -> str:
        """Apply the typing habits, but never produce a held-back phrasing."""
        if habits is None:
            return filling.fill(question)
        other = reframed(question, habits.language, self._rng) if self._rng.random() < 0.35 else question
        typed = habits.typed(question if plain(other) in self._written else other)
        return habits.named(filling.fill(question if plain(typed) in self._held_back else typed))


def quotes(dialogue: Dialogue) -> bool:
    return "{said}" in dialogue.rounds[-1].answer


def _times(dialogue: Dialogue) -> int:
    """Return the repetitions of each phrasing in an epoch: copying needs many words."""
    if quotes(dialogue) or (dialogue.theme == "memory" and "message" in dialogue.placeholders):
        return 10
    if dialogue.theme == "memory":
        return 6 if _FACTS & dialogue.placeholders else 2
    if "message" in dialogue.placeholders:
        return 6
    return 2 if dialogue.theme == "hello" else 1  # what newcomers write first


class _Filling:
    """Words for the placeholders of one dialogue."""

    def __init__(self, rng: Random, words: PlaceholderWords, always: str | None = None) -> None:
        self._rng = rng
        self._words = words
        self._always = always
        self._bound: dict[str, str] = {}

    def fill(self, text: str) -> str:
        used: set[str] = set()

        def word(match: re.Match[str]) -> str:
            name = match[1]
            if name == "said":
                return match[0]
            if name in used:
                return self._draw(name)
            used.add(name)
            if name not in self._bound:
                self._bound[name] = self._draw(name)
            return self._bound[name]

        return PLACEHOLDER.sub(word, text)

    def _draw(self, name: str) -> str:
        rng = self._rng
        if self._always is not None:
            return self._always
        if name == "number":
            return str(rng.randrange(10 ** rng.choice((1, 2, 2, 3, 4, 6))))
        if name == "message":
            return self._message()
        if name == "thing" and rng.random() < 0.35:
            return self._some_words(rng.choice((1, 1, 2, 3)))
        if name in ("name", "place", "person") and rng.random() < 0.25:
            return self._invented()
        return rng.choice(self._words[name])

    def _message(self) -> str:
        rng = self._rng
        kind = rng.random()
        if kind < 0.4:
            return rng.choice(self._words["message"])
        if kind < 0.9:
            return self._some_words(rng.randint(1, 9))
        return " ".join(self._invented() for _ in range(rng.randint(1, 3)))

    def _some_words(self, count: int) -> str:
        words = [self._rng.choice(self._words["word"]) for _ in range(count)]
        return ("" if _is_chinese("".join(words)) else " ").join(words)

    def _invented(self) -> str:
        """Return letters, digits or rare characters that are in no word list."""
        rng = self._rng
        if rng.random() < 0.15:
            return "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(rng.randint(1, 3)))
        if _is_chinese(self._words["name"][0]) and rng.random() < 0.7:
            return "".join(rng.choice(self._words["word"]) for _ in range(rng.randint(1, 3)))
        text = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(2, 8)))
        return text.capitalize() if rng.random() < 0.5 else text + rng.choice(("", "", "7", "42", "_x"))


class _Habits:
    """Typing habits of one conversation: speakers, case, punctuation, typos."""

    def __init__(self, rng: Random, language: str, names: Sequence[str]) -> None:
        self._rng = rng
        self.language = language
        self._lower = rng.random() < 0.3
        self._bare = rng.random() < 0.35
        self._typos = rng.random() < 0.15
        self._speakers = (
            [rng.choice(names) for _ in range(rng.choice((1, 1, 2)))] if names and rng.random() < 0.15 else []
        )

    def typed(self, text: str) -> str:
        rng = self._rng
        if self.language == "zh":
            if self._bare:
                text = text.rstrip("？。！?!.")
            elif text[-1:] not in "？。！?!." and rng.random() < 0.35:
                text += "？" if rng.random() < 0.8 else "?"
            if rng.random() < 0.06:
                text = rng.choice(("请问", "那", "嗯，", "你好，", "请问一下，")) + text
        else:
            if self._bare:
                text = text.rstrip("?.!") or text
            elif text[-1:] not in "?.!" and rng.random() < 0.25:
                text += rng.choice("?.!")
            if self._lower:
                text = text.lower()
            elif rng.random() < 0.4:
                text = text[:1].upper() + text[1:]
            if rng.random() < 0.06:
                text = rng.choice(("please, ", "so ", "and ", "hey, ", "ok, ", "hi, ", "well, ", "um, ")) + text
            if self._typos and rng.random() < 0.6:
                text = self._misspelt(text)
        return text

    def _misspelt(self, text: str) -> str:
        rng = self._rng
        if PLACEHOLDER.search(text):
            return text
        places = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
        if not places:
            return text
        i = rng.choice(places)
        kind = rng.randrange(3)
        if kind == 0:
            return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
        if kind == 1:
            return text[:i] + text[i + 1 :]
        return text[:i] + text[i] + text[i:]

    def named(self, text: str) -> str:
        """Prefix the speaker, as the bot does in shared channels."""
        return f"{self._rng.choice(self._speakers)}: {text}" if self._speakers else text


def _is_chinese(text: str) -> bool:
    return bool(re.search("[\u4e00-\u9fff]", text))
