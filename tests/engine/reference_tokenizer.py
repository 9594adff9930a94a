"""Features of the published tokenizer that ours lacks: control text, padding, truncation, pairs, masks.

Only the goldens need it: they are numbers of transformers 4.27.1 running the published code.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bot.engine.chatglm.tokenizer import ChatGLMTokenizer

# In the order of the published tokenizer's all_special_tokens.
CONTROL_TEXT = ("<sop>", "<eop>", "<unk>", "<pad>", "[MASK]")
_SPLIT = re.compile("(" + "|".join(map(re.escape, CONTROL_TEXT)) + ")")


@dataclass(frozen=True)
class Padded:
    """One row of a batch: ids, two positions each, and the mask."""

    input_ids: list[int]
    position_ids: list[list[int]]
    masked: list[list[int]]


class ReferenceTokenizer:
    def __init__(self, ours: ChatGLMTokenizer) -> None:
        self.ours = ours
        self.control_ids = [ours.id_of(piece) for piece in CONTROL_TEXT]

    def attributes(self) -> dict[str, Any]:
        control = dict(zip(CONTROL_TEXT, self.control_ids, strict=True))
        return {
            "vocab_size": self.ours.vocabulary,
            "bos_token_id": control["<sop>"],
            "eos_token_id": control["<eop>"],
            "pad_token_id": control["<pad>"],
            "unk_token_id": control["<unk>"],
            "mask_token_id": control["[MASK]"],
            "gmask_token_id": self.ours.id_of("[gMASK]"),
            "end_token_id": self.ours.id_of("</s>"),
            "all_special_tokens": list(control),
            "all_special_ids": list(control.values()),
        }

    def ids(self, text: str) -> list[int]:
        """Encode with control ids for control text; adjacent white space is dropped."""
        parts = _SPLIT.split(text)
        ids: list[int] = []
        for i, part in enumerate(parts):
            if part in CONTROL_TEXT:
                ids.append(self.ours.id_of(part))
                continue
            left = part if i == 0 else part.lstrip()
            ids += self.ours.encode(left if i == len(parts) - 1 else left.rstrip())
        return ids

    def ids_without_dummy_prefix(self, text: str) -> list[int]:
        """Encode after a newline, and drop its id."""
        ids = self.ours.encode("<n>" + text)
        return ids[ids.index(self.ours.id_of("<n>")) + 1 :]

    def input_ids(self, text: str, pair: str | None = None, max_length: int | None = None) -> list[int]:
        ids = self.ids(text)
        if max_length is not None:
            ids = ids[: max_length - 2]
        ids += [self.ours.id_of("[gMASK]"), self.ours.id_of("<sop>")]
        return ids if pair is None else [*ids, *self.ids(pair), self.ours.id_of("<eop>")]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return self.ours.decode(token for token in ids if not (skip_special and token in self.control_ids))

    def padded(self, texts: Sequence[str], length: int | None = None) -> list[Padded]:
        rows = [self.input_ids(text) for text in texts]
        width = length or max(map(len, rows))
        return [self._padded(row, width - len(row)) for row in rows]

    def _padded(self, ids: list[int], padding: int) -> Padded:
        border = ids.index(self.ours.id_of("<sop>"))
        mask = self.ours.id_of("[MASK]")
        anchor = ids.index(mask if mask in ids else self.ours.id_of("[gMASK]"))
        size = len(ids)
        first = [i if i < border else anchor for i in range(size)]
        second = [max(i - border + 1, 0) for i in range(size)]
        hidden = [[int(j > i and j >= border) for j in range(size)] for i in range(size)]
        return Padded(
            [self.ours.id_of("<pad>")] * padding + ids,
            [[0] * padding + first, [0] * padding + second],
            [[1] * (padding + size)] * padding + [[1] * padding + row for row in hidden],
        )
