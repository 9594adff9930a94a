"""Tokenizer of ChatGLM, over a checkpoint's SentencePiece model (ice_text.model)."""

import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from sentencepiece import SentencePieceProcessor

from bot.domain import ChatMessage, Tokens
from bot.engine.chatglm import prompt
from bot.engine.chatglm.config import check_file, read_json
from bot.engine.chatglm.text import MAX_BLANK, WHITE_SPACE, AnswerDetokenizer, clean_up, expand
from bot.errors import CheckpointError
from bot.util.files import read_regular

MODEL_FILE = "ice_text.model"

# The first pieces of every ChatGLM vocabulary, and those after its words.
_FIRST_PIECES = ("<unk>", "<s>", "</s>", "<pad>", "<n>")
_CONTROL_PIECES = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
_BLANK_PIECES = tuple(piece for piece in WHITE_SPACE if piece != "<n>")
_BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_FIRST_RELEASE_IMAGE_TOKENS = 20000

# SHA-256 of the published files, by their size: v1.1 and the first release.
# Bytes; ChatGLM's takes 2.7 MB.
_LARGEST_MODEL = 64 * 1024 * 1024
_PUBLISHED = {
    2_706_249: "5e974d9a69c242ce014c88c2b26089270f6198f3c0b700a887666cd3e816f17e",
    2_699_926: "99871e0c85db81ad7af1028854fd091cd5778c8414ae9d94bbbc10d02c831c21",
}

_WHITE_SPACE_RUN = re.compile(rf"\n|\t| {{2,{MAX_BLANK}}}")
_PIECES = {space: piece for piece, space in WHITE_SPACE.items()}


