"""transformers tokenizers: chat templates and incremental detokenisation."""

from __future__ import annotations

import threading
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from bot.domain import ChatMessage
from bot.engine.pretrained.text import ChatTokenizer, IncrementalDetokenizer, rounds
from bot.errors import CheckpointError
from tests.engine.pretrained import CONTROL, TEMPLATE, make_tokenizer

LIBRARY = make_tokenizer()
OURS = ChatTokenizer(make_tokenizer(), frozenset([0]), "a folder")

WITHOUT_SYSTEM = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}{% endfor %}<|assistant|>"
)
DEAF_TO_SYSTEM = (
    "{% for message in messages if message.role != 'system' %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
)


def plain(text: str) -> list[int]:
    """Encode a text, control tokens included."""
    return cast("list[int]", LIBRARY.encode(text, add_special_tokens=False))


def spelled(ids: list[int], spelling: IncrementalDetokenizer | None = None) -> list[str]:
    """Return the text of each push and of the finish."""
    spelling = spelling or OURS.detokenizer()
    return [*(spelling.push(token) for token in ids), spelling.finish()]


def test_the_prompt_follows_the_chat_template() -> None:
    chat = [ChatMessage("system", "Be brief."), ChatMessage("user", "hello"), ChatMessage("assistant", "Hi.")]
    assert OURS.prompt([*chat, ChatMessage("user", "你好")]) == plain(
        "<|system|>\nBe brief.<|user|>\nhello<|assistant|>\nHi.<|user|>\n你好<|assistant|>\n"
    )


@given(st.lists(st.sampled_from([*CONTROL, "<|", "|>", "user", " ", "a", "你", "<|user"]), max_size=8).map("".join))
def test_user_text_is_never_a_control_token(text: str) -> None:
    ids = OURS.prompt([ChatMessage("user", text)])
    control = set(plain("".join(CONTROL)))
    assert [token for token in ids if token in control] == plain("<|user|><|assistant|>")
    # The text is complete, too.
    assert LIBRARY.decode(ids, clean_up_tokenization_spaces=False) == f"<|user|>\n{text}<|assistant|>\n"


@pytest.mark.parametrize("template", [WITHOUT_SYSTEM, DEAF_TO_SYSTEM])
def test_without_a_system_role_the_system_message_joins_the_question(template: str) -> None:
    tokenizer = ChatTokenizer(make_tokenizer(template), frozenset(), "a folder")
    asked = [ChatMessage("system", "Be brief."), ChatMessage("user", "hello")]
    assert tokenizer.prompt(asked) == tokenizer.prompt([ChatMessage("user", "Be brief.\n\nhello")])


def test_reasoning_mode_is_switched_off() -> None:
    thinking = "{{ messages[-1].content }}{% if enable_thinking is not false %}<think>{% endif %}"
    tokenizer = ChatTokenizer(make_tokenizer(thinking), frozenset(), "a folder")
    assert tokenizer.prompt([ChatMessage("user", "hello")]) == plain("hello")


def test_rounds_always_alternate() -> None:
    chat = [ChatMessage("assistant", "a"), ChatMessage("assistant", "b"), ChatMessage("user", "c")]
    assert rounds(chat, knows_system=True) == [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "a\nb"},
        {"role": "user", "content": "c"},
    ]
    assert rounds([ChatMessage("system", "s")], knows_system=False) == [{"role": "user", "content": "s"}]
    assert rounds([ChatMessage("system", "s"), ChatMessage("system", "t")], knows_system=True) == [
        {"role": "system", "content": "s\nt"}
    ]
    assert rounds([], knows_system=True) == []


def test_a_missing_or_failing_template_is_reported() -> None:
    with pytest.raises(CheckpointError, match="a folder has no chat template"):
        ChatTokenizer(make_tokenizer(None), frozenset(), "a folder")
    with pytest.raises(CheckpointError, match=r"the chat template of a folder fails \(not today\)"):
        ChatTokenizer(make_tokenizer("{{ raise_exception('not today') }}"), frozenset(), "a folder")
    with pytest.raises(CheckpointError, match="the chat template of a folder fails"):
        ChatTokenizer(make_tokenizer("{% for %}"), frozenset(), "a folder")


