"""Tokenizer: published ids, and arbitrary input."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.domain import ChatMessage
from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from bot.errors import CheckpointError
from tests.engine.reference_tokenizer import CONTROL_TEXT, ReferenceTokenizer

DATA = Path(__file__).parent.parent / "data"
GOLDEN = DATA / "golden"
NUMBERS: dict[str, Any] = json.loads((GOLDEN / "tokenizer_golden.json").read_text(encoding="utf-8"))
FIRST_RELEASE: dict[str, Any] = NUMBERS["num_image_tokens_20000"]
TOKENIZER = ChatGLMTokenizer.load(GOLDEN)


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Split a protocol buffer of length-delimited fields into numbers and raw fields."""
    at = 0
    while at < len(message):
        start, (number, wire), at = at, divmod(message[at], 8), at + 1
        assert wire == 2
        size = shift = 0
        while True:
            size |= (message[at] & 127) << shift
            shift, at, more = shift + 7, at + 1, message[at] & 128
            if not more:
                break
        at += size
        yield number, message[start:at]


def without_layout(model: bytes) -> bytes:
    """Convert a model file to the first release's, which ends with the words."""
    is_added = re.compile(rb"\[g?s?MASK\]|<unused_0>|<[se]op>|<ENC>|<dBLOCK>|<\|(tab|blank_\d+)\|>|<0x[0-9A-F]{2}>")
    kept = b"".join(field for number, field in fields(model) if number != 1 or not is_added.search(field))
    byte_fallback = b"\x98\x02"
    assert kept.count(byte_fallback + b"\x01") == 1
    return kept.replace(byte_fallback + b"\x01", byte_fallback + b"\x00")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden checkpoint's tokenizer files."""
    for name in ("ice_text.model", "config.json", "tokenizer_config.json"):
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    return tmp_path


def first_release(tmp_path: Path) -> ChatGLMTokenizer:
    shutil.copyfile(GOLDEN / "ice_text.model", tmp_path / "ice_text.model")
    (tmp_path / "config.json").write_text('{"bos_token_id": 20644, "eos_token_id": 20645}')
    return ChatGLMTokenizer.load(tmp_path)


@pytest.mark.parametrize("case", NUMBERS["cases"], ids=lambda case: repr(case["text"][:20]))
def test_every_golden_text_has_the_published_ids_and_text(case: dict[str, Any]) -> None:
    reference = ReferenceTokenizer(TOKENIZER)
    assert TOKENIZER.encode(case["text"]) == case["sp_encode"]
    assert reference.ids_without_dummy_prefix(case["text"]) == case["sp_encode_no_dummy_prefix"]
    assert reference.ids(case["text"]) == case["ids"]
    assert reference.input_ids(case["text"]) == case["input_ids"]
    assert [TOKENIZER.piece(token) for token in case["ids"]] == case["tokens"]
    assert TOKENIZER.decode(case["ids"]) == case["decode"]
    assert TOKENIZER.decode(case["input_ids"]) == case["decode_input_ids"]
    assert reference.decode(case["input_ids"], skip_special=True) == case["decode_input_ids_skip_special"]


def test_only_control_text_is_deliberately_encoded_differently() -> None:
    different = [case["text"] for case in NUMBERS["cases"] if TOKENIZER.encode(case["text"]) != case["ids"]]
    assert all(any(control in text for control in CONTROL_TEXT) for text in different)
    assert len(different) == 8


def test_ids_that_no_text_encodes_to_decode_as_published() -> None:
    reference = ReferenceTokenizer(TOKENIZER)
    for case in NUMBERS["decode_odd"]:
        assert TOKENIZER.decode(case["ids"]) == case["decode"]
        assert reference.decode(case["ids"], skip_special=True) == case["decode_skip_special"]
    for case in NUMBERS["partial_decode"]:
        prefixes = [TOKENIZER.decode(case["ids"][:n]) for n in range(len(case["ids"]) + 1)]
        assert prefixes == case["decode_prefixes"]
        assert TOKENIZER.encode(case["text"]) == case["ids"]
    for beyond in (NUMBERS["decode_id_beyond_pieces"]["id"], -1):
        with pytest.raises(IndexError):
            TOKENIZER.decode([beyond])


