"""Incremental detokenisation: returned text never changes, and little is held back."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer

from bot.engine.chatglm.text import CLEAN_UP, AnswerDetokenizer, OutsideCode, PieceDecoder, Replace, expand, respond
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.serving.base import Detokenizer
from bot.engine.serving.detokenizer import StopStrings

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
RUNS: dict[str, Any] = json.loads((GOLDEN / "chat_golden.json").read_text(encoding="utf-8"))
TOKENIZER = ChatGLMTokenizer.load(GOLDEN)
PIECES = TOKENIZER.vocabulary
# What may be code: a backtick, a fence, an indented line.
MAYBE_CODE = re.compile(r"`|~~~|^ {0,3}\t|^ {4}", re.MULTILINE)


def deltas(stream: Detokenizer, ids: Sequence[int]) -> list[str]:
    return [*map(stream.push, ids), stream.finish()]


def published(ids: Sequence[int], tokenizer: ChatGLMTokenizer = TOKENIZER) -> str:
    """Return the answer as the published code has it, which also tidies code."""
    return respond(tokenizer.decode(ids))


def as_written(ids: Sequence[int], tokenizer: ChatGLMTokenizer = TOKENIZER) -> str:
    """Return the answer before it is tidied."""
    decoder = PieceDecoder(tokenizer)
    return expand("".join(map(decoder.push, ids)) + decoder.finish())


def streamed(ids: Sequence[int]) -> str:
    return "".join(deltas(TOKENIZER.detokenizer(), ids))


class Words:
    """A detokenizer whose ids index the given words; `late` is the text it holds back."""

    def __init__(self, words: Sequence[str], late: str = "") -> None:
        self._words = words
        self._late = late

    def push(self, token: int) -> str:
        return self._words[token]

    def finish(self) -> str:
        return self._late


def cut(words: Sequence[str], stop: Sequence[str], late: str = "") -> tuple[list[str], bool]:
    stream = StopStrings(Words(words, late), stop)
    return deltas(stream, range(len(words))), stream.stopped


# The published answer


@pytest.mark.parametrize("case", RUNS["chat"], ids=lambda case: case["note"])
def test_every_golden_answer_matches_whole_and_streamed(case: dict[str, Any]) -> None:
    assert TOKENIZER.complete(case["output_ids"]) == case["response"]
    assert streamed(case["output_ids"]) == case["response"]
    assert TOKENIZER.decode(case["output_ids"]) == case["raw_decode"]


@pytest.mark.parametrize("case", RUNS["process_response"], ids=lambda case: repr(case["input"]))
def test_every_golden_text_is_post_processed_as_published(case: dict[str, Any]) -> None:
    assert respond(case["input"]) == case["output"]


def published_punctuation(text: str) -> str:
    """Replace marks beside Chinese in the published order: one mark at a time, before and after."""
    for mark, wide in zip(",!:;?", "，！：；？", strict=True):
        text = re.sub(f"([\u4e00-\u9fff])\\{mark}", rf"\1{wide}", text)
        text = re.sub(f"\\{mark}([\u4e00-\u9fff])", rf"{wide}\1", text)
    return text


@given(st.text("好龥a ,!:;?，", max_size=12))
def test_full_width_marks_equal_the_published_order_of_replacements(text: str) -> None:
    assert respond(f"a{text}a") == published_punctuation(f"a{text}a")


# Incremental answers

KINDS_OF_ID = (
    st.integers(0, PIECES - 1),
    st.integers(728, 983),  # bytes
    st.sampled_from([0, 1, 3, 4, 301, 645, 648, 649]),  # unknown, control, padding, white space
)
# Everything that can be held back: gaps, quotes, brackets, white-space codes, marks, Chinese.
WAITING = st.text("  ,.!?:;''ntvemrs[]训练时间<|blank_8>\t\n1好", max_size=12)
TROUBLE = (
    "[[训练时间]]",
    "[[训练时[[训练时间]]",
    " ' ",
    " n't",
    " 've",
    " 're",
    " ' 's .",
    "<n>",
    "<|tab|>",
    "<|blank_80|>",
    "é👋",
)
IDS = st.lists(
    st.one_of(
        *(kind.map(lambda token: [token]) for kind in KINDS_OF_ID),
        (WAITING | st.sampled_from(TROUBLE)).map(TOKENIZER.encode),
    )
).map(lambda parts: [token for part in parts for token in part])


@settings(max_examples=600, deadline=None)
@given(IDS)
@example([301, 301, 767, 301])  # ▁ ▁ ' ▁: a gap that is the dropped space's only if one is dropped
@example([956, 3, 917, 1, 888])  # padding inside a character, a control id inside the next
def test_the_deltas_joined_are_the_published_answer(ids: list[int]) -> None:
    assume(not MAYBE_CODE.search(as_written(ids)))
    assert streamed(ids) == published(ids)


CODE_CASES = [
    ("`git add .` does it , he said", "`git add .` does it, he said"),
    (
        "so :\n```sh\nls . ; cd .. ; test x != y\n```\nthat is all , 好,吗",
        "so :\n```sh\nls . ; cd .. ; test x != y\n```\nthat is all, 好,吗",
    ),
    ("> - ```\n> a = b 's , c\n> ```\n> and now , then", "> - ```\n> a = b 's , c\n> ```\n> and now, then"),
    ("``a ` . b`` , c", "``a ` . b``, c"),
    ("a ` that is not closed .\nnext , line", "a ` that is not closed .\nnext, line"),
    ("````\n```\nx .\n````\ny .", "````\n```\nx .\n````\ny."),
    ("~~~sh\ncp a .\n~~~\nnow , go", "~~~sh\ncp a .\n~~~\nnow, go"),
    ("~~~~\n~~~\n```\nx .\n~~~~~\ny .", "~~~~\n~~~\n```\nx .\n~~~~~\ny."),
    ("```\n~~~\nx .\n```\ny .", "```\n~~~\nx .\n```\ny."),
    ("~~gone~~ , and ~~~ .\nnext .", "~~gone~~, and ~~~.\nnext."),
    ("run :\n\n    cp a .\n\n\tls . ?\nthat is all .", "run :\n\n    cp a .\n\n\tls . ?\nthat is all."),
    ("    a .\n    b .\n   c .", "    a .\n    b .\n   c."),
    ("    a .\n\n .", "    a .\n\n."),
    ("one\n    two .\n\n   three .", "one\n    two.\n\n   three."),
    ("1. one\n\n    two .\n\n       ls .\n\nx\n\n    y .", "1. one\n\n    two.\n\n       ls .\n\nx\n\n    y ."),
    ("- a\n    - b\n\n      c .\n\n          d .", "- a\n    - b\n\n      c.\n\n          d ."),
]


@pytest.mark.parametrize(("written", "shown"), CODE_CASES)
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_code_is_left_as_it_is(written: str, shown: str, step: int) -> None:
    pieces = [written[at : at + step] for at in range(0, len(written), step)]
    tidy = OutsideCode(*(Replace({gap: closed}) for gap, closed in CLEAN_UP))
    assert "".join([*map(tidy.push, pieces), tidy.finish()]) == shown


def test_code_is_left_as_it_is_in_an_answer() -> None:
    written = CODE_CASES[1][0]
    assert streamed(TOKENIZER.encode(written)) == CODE_CASES[1][1].replace("好,吗", "好，吗")


@settings(max_examples=150, deadline=None)
@given(IDS)
def test_returned_text_is_a_prefix_of_every_later_answer(ids: list[int]) -> None:
    stream, shown = TOKENIZER.detokenizer(), ""
    for n, token in enumerate(ids, 1):
        shown += stream.push(token)
        shown.encode("utf-8")
        whole = TOKENIZER.complete(ids[:n])
        assert whole.startswith(shown.rstrip())


def waiting(ids: Sequence[int]) -> list[str]:
    """Yield the complete characters held back after each id, without white space."""
    stream, shown, found = TOKENIZER.detokenizer(), 0, []
    for n, token in enumerate(ids, 1):
        shown += len(stream.push(token))
        found.append("".join(TOKENIZER.complete(ids[:n])[shown:].rstrip("\ufffd").split()))
    return found


@settings(max_examples=150, deadline=None)
@given(IDS)
def test_at_most_a_few_characters_are_held_back(ids: list[int]) -> None:
    # Consecutive prefixes of "[[训练时间]]", " n't", " 've" and "<|blank_80|>".
    assert max(map(len, waiting(ids)), default=0) <= 25


ENGLISH = (
    "Sure! I don't know everything, but here's what I'd try first: \"check the cable\", then ask: who's seen it? "
    "It's never 'very' hard; it's 3.5 times easier.\n\n1. Open it.\n2. Read `config.toml` (see [here](https://a.b/c)).\n"
)
CHINESE = "你好！我是一个聊天机器人，很高兴见到你。你可以问：“今天天气怎么样？”或者：1, 2, 3；别的也行!\n\n再见👋"
CODE = "```python\ndef f(x):\n    if x < 0 and x != 1:\n        return {'a': [x, 1]}\n\treturn x\n```\n"


@pytest.mark.parametrize(("text", "most"), [(ENGLISH, 2), (CHINESE, 1), (CODE, 3)], ids=["English", "Chinese", "code"])
def test_few_characters_of_an_ordinary_answer_are_held_back(text: str, most: int) -> None:
    lengths = [*map(len, waiting(TOKENIZER.encode(text)))]
    assert max(lengths) == most
    assert lengths.count(0) > 0.65 * len(lengths)


def test_a_character_is_returned_with_its_last_byte() -> None:
    assert deltas(TOKENIZER.detokenizer(), TOKENIZER.encode("👋")) == ["", "", "", "", "👋", ""]


def test_a_mark_is_held_back_until_the_next_character_is_known() -> None:
    comma, chinese, latin = TOKENIZER.id_of(","), TOKENIZER.id_of("你好"), TOKENIZER.id_of("a")
    assert deltas(TOKENIZER.detokenizer(), [latin, comma, chinese]) == ["a", "", "，你好", ""]
    assert deltas(TOKENIZER.detokenizer(), [latin, comma, latin]) == ["a", "", ",a", ""]
    assert deltas(TOKENIZER.detokenizer(), [chinese, comma, latin]) == ["你好", "，", "a", ""]
    assert deltas(TOKENIZER.detokenizer(), [latin, comma]) == ["a", "", ","]


def test_trailing_white_space_is_never_returned() -> None:
    latin, newline = TOKENIZER.id_of("a"), TOKENIZER.id_of("<n>")
    assert deltas(TOKENIZER.detokenizer(), [newline, latin, newline, newline, latin, newline]) == [
        "", "a", "", "", "\n\na", "", "",
    ]  # fmt: skip


class Counted:
    """The tokenizer's pieces; counts lookups."""

    leading_spaces_dropped = TOKENIZER.leading_spaces_dropped

    def __init__(self) -> None:
        self.lookups = 0

    def surface(self, token: int) -> str | bytes | None:
        self.lookups += 1
        return TOKENIZER.surface(token)


