"""Copying drill: the quoted words are random pieces, so only copying reduces the loss.

A small network learns to copy within a few hundred steps of this drill alone, but hardly ever
when it is mixed with other examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from bot.engine.chatglm.tokenizer import ChatGLMTokenizer
from training.batches import TokenizedExample, tokenize_example
from training.examples import Examples

_MARKER = "\ue000"  # private use: always encoded as the same three byte pieces
LONGEST = 24  # pieces that are copied
FIRST_WORD = 5  # index of the first word in the vocabulary


class Drill:
    def __init__(self, examples: Examples, tokenizer: ChatGLMTokenizer, rng: Random, words: int) -> None:
        self._examples = examples
        self._tokenizer = tokenizer
        self._rng = rng
        self._ids = range(FIRST_WORD, FIRST_WORD + words)
        self._context = [tokenizer.id_of("[gMASK]"), tokenizer.id_of("<sop>")]
        self._marker = [tokenizer.id_of(f"<0x{byte:02X}>") for byte in _MARKER.encode()]

    def plain(self, count: int, length: int) -> list[TokenizedExample]:
        """Return prompts of random pieces; the answer is the part between two marks."""
        before, after = self._ids[:2]
        return [
            TokenizedExample(
                0,
                [
                    *self._some(self._rng.randint(0, 6)),
                    before,
                    *copied,
                    after,
                    *self._some(self._rng.randint(0, 6)),
                    *self._context,
                ],
                [before, *copied, *self._tokenizer.stop_ids],
            )
            for copied in (self._some(length) for _ in range(count))
        ]

    def _some(self, count: int) -> list[int]:
        return self._rng.choices(self._ids, k=count)

    def rows(self, count: int, length: int) -> list[TokenizedExample]:
        """Return conversations that copy `length` random pieces from the question or an earlier round."""
        made = []
        for _ in range(count):
            row = tokenize_example(self._examples.copying(_MARKER), self._tokenizer)
            pieces = self._some(length)
            made.append(
                TokenizedExample(row.dialogue, self._replaced(row.prompt, pieces), self._replaced(row.answer, pieces))
            )
        return made

    def of_all_lengths(self) -> list[TokenizedExample]:
        """Return eight rows of each length."""
        return [row for length in range(1, LONGEST + 1) for row in self.rows(8, length)]

    def _replaced(self, ids: Sequence[int], pieces: Sequence[int]) -> list[int]:
        out: list[int] = []
        at = 0
        while at < len(ids):
            if list(ids[at : at + len(self._marker)]) == self._marker:
                out += pieces
                at += len(self._marker)
            else:
                out.append(ids[at])
                at += 1
        return out
