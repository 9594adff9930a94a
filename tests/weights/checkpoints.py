"""Checkpoints of ChatGLM-6B's size with random weights, written one shard at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.tokenizer import MODEL_FILE
from bot.engine.chatglm.weights import expected_shapes
from training.tokenizer import BLANKS, BYTE, BYTES, CONTROL, CONTROLS, FIRST, NORMAL, USER_DEFINED, VocabularyPiece

PUBLISHED = ChatGLMConfig(
    vocab_size=130528,
    hidden_size=4096,
    inner_hidden_size=16384,
    num_layers=28,
    num_attention_heads=32,
    mask_token_id=130000,
    gmask_token_id=130001,
    bos_token_id=130004,
    eos_token_id=130005,
)

_WORDS = PUBLISHED.mask_token_id - len(FIRST)
_UNKNOWN = 2  # SentencePiece.Type
_BYTE_FALLBACK = b"\x12\x03\x98\x02\x01"  # trainer_spec { byte_fallback: true }


@dataclass(frozen=True, slots=True)
class Form:
    """A published checkpoint format: float16 or int4, number and type of shards."""

    label: str
    config: ChatGLMConfig
    shards: int
    suffix: str  # ".bin" or ".safetensors"

    @property
    def bytes(self) -> int:
        return sum(_dtype(name, self.config).itemsize * torch.Size(shape).numel() for name, shape in self._shapes)

    @property
    def _shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return list(expected_shapes(self.config).items())

    def write(self, folder: Path) -> None:
        """Write the checkpoint and its tokenizer into a new folder."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.config.as_json()))
        (folder / MODEL_FILE).write_bytes(vocabulary())
        stem = "pytorch_model" if self.suffix == ".bin" else "model"
        random = Random(seed=28)
        files: dict[str, str] = {}
        for number, names in enumerate(self._parts(), start=1):
            file = f"{stem}-{number:05}-of-{self.shards:05}{self.suffix}"
            files |= dict.fromkeys(names, file)
            shapes = expected_shapes(self.config)
            content = {name: random.tensor(shapes[name], _dtype(name, self.config)) for name in names}
            if self.suffix == ".bin":
                torch.save(content, folder / file)
            else:
                save_file(content, folder / file)
        index = {"metadata": {"total_size": self.bytes}, "weight_map": files}
        (folder / f"{stem}{self.suffix}.index.json").write_text(json.dumps(index))

    def _parts(self) -> Iterator[list[str]]:
        """Split the tensors, in order, into shards of about the same size."""
        room = self.bytes / self.shards
        part: list[str] = []
        done, ends = 0, 1
        for name, shape in self._shapes:
            part.append(name)
            done += _dtype(name, self.config).itemsize * torch.Size(shape).numel()
            if done >= room * ends and ends < self.shards:
                yield part
                part, ends = [], ends + 1
        yield part


FORMS = (
    Form("float16", PUBLISHED, 8, ".bin"),
    Form("int4", replace(PUBLISHED, quantization_bit=4), 3, ".safetensors"),
)


class Random:
    """Random tensors cut from one pool: generating each would take longer than writing it."""

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(1 << 26, generator=self._random).half()
        self._bytes = torch.randint(-128, 128, (1 << 26,), dtype=torch.int8, generator=self._random)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if dtype == torch.int8:
            # Nibbles from -7 to 7: the published scheme never uses -8.
            values = self._cut(self._bytes, shape)
            return values.where((values >> 4 != -8) & (values << 4 != -128), 0)
        if len(shape) == 1:
            return torch.full(shape, 0.02 / 7, dtype=dtype)
        return self._cut(self._pool, shape).mul_(0.02)

    def _cut(self, pool: Tensor, shape: tuple[int, ...]) -> Tensor:
        size = torch.Size(shape).numel()
        start = int(torch.randint(len(pool), (1,), generator=self._random))
        cut = torch.empty(size, dtype=pool.dtype)
        for first in range(0, size, len(pool)):
            part = cut[first : first + len(pool)]
            part.copy_(pool.roll(-start)[: len(part)])
        return cut.view(shape)


def _dtype(name: str, config: ChatGLMConfig) -> torch.dtype:
    packed = config.quantization_bit and f"{name}_scale" in expected_shapes(config)
    return torch.int8 if packed else torch.float16


def vocabulary() -> bytes:
    """Return an ice_text.model in the published layout with placeholder words."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyz"]
    words = letters + [f"▁word{number}" for number in range(_WORDS - len(letters))]
    pieces = [
        VocabularyPiece(FIRST[0], _UNKNOWN),
        *(VocabularyPiece(text, CONTROL) for text in FIRST[1:4]),
        VocabularyPiece(FIRST[4], USER_DEFINED),
        *(VocabularyPiece(text, NORMAL, -10.0) for text in words),
        *(VocabularyPiece(text, CONTROL) for text in CONTROLS),
        *(VocabularyPiece(text, USER_DEFINED) for text in BLANKS),
        *(VocabularyPiece(text, BYTE) for text in BYTES),
    ]
    return b"".join(piece.as_bytes() for piece in pieces) + _BYTE_FALLBACK