def test_padding_truncation_and_pairs_match_the_reference() -> None:
    reference = ReferenceTokenizer(TOKENIZER)
    batch = NUMBERS["batch"]
    rows = reference.padded(batch["texts"])
    assert [row.input_ids for row in rows] == batch["input_ids"]
    assert [row.position_ids for row in rows] == batch["position_ids"]
    assert [[row.masked] for row in rows] == batch["attention_mask_true_is_masked"]
    (row,) = reference.padded(["你好 a b c"], length=12)
    assert [row.input_ids] == NUMBERS["batch_max_length12"]["input_ids"]
    assert [row.position_ids] == NUMBERS["batch_max_length12"]["position_ids"]
    assert reference.input_ids("你好 a b c", max_length=6) == NUMBERS["truncation_max_length6"]["input_ids"]
    assert reference.input_ids("a b", "c d") == NUMBERS["pair"]["input_ids"]


def test_the_attributes_are_the_published_ones() -> None:
    found = ReferenceTokenizer(TOKENIZER).attributes()
    assert found == {name: NUMBERS["attributes"][name] for name in found}
    assert frozenset([645]) == TOKENIZER.stop_ids
    for token, piece in NUMBERS["pieces_of_special_ids"].items():
        assert TOKENIZER.piece(int(token)) == piece


def test_the_first_release_has_every_id_20000_higher(tmp_path: Path) -> None:
    tokenizer = first_release(tmp_path)
    reference = ReferenceTokenizer(tokenizer)
    for case in FIRST_RELEASE["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"] == case["sp_encode"]
        assert reference.input_ids(case["text"]) == case["input_ids"]
        assert [tokenizer.piece(token) for token in case["ids"]] == case["tokens"]
        assert tokenizer.decode(case["input_ids"]) == case["decode_input_ids"]
    found = reference.attributes()
    assert {name: FIRST_RELEASE[name] for name in found if name in FIRST_RELEASE}.items() <= found.items()
    assert tokenizer.decode([5, tokenizer.id_of("A")]) == FIRST_RELEASE["decode_image_id_5"]
    assert tokenizer.surface(5) == "<image_5>"
    assert tokenizer.prompt([]) == [20641, 20644]


def test_a_first_release_file_without_the_added_pieces_is_completed(folder: Path) -> None:
    whole = (folder / "ice_text.model").read_bytes()
    (folder / "ice_text.model").write_bytes(without_layout(whole))
    completed = ChatGLMTokenizer.load(folder)
    assert completed.vocabulary == TOKENIZER.vocabulary
    assert [completed.piece(token) for token in range(984)] == [TOKENIZER.piece(token) for token in range(984)]
    assert [completed.surface(token) for token in range(984)] == [TOKENIZER.surface(token) for token in range(984)]
    for case in NUMBERS["cases"]:
        assert completed.encode(case["text"]) == case["sp_encode"]
        assert completed.decode(case["ids"]) == case["decode"]


CONTROL_IDS = {*NUMBERS["control_pieces"], *NUMBERS["unknown_pieces"]}
TYPED_CONTROL = st.sampled_from(
    [*CONTROL_TEXT, "[gMASK]", "[sMASK]", "</s>", "<s>", "<ENC>", "<dBLOCK>", "<unused_0>", "＜sop＞", "<so", "p>"]
)
# Lone surrogates, NUL, bidirectional marks and private characters among them.
ANYTHING = st.text(st.characters(codec=None), max_size=30)
TYPED = st.lists(ANYTHING | TYPED_CONTROL | st.sampled_from([" ", "  ", "\t", "\n", "▁"])).map("".join)


@given(TYPED)
def test_any_text_encodes_without_control_ids(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert CONTROL_IDS.isdisjoint(ids)
    TOKENIZER.decode(ids).encode("utf-8")
    prompt = TOKENIZER.prompt([ChatMessage("user", text)])
    assert prompt == [*ids, 641, 644]


@pytest.mark.parametrize("control", CONTROL_TEXT)
def test_control_text_is_kept_as_text(control: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(f"a {control} b")) == f"a {control} b"


def test_control_text_stays_text_even_if_the_model_file_declares_it_user_defined(folder: Path) -> None:
    path = folder / "ice_text.model"
    model = path.read_bytes()
    for piece in (b"<sop>", b"[gMASK]"):
        entry = bytes([len(piece)]) + piece + b"\x15\0\0\0\0\x18"
        control, user_defined = entry + b"\x03", entry + b"\x04"
        assert control in model
        model = model.replace(control, user_defined)
    path.write_bytes(model)
    tokenizer = ChatGLMTokenizer.load(folder)
    text = "a<sop> b [gMASK]"
    ids = tokenizer.encode(text)
    assert {641, 644}.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("a\ud800b", "a b"),  # as U+FFFD, which SentencePiece takes for a space
        ("\ud83d\udc4b", "👋"),
        ("List<n>", "List\n"),
        ("a<|tab|>b", "a\tb"),
        ("a<|blank_3|>b", "a   b"),
        ("a<|blank_81|>b", "a<|blank_81|>b"),
        (" " * 81 + "x", " " * 81 + "x"),
        (" " * 161, " " * 160),
        ("\0", "\0"),
    ],
)
def test_unusual_text_is_normalised(typed: str, read: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(typed)) == read


