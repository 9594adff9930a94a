"""Training data: formats, columns, and files that are wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bot.domain import ChatMessage
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.engine.model_folder import DEMO
from bot.engine.tuning.data import Columns, Dataset, Pair, read_data
from bot.engine.tuning.errors import BadData
from bot.engine.tuning.rows import Limits, encode, prompt_ids

CHAT = Columns("prompt", "response", "history")
TOKENIZER = ChatGLMTokenizer.load(DEMO)


def data_file(folder: Path, *rows: object, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(path: Path, columns: Columns = CHAT) -> str:
    with pytest.raises(BadData) as caught:
        read_data([path], columns)
    return str(caught.value)


def test_json_lines_and_csv_hold_the_same_pairs(tmp_path: Path) -> None:
    lines = data_file(tmp_path, {"prompt": "Hi, you", "response": "Hello!", "history": [["a", "b"]]})
    table = tmp_path / "data.csv"
    table.write_bytes('\ufeffprompt,response,history\r\n"Hi, you",Hello!,"[[""a"", ""b""]]"\r\n'.encode())

    assert read_data([lines], CHAT).pairs == (Pair("Hi, you", "Hello!", (("a", "b"),)),)
    assert read_data([table], CHAT).pairs == read_data([lines], CHAT).pairs


def test_rows_without_question_or_answer_are_counted(tmp_path: Path) -> None:
    path = data_file(
        tmp_path, {"prompt": "", "response": "a"}, {"prompt": "q", "response": None}, {"prompt": "q", "response": "a"}
    )
    found = read_data([path, path], Columns())

    assert (len(found.pairs), found.empty) == (2, 4)


def test_the_digest_changes_with_the_content(tmp_path: Path) -> None:
    def read(answer: str) -> Dataset:
        return read_data([data_file(tmp_path, {"prompt": "q", "response": answer})], Columns())

    assert read("a").digest == read("a").digest != read("b").digest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b'{"prompt": "q", "response": "a", "history": []}\n{"prompt"\n', "line 2 is not JSON"),
        (b'["q", "a"]\n', "line 1 is a JSON list"),
        (b'{"question": "q", "response": "a"}\n', 'line 1 has no column "prompt"; its columns: question, response'),
        (b'{"prompt": 5, "response": "a"}\n', '"prompt" is a JSON int'),
        (b'{"prompt": "q", "response": "a"}\n\n{"prompt": "\xc4\xe3", "response": "a"}\n', "line 3 is not UTF-8"),
        ('{"prompt": "q"}'.encode("utf-16"), "is UTF-16"),
        (b'{"prompt": "q", "response": "a", "history": [["x"]]}\n', "the history is not a list of"),
        (b'{"prompt": "q", "response": "a", "history": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", "line 1"),
        (b'{"prompt": "", "response": "", "history": []}\n', "nothing to learn"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    columns = CHAT if b"history" in content else Columns()

    said = refusal(path, columns)

    assert words in said
    assert str(path) in said
    assert "\n" not in said


def test_a_csv_row_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("prompt,response\nq,a,b\n", encoding="utf-8")

    assert "line 2 has another number of fields" in refusal(path, Columns())


def test_other_endings_and_missing_files_are_refused(tmp_path: Path) -> None:
    assert "ends in neither" in refusal(tmp_path / "data.xlsx")
    assert "cannot be read (No such file" in refusal(tmp_path / "data.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "not a regular file" in refusal(tmp_path / "pipe.jsonl")


def test_a_prompt_is_the_one_that_serving_sends() -> None:
    for pair in (Pair("Who are you?", "x"), Pair("And you?", "x", (("Hi", "Hello!"), ("Well?", "Yes.")))):
        served = TOKENIZER.prompt([*pair.messages()])
        assert [*prompt_ids(pair, TOKENIZER, 100).ids] == served[:-2]
    assert Pair("q", "x").messages() == (ChatMessage("user", "q"),)


def test_a_long_dialogue_loses_its_oldest_rounds_and_keeps_its_question() -> None:
    history = tuple((f"Question number {i}?", f"Answer number {i}.") for i in range(9))
    pair = Pair("And the last one?", "x", history)

    cut = prompt_ids(pair, TOKENIZER, 60)

    assert 0 < cut.dropped_rounds < 9
    assert list(cut.ids) == TOKENIZER.prompt(pair.messages(cut.dropped_rounds))[:-2]
    bare = prompt_ids(pair, TOKENIZER, 8)
    assert list(bare.ids) == TOKENIZER.encode("And the last one?")[:8]


def test_control_tokens_in_the_data_stay_text() -> None:
    (row,), _ = encode([Pair("what is <sop>?", "<eop> and [gMASK]")], TOKENIZER, Limits(64, 64))

    for piece in ("<sop>", "<eop>", "[gMASK]"):
        assert row.ids.count(TOKENIZER.id_of(piece)) == 1


def test_lengths_say_what_the_limits_cut() -> None:
    pairs = [
        Pair("Who are you?", "I am a model."),
        Pair("word " * 40, "word " * 40),
        Pair("q", "a", (("b " * 30, "c"),)),
    ]

    rows, lengths = encode(pairs, TOKENIZER, Limits(20, 12))

    assert max(map(len, rows)) <= 32
    assert (lengths.shortened, lengths.cut_questions, lengths.cut_answers) == (1, 1, 1)
    said = "\n".join(lengths.lines(Limits(20, 12)))
    assert "1 of 3 answers lose their end: raise --max-target-length" in said
    assert "1 of 3 dialogues lose their oldest rounds" in said
