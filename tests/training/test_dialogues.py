"""Dialogues of the demo model: format, unique questions, held-back phrasings."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.model_folder import DEMO
from training.dialogues import LANGUAGES, PLACEHOLDER, Dialogue, DialogueError, parse, read_all, read_words
from training.examples import Examples
from training.phrasings import plain, reframed


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    return read_all()


def alone(dialogue: Dialogue) -> bool:
    """Return whether the answer does not depend on earlier rounds."""
    return len(dialogue.rounds) == 1 and not dialogue.opens and not dialogue.rounds[0].after_gap


def test_both_languages_have_enough_dialogues(dialogues: list[Dialogue]) -> None:
    count = Counter(dialogue.language for dialogue in dialogues)
    assert sum(count.values()) >= 350
    assert abs(count["en"] - count["zh"]) <= 0.05 * count["en"]
    phrasings = sum(len(d.rounds[-1].asked) + len(d.rounds[-1].held_back) for d in dialogues)
    assert phrasings / len(dialogues) >= 4


def test_no_question_has_two_answers(dialogues: list[Dialogue]) -> None:
    """Nor one in each language: the model would answer English names in Chinese."""
    asked: dict[str, set[str]] = {}
    for dialogue in filter(alone, dialogues):
        for question in (*dialogue.rounds[0].asked, *dialogue.rounds[0].held_back):
            if not PLACEHOLDER.fullmatch(plain(question)):  # any message
                asked.setdefault(plain(question), set()).add(dialogue.rounds[0].answer)
    assert not [question for question, answers in asked.items() if len(answers) > 1]


def test_held_back_phrasings_are_not_training_phrasings(dialogues: list[Dialogue]) -> None:
    for dialogue in dialogues:
        last = dialogue.rounds[-1]
        assert not set(map(plain, last.held_back)) & set(map(plain, last.asked)), dialogue.rounds


def test_every_answer_survives_the_tokenizer(dialogues: list[Dialogue]) -> None:
    tokenizer = ChatGLMTokenizer.load(DEMO)
    for dialogue in dialogues:
        for each in dialogue.rounds:
            assert tokenizer.complete(tokenizer.encode(each.answer)) == each.answer


def test_the_files_have_the_same_themes_in_both_languages() -> None:
    folder = Path(__file__).parents[2] / "training" / "dialogues"
    english, chinese = ({path.name for path in (folder / language).iterdir()} for language in LANGUAGES)
    assert english == chinese


def test_examples_depend_on_the_seed_alone() -> None:
    first, again, other = (Examples(Random(seed)) for seed in (1, 1, 2))
    keep = [1.0] * len(first.dialogues)
    assert first.epoch(0.4, keep) == again.epoch(0.4, keep) != other.epoch(0.4, keep)


def test_held_back_phrasings_are_never_trained_on(dialogues: list[Dialogue]) -> None:
    held_back = {plain(q) for d in dialogues for q in d.rounds[-1].held_back if not PLACEHOLDER.search(q)}
    examples = Examples(Random(5))
    for _ in range(2):
        for example in examples.epoch(0.2, [1.0] * len(dialogues)):
            assert not held_back & {plain(asked) for asked, _ in example.rounds}


def test_a_question_is_rephrased() -> None:
    others = {reframed("How do I stop you?", "en", Random(seed)) for seed in range(40)}
    assert "how can I stop you?" in others
    assert len(others) > 10
    assert reframed("hello", "en", Random(1)) == "hello"
    assert "如何退出" in {reframed("怎么退出", "zh", Random(seed)) for seed in range(40)}


def test_examples_contain_no_placeholder() -> None:
    examples = Examples(Random(3))
    for example in examples.epoch(0.4, [0.3] * len(examples.dialogues)):
        assert not any(PLACEHOLDER.search(text) for said in example.rounds for text in said)


def test_the_user_is_quoted_verbatim() -> None:
    examples = Examples(Random(4))
    for number, dialogue in enumerate(examples.dialogues):
        if "{said}" in dialogue.rounds[-1].answer:
            example = examples.example(number, dialogue.rounds[-1].asked[0], as_written=True)
            assert example.rounds[-2][0] in example.answer


def test_word_lists_have_no_duplicates() -> None:
    for language in LANGUAGES:
        for entries in read_words(language).lists.values():
            assert len(entries) >= 40
            assert not [entry for entry, count in Counter(entries).items() if count > 1]


@pytest.mark.parametrize("text", ["> an answer", "? a question", "? q\n! what", "? q\n...\n> a"])
def test_a_format_error_names_its_line(text: str) -> None:
    with pytest.raises(DialogueError, match=r"en/theme\.txt:\d"):
        list(parse(text, "en", "theme"))