def test_each_id_is_decoded_once() -> None:
    pieces, ids = Counted(), TOKENIZER.encode(ENGLISH)
    assert "".join(deltas(AnswerDetokenizer(pieces), ids)) == published(ids)
    assert pieces.lookups == len(ids)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize(
    ("removes", "prefixes", "dropped"), [(True, True, sys.maxsize), (False, True, 1), (False, False, 0)]
)
def test_the_deltas_joined_are_the_complete_answer_in_other_vocabularies(
    tmp_path: Path, kind: str, removes: bool, prefixes: bool, dropped: int
) -> None:
    SentencePieceTrainer.train(
        sentence_iterator=iter((ENGLISH + CHINESE + CODE).splitlines()),
        model_prefix=str(tmp_path / "ice_text"),
        model_type=kind,
        vocab_size=170,
        hard_vocab_limit=False,
        pad_id=3,
        user_defined_symbols=["<n>"],
        remove_extra_whitespaces=removes,
        add_dummy_prefix=prefixes,
        minloglevel=2,
    )
    tokenizer, random = ChatGLMTokenizer.load(tmp_path), Random(7)
    assert tokenizer.leading_spaces_dropped == dropped
    parts = [tokenizer.encode(text) for text in (*TROUBLE, ENGLISH, CHINESE, CODE)]
    parts += [[tokenizer.id_of("▁")], [tokenizer.id_of("<0x27>")]] * 5 + [[token] for token in range(5)]
    for _ in range(300):
        ids = [token for part in random.choices(parts, k=random.randrange(8)) for token in part]
        ids += random.choices(range(tokenizer.vocabulary), k=2)
        answer = "".join(deltas(tokenizer.detokenizer(), ids))
        assert answer == published(ids, tokenizer) or MAYBE_CODE.search(as_written(ids, tokenizer))


