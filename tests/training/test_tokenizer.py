"""The demo model's vocabulary has the layout of ChatGLM-6B's."""

from sentencepiece import SentencePieceProcessor

from training import tokenizer

TEXTS = ["hello there, how are you?", "你好，最近怎么样", "a few more words to learn from", "还有一些可以学习的词"] * 20
WORDS = 160


def test_pieces_are_in_the_published_order() -> None:
    model = SentencePieceProcessor(model_proto=tokenizer.train(TEXTS, WORDS))
    names = model.id_to_piece(list(range(model.vocab_size())))
    assert names[:5] == list(tokenizer.FIRST)
    first = 5 + WORDS
    assert names[first:] == [*tokenizer.CONTROLS, *tokenizer.BLANKS, *tokenizer.BYTES]
    assert all(model.is_control(first + i) for i in range(len(tokenizer.CONTROLS)))
    assert all(model.is_byte(len(names) - 256 + i) for i in range(256))


def test_training_is_reproducible() -> None:
    assert tokenizer.train(TEXTS, WORDS) == tokenizer.train(TEXTS, WORDS)


def test_unknown_characters_become_bytes() -> None:
    model = SentencePieceProcessor(model_proto=tokenizer.train(TEXTS, WORDS))
    assert model.decode(model.encode("螺蛳粉 ☂")) == "螺蛳粉 ☂"


def test_no_piece_is_a_chinese_phrase() -> None:
    model = SentencePieceProcessor(model_proto=tokenizer.train(TEXTS, WORDS))
    assert not [name for name in model.id_to_piece(list(range(model.vocab_size()))) if "怎么样" in name]
