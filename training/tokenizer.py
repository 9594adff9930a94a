"""Train ice_text.model: a SentencePiece vocabulary in the layout of ChatGLM-6B's.

The layout is 5 first pieces, the words, 8 control pieces, tab and runs of 2 to 80 blanks, 256
bytes.  SentencePiece cannot train this order, so its model file, a protocol buffer, is parsed
and reassembled here.
"""

from __future__ import annotations

import io
import re
import string
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sentencepiece

# SentencePiece.Type in sentencepiece_model.proto
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6

CONTROLS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
BLANKS = ("<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81)))
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
FIRST = ("<unk>", "<s>", "</s>", "<pad>", "<n>")

# Longer Chinese pieces are whole phrases of the few dialogues, useless elsewhere.  Pieces for the
# first word of a text would prevent copying that word to another position.
_TOO_CHINESE = re.compile("[\u4e00-\u9fff]{3}|▁[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class VocabularyPiece:
    text: str
    kind: int
    score: float = 0.0

    def as_bytes(self) -> bytes:
        name = self.text.encode()
        body = b"\x0a" + _varint(len(name)) + name + b"\x15" + struct.pack("<f", self.score)
        if self.kind != NORMAL:
            body += b"\x18" + _varint(self.kind)
        return b"\x0a" + _varint(len(body)) + body


def train(texts: Iterable[str], words: int) -> bytes:
    """Train byte pair encoding on `texts`; return a model file with `words` learnt pieces."""
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="bpe",
        # 50 % more, because some are dropped below.
        vocab_size=len(FIRST) + len(BYTES) + words * 3 // 2,
        hard_vocab_limit=False,
        character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        byte_fallback=True,
        split_digits=True,
        user_defined_symbols=["<n>"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        unk_surface=" ⁇ ",
        num_threads=1,
        minloglevel=2,
    )
    return _in_order(out.getvalue(), words)


def _in_order(model: bytes, words: int) -> bytes:
    learnt = [piece.text for piece in _pieces(model) if piece.kind == NORMAL]
    characters = [text for text in learnt if len(text) == 1]
    merged = [text for text in learnt if len(text) > 1 and not _TOO_CHINESE.search(text)]
    if len(characters) + len(merged) < words:
        raise ValueError(f"the texts give only {len(characters) + len(merged)} pieces, expected {words}")
    # The rank of a merge is its score; single characters are always needed.
    chosen = merged[: words - len(characters)] + characters
    pieces = [
        VocabularyPiece(FIRST[0], 2),
        *(VocabularyPiece(text, CONTROL) for text in FIRST[1:4]),
        VocabularyPiece(FIRST[4], USER_DEFINED),
        *(VocabularyPiece(text, NORMAL, -float(rank)) for rank, text in enumerate(chosen)),
        *(VocabularyPiece(text, CONTROL) for text in CONTROLS),
        *(VocabularyPiece(text, USER_DEFINED) for text in BLANKS),
        *(VocabularyPiece(text, BYTE) for text in BYTES),
    ]
    rest = b"".join(raw for field, raw, _ in _fields(model) if field != 1)
    return b"".join(piece.as_bytes() for piece in pieces) + rest


def _pieces(model: bytes) -> Iterator[VocabularyPiece]:
    for field, _, value in _fields(model):
        if field == 1:
            parts = {name: part for name, _, part in _fields(value)}
            kind = parts.get(3, bytes([NORMAL]))
            yield VocabularyPiece(parts[1].decode(), kind[0])


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield a protocol buffer's fields: number, raw field, content."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        wire = key & 7
        begin = at
        if wire == 0:
            _, at = _read_varint(message, at)
        elif wire == 5:
            at += 4
        elif wire == 2:
            length, begin = _read_varint(message, at)
            at = begin + length
        else:
            raise ValueError(f"unknown wire type {wire}")
        yield key >> 3, message[start:at], message[begin:at]


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