# Stop strings, over any detokenizer


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert cut(["a", "b ", ""], [], late="c") == (["a", "b ", "", "c"], False)
    assert cut(["a"], [""]) == (["a", ""], False)


def test_the_answer_ends_where_the_stop_string_begins() -> None:
    assert cut(["one ST", "OP two", "three"], ["STOP"], late="late") == (["one ", "", "", ""], True)


def test_a_held_back_prefix_is_returned_if_the_stop_string_does_not_follow() -> None:
    assert cut(["aS", "T", "Ob"], ["STOP"]) == (["a", "", "STOb", ""], False)
    assert cut(["aSST", "OP"], ["STOP"]) == (["aS", "", ""], True)
    assert cut(["aST"], ["STOP"]) == (["a", "ST"], False)


def test_flushed_text_can_complete_a_stop_string() -> None:
    assert cut(["a ST"], ["STOP"], late="OP b") == (["a ", ""], True)


def test_the_stop_string_completed_first_wins() -> None:
    assert cut(["xabcd"], ["abcd", "c"]) == (["xab", ""], True)
    assert cut(["xabc"], ["bc", "abc"]) == (["x", ""], True)


STOPS = st.lists(st.text("ab", max_size=4), max_size=3)


@given(st.lists(st.text("abc", max_size=4)), STOPS, st.text("abc", max_size=3))
def test_token_boundaries_do_not_change_the_stop(words: list[str], stop: list[str], late: str) -> None:
    shown, stopped = cut(words, stop, late)
    letters = list("".join(words) + late)
    by_letter, stopped_by_letter = cut(letters, stop)
    assert ("".join(shown), stopped) == ("".join(by_letter), stopped_by_letter)
    assert stopped == any(text and text in "".join(letters) for text in stop)
    assert "".join(letters).startswith("".join(shown))
    assert not any(text and text in "".join(shown) for text in stop)


def test_stop_strings_match_the_post_processed_text() -> None:
    stream = StopStrings(TOKENIZER.detokenizer(), ["，"])
    assert "".join(deltas(stream, TOKENIZER.encode("你好, a"))) == "你好"
    assert stream.stopped