def test_prompts_can_be_counted_in_several_threads() -> None:
    chat = [ChatMessage("user", "hello there <|user|> " * 50)]
    expected, found = OURS.prompt(chat), list[list[int]]()
    threads = [threading.Thread(target=lambda: found.append(OURS.prompt(chat))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


@given(st.text(max_size=30))
def test_any_text_is_returned_completely(text: str) -> None:
    deltas = spelled(plain(text.replace("<", "")))
    assert "".join(deltas) == text.replace("<", "").lstrip()


def test_a_character_of_several_tokens_is_returned_with_the_last() -> None:
    text = "a你😀👨‍👩‍👧b"
    ids = plain(text)
    assert len(ids) > 2 * len(text)
    deltas = spelled(ids)
    assert "".join(deltas) == text
    assert not any("\ufffd" in delta for delta in deltas)
    assert [delta for delta in deltas if delta] == list(text)


@given(st.lists(st.integers(0, len(LIBRARY) - 1), max_size=40))
def test_incremental_text_equals_the_librarys_for_any_ids(ids: list[int]) -> None:
    unseen = {id for id, token in LIBRARY.added_tokens_decoder.items() if token.special}
    whole = LIBRARY.decode([token for token in ids if token not in unseen], clean_up_tokenization_spaces=False)
    assert isinstance(whole, str)
    assert "".join(spelled(ids)) == whole.lstrip()


def test_an_answer_cut_inside_a_character_ends_with_a_replacement_character() -> None:
    assert spelled(plain("好你")[:-1])[-1] == "\ufffd"


def test_invalid_bytes_are_not_held_back_forever() -> None:
    wrong = plain("你")[0]
    deltas = spelled([wrong] * 40)
    assert "".join(deltas) == "\ufffd" * 40
    assert sum(map(bool, deltas)) >= 4


def test_control_tokens_in_an_answer_have_no_text() -> None:
    ids = [*plain("<|user|>a"), *plain("<|assistant|>"), *plain("b<think>")]
    assert "".join(spelled(ids)) == "ab<think>"


def test_sentencepiece_spaces_and_bytes_are_decoded() -> None:
    spelled_out = [f"<0x{byte:02X}>" for byte in "你好".encode()]
    pieces = ["<unk>", "▁Hello", "▁there", ",", *sorted(set(spelled_out))]
    library = Tokenizer(models.BPE(vocab={piece: id for id, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library)
    ids = [pieces.index(piece) for piece in ("▁Hello", "▁there", ",", *spelled_out, "▁there")]
    deltas = spelled(ids, IncrementalDetokenizer(tokenizer, frozenset([0])))
    assert [delta for delta in deltas if delta] == ["Hello", " there", ",", "你", "好", " there"]


@pytest.mark.parametrize(
    ("ending", "begins"), [("<think>", True), ("<think>\n", True), ("<think>\n\n</think>\n\n", False), ("", False)]
)
def test_some_templates_begin_the_reasoning(ending: str, begins: bool) -> None:
    template = TEMPLATE.replace("<|assistant|>\n", f"<|assistant|>\n{ending}")
    thoughts = ChatTokenizer(make_tokenizer(template), frozenset(), "a folder").thoughts()
    assert thoughts.feed("2+2</think>Four") == (("2+2", "Four") if begins else ("", "2+2</think>Four"))


def test_the_tags_of_reasoning_are_text_even_if_they_are_special_tokens() -> None:
    library = make_tokenizer()
    library.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<hidden>"]})
    tokenizer = ChatTokenizer(library, frozenset(), "a folder")
    ids = cast("list[int]", library.encode("<think>a</think><hidden>b", add_special_tokens=False))
    assert "".join(spelled(ids, tokenizer.detokenizer())) == "<think>a</think>b"