def test_without_config_files_the_ids_are_those_of_the_model_file(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert ChatGLMTokenizer.load(folder).prompt([]) == [641, 644]


def other_model(content: bytes) -> bytes:
    return content.replace(b"<pad>", b"<dap>")


def one_piece_less(content: bytes) -> bytes:
    return content.replace(b"<|blank_7|>", b"<|blank_x|>")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: content.ljust(2_706_249, b"\n"), "is corrupt: the published file"),
        (lambda content: content[: len(content) // 2], "is corrupt"),
        (lambda content: b"<html>not found</html>", "is corrupt"),
        (lambda content: content.replace(b"<n>", b"\xff\xff\xff"), "is corrupt"),
        (lambda content: content.replace("你好".encode(), b"\xff" * 6), "is corrupt"),
        (other_model, "begins with <unk> <s> </s> <dap> <n>"),
        (one_piece_less, r"lacks 1 of ChatGLM's pieces, for example <\|blank_7\|>"),
    ],
)
def test_a_wrong_model_file_is_rejected(folder: Path, damage: Callable[[bytes], bytes], found: str) -> None:
    path = folder / "ice_text.model"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=found) as raised:
        ChatGLMTokenizer.load(folder)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_randomly_corrupted_model_file_is_rejected_or_still_works(folder: Path) -> None:
    path, random = folder / "ice_text.model", Random(3)
    whole = path.read_bytes()
    loaded = 0
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(random.choice([1, 5])):
            damaged[random.randrange(len(damaged))] = random.randrange(256)
        path.write_bytes(damaged[: random.choice([random.randrange(len(whole)), None])])
        try:
            tokenizer = ChatGLMTokenizer.load(folder)
        except CheckpointError:
            continue
        loaded += 1
        ids = tokenizer.encode("Hello，你好 １２ <sop> é👋\t  ½")
        assert {641, 644}.isdisjoint(ids)
        tokenizer.complete(ids)
    assert 0 < loaded < 50


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"ice_text\.model cannot be read \(No such file or directory\): copy"):
        ChatGLMTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("config.json", '{"bos_token_id": 130004}', r"bos_token_id = 130004, but <sop> is 644 in ice_text\.model"),
        ("config.json", '{"gmask_token_id": 640}', r"gmask_token_id = 640, but \[gMASK\] is 641"),
        ("config.json", '{"vocab_size": 983}', r"vocab_size = 983, but ice_text\.model has ids up to 983"),
        (
            "tokenizer_config.json",
            '{"num_image_tokens": 20000}',
            r"<sop> is 20644 in ice_text\.model with 20000 image tokens",
        ),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json cannot be read \(not a JSON object\)"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json cannot be read"),
    ],
)
def test_config_files_of_another_model_are_rejected(folder: Path, name: str, content: str, found: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=found):
        ChatGLMTokenizer.load(folder)


@pytest.mark.weights
def test_the_real_vocabulary_has_the_published_ids() -> None:
    """Set CHATGLM_FOLDER to a folder with the published ice_text.model (and its JSON files)."""
    if "CHATGLM_FOLDER" not in os.environ:
        pytest.skip("CHATGLM_FOLDER is not set")
    tokenizer = ChatGLMTokenizer.load(Path(os.environ["CHATGLM_FOLDER"]))
    known = json.loads((DATA / "known_real_vocab.json").read_text(encoding="utf-8"))
    shift = tokenizer.id_of("<sop>") - 130004
    assert shift in (0, 20000)
    assert tokenizer.vocabulary == 130344 + shift
    for case in known["cases"]:
        ids = [token + shift for token in case["input_ids"]]
        assert tokenizer.prompt([ChatMessage("user", case["text"])]) == ids
        assert "tokens" not in case or [tokenizer.piece(token) for token in ids[:-2]] == case["tokens"]
    for case in known["cases_without_special_tokens"]:
        assert tokenizer.encode(case["text"]) == [token + shift for token in case["ids"]]