class ChatGLMTokenizer:
    """SentencePiece with pieces for white space and bytes.

    User text never becomes a control id: `<sop>` in a text is five characters.  (In the
    published code it becomes the control id, which changes the attention mask.)  `<n>`, `<|tab|>`
    and `<|blank_2|>` in a text become white space, as in the published code.
    """

    def __init__(self, model: SentencePieceProcessor, image_tokens: int = 0) -> None:
        """Wrap a model with ChatGLM's pieces; `image_tokens` is an offset of its ids."""
        self._model = model
        self._offset = image_tokens
        self._pad = self.id_of("<pad>")
        self._control = frozenset(map(self.id_of, (*_CONTROL_PIECES, "<s>", "</s>", "<pad>")))
        self._context = (self.id_of("[gMASK]"), self.id_of("<sop>"))
        self.stop_ids = frozenset([self.id_of("<eop>")])
        self.vocabulary = image_tokens + model.vocab_size()
        # SentencePiece drops all of them, only the first, or none; there is no API to ask.
        kept = len(model.decode_pieces(["▁", "▁"]))
        self.leading_spaces_dropped = 2 - kept if kept else sys.maxsize

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the tokenizer of a checkpoint.

        Raises:
            CheckpointError: ice_text.model is missing, corrupt or another model's.
        """
        model = _read_model(folder / MODEL_FILE)
        return cls(model, _image_tokens(folder, model))

    def id_of(self, piece: str) -> int:
        """Return the id of a piece of the vocabulary."""
        return int(self._model.piece_to_id(piece)) + self._offset

    def encode(self, text: str) -> list[int]:
        """Encode any text; the ids contain no control id."""
        # Surrogate pairs are joined, lone surrogates become U+FFFD.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = _WHITE_SPACE_RUN.sub(lambda run: _PIECES[run[0]], text)
        ids = [token + self._offset for token in self._model.encode(text)]
        if self._control.isdisjoint(ids):
            return ids
        # SentencePiece returns control pieces for text only if a model file declares them as
        # user-defined symbols.  None should; if one does, they are encoded as bytes.
        return [part for token in ids for part in (self._as_bytes(token) if token in self._control else [token])]

    def _as_bytes(self, token: int) -> list[int]:
        return [self.id_of(_BYTE_PIECES[byte]) for byte in self.piece(token).encode()]

    def prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the prompt ids of a chat: its text, then [gMASK] and <sop>."""
        return [*self.encode(prompt.render(messages)), *self._context]

    def tokenize(self, text: str) -> Tokens:
        ids = self.encode(text)
        return Tokens(tuple(ids), tuple(map(self.piece, ids)), self._context)

    def piece(self, token: int) -> str:
        """Return the piece of an id; ids below `image_tokens` are unused image tokens.

        Raises:
            IndexError: Unknown id.
        """
        if 0 <= token < self._offset:
            return f"<image_{token}>"
        return str(self._model.id_to_piece(token - self._offset))

    def surface(self, token: int) -> str | bytes | None:
        """See `text.Pieces`."""
        piece, index = self.piece(token), token - self._offset
        if index < 0:
            return piece
        if token == self._pad:
            return b""
        if self._model.is_byte(index):
            return bytes([int(piece[3:5], 16)])
        if self._model.is_control(index):
            return None
        if self._model.is_unknown(index):
            return str(self._model.decode_pieces([piece]))
        return piece

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids, without spaces before English punctuation."""
        pieces = [self.piece(token) for token in ids if token != self._pad]
        return clean_up(expand(self._model.decode_pieces(pieces)))

    def complete(self, ids: Iterable[int]) -> str:
        """Decode the ids of a whole answer; `detokenizer` does it incrementally."""
        detokenizer = self.detokenizer()
        return "".join([*map(detokenizer.push, ids), detokenizer.finish()])

    def detokenizer(self) -> AnswerDetokenizer:
        return AnswerDetokenizer(self)


def _read_model(path: Path) -> SentencePieceProcessor:
    try:
        check_file(path)
        content = read_regular(path, _LARGEST_MODEL)
    except OSError as exc:
        raise CheckpointError(
            f"{path} cannot be read ({exc.strerror}): copy the checkpoint's {MODEL_FILE} there"
        ) from exc
    if not content:
        raise CheckpointError(f"{path} is empty: download it again")
    digest = hashlib.sha256(content).hexdigest()
    if _PUBLISHED.get(len(content), digest) != digest:
        raise CheckpointError(f"{path} is corrupt: the published file's size, but another SHA-256; download it again")
    try:
        model = SentencePieceProcessor(model_proto=content)
        pieces: list[str] = model.id_to_piece(list(range(model.vocab_size())))
    except (RuntimeError, ValueError) as exc:
        raise CheckpointError(f"{path} is corrupt or not a SentencePiece model: download it again") from exc
    first = tuple(pieces[: len(_FIRST_PIECES)])
    if first != _FIRST_PIECES:
        raise CheckpointError(
            f"{path} is another model's vocabulary: it begins with {' '.join(first)} instead of "
            f"{' '.join(_FIRST_PIECES)}; use the {MODEL_FILE} of ChatGLM-6B"
        )
    layout, known = (*_CONTROL_PIECES, *_BLANK_PIECES, *_BYTE_PIECES), set(pieces)
    missing = [piece for piece in layout if piece not in known]
    if len(missing) == len(layout):
        # The first release's file ends with the words; its code adds the other pieces.
        return SentencePieceProcessor(model_proto=content + _layout_pieces())
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of ChatGLM's pieces, for example {missing[0]}: download it again"
        )
    return model


def _layout_pieces() -> bytes:
    """Serialise the pieces after the words; concatenated protocol buffers are merged."""
    control, user_defined, byte = 3, 4, 6  # SentencePiece.Type

    def entry(piece: str, kind: int) -> bytes:
        name = piece.encode()
        body = bytes([0x0A, len(name)]) + name + b"\x15\0\0\0\0" + bytes([0x18, kind])
        return bytes([0x0A, len(body)]) + body

    byte_fallback = b"\x12\x03\x98\x02\x01"  # trainer_spec { byte_fallback: true }
    return byte_fallback + b"".join(
        [
            *(entry(piece, control) for piece in _CONTROL_PIECES),
            *(entry(piece, user_defined) for piece in _BLANK_PIECES),
            *(entry(piece, byte) for piece in _BYTE_PIECES),
        ]
    )


def _image_tokens(folder: Path, model: SentencePieceProcessor) -> int:
    """Return the offset of all ids, checked against the ids in config.json."""
    named, own = (
        read_json(path) if (path := folder / name).exists() else {} for name in ("config.json", "tokenizer_config.json")
    )
    offset = own.get("num_image_tokens")
    if isinstance(offset, int) and not 0 <= offset < 1_000_000:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'} has an impossible num_image_tokens: download it again"
        )
    if not isinstance(offset, int):
        # The first release's code adds the offset without an entry in its JSON files.
        shifted = model.piece_to_id("<sop>") + _FIRST_RELEASE_IMAGE_TOKENS
        offset = _FIRST_RELEASE_IMAGE_TOKENS if named.get("bos_token_id") == shifted else 0
    for key, piece in (
        ("bos_token_id", "<sop>"),
        ("eos_token_id", "<eop>"),
        ("gmask_token_id", "[gMASK]"),
        ("mask_token_id", "[MASK]"),
    ):
        found = model.piece_to_id(piece) + offset
        if named.get(key, found) != found:
            raise CheckpointError(
                f"{folder / 'config.json'} says {key} = {named[key]}, but {piece} is {found} in {MODEL_FILE}"
                f"{f' with {offset} image tokens' if offset else ''}: "
                "the files are of different models; download both again"
            )
    rows, last = named.get("vocab_size"), offset + model.vocab_size() - 1
    if isinstance(rows, int) and rows <= last:
        raise CheckpointError(
            f"{folder / 'config.json'} says vocab_size = {rows}, but {MODEL_FILE} has ids up to {last}: "
            "the files are of different models; download both again"
        )
    return offset
