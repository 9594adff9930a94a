"""Drafts by prompt lookup: the tokens that followed an earlier occurrence of a sequence's end."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

# Tokens of a match that are compared; longer matches are equally trusted.
_LONGEST = 8
# Earlier occurrences that are compared, the newest first.
_TRIES = 8
# Weight of what is assumed before measurements, in tokens, and decay of these per token.
_PRIOR = 2.0
_DECAY = 0.9
# Most tokens of one draft.
_MOST = 15
# Time of one more row in a step, as a share of a step with one row.  Measured from 0.05 to 0.4,
# by weights and CPU: `python -m benchmarks.prompt_lookup --steps`.
COST = 0.25

K = TypeVar("K")


class PromptLookup:
    """Predicts the next tokens of one sequence, and measures how often it is right.

    Every token is compared with its prediction, also while nothing is drafted: what is not
    worth a draft now can become so.

    >>> lookup = PromptLookup([5, 6, 7, 8, 9, 5, 6])
    >>> lookup.draft(3)
    (7, 8, 9)
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # of each pair of tokens
        self._next = 0  # index of the predicted token; 0 is none
        self._length = 0  # tokens that match before it
        shares = [1 - 1 / max(length, 1) for length in range(_LONGEST + 1)]  # assumed until measured
        self._hits = [_PRIOR * share for share in shares]
        self._trials = [_PRIOR] * len(shares)
        for token in ids:
            self._add(token)
        self._find()

    def append(self, token: int) -> None:
        """Append the sequence's next token."""
        is_hit = self._next > 0 and self._ids[self._next] == token
        if self._next:
            bucket = min(self._length, _LONGEST)
            self._hits[bucket] = self._hits[bucket] * _DECAY + is_hit
            self._trials[bucket] = self._trials[bucket] * _DECAY + 1
        self._add(token)
        if is_hit:
            self._next += 1
            self._length += 1
        else:
            self._find()

    def draft(self, tokens: int) -> tuple[int, ...]:
        """Return up to `tokens` predicted tokens."""
        return tuple(self._ids[self._next : self._next + tokens]) if self._next else ()

    def chances(self, most: int) -> list[float]:
        """Return, for each token of the longest draft, the measured chance that it and those before it are right."""
        if not self._next:
            return []
        chance, found = 1.0, []
        for length in range(self._length, self._length + min(most, _MOST, len(self._ids) - self._next)):
            bucket = min(length, _LONGEST)
            chance *= self._hits[bucket] / self._trials[bucket]
            found.append(chance)
        return found

    def _add(self, token: int) -> None:
        # The pair at the end has no next token yet: it is not found as its own match.
        if len(self._ids) >= 2:
            self._after[self._ids[-2], self._ids[-1]].append(len(self._ids))
        self._ids.append(token)

    def _find(self) -> None:
        """Look for the longest match of the end; of equally long ones the newest."""
        ids, size = self._ids, len(self._ids)
        self._next = self._length = 0
        for at in reversed(self._after.get((ids[-2], ids[-1]), [])[-_TRIES:] if size >= 2 else []):
            length = 2
            while length < _LONGEST and length < at and ids[at - length - 1] == ids[size - length - 1]:
                length += 1
            if length > self._length:
                self._next, self._length = at, length


def share_drafts(chances: Mapping[K, Sequence[float]], rows: int, room: int) -> dict[K, int]:
    """Return the number of tokens to draft for each row with chances, of `rows` in the step.

    A step takes `1 + COST * (tokens - 1)` times as long as one of one token.  Tokens are
    added, the likeliest first, while they raise the expected tokens per time, and while there is
    `room`.  Chances of a row never rise.

    >>> share_drafts({"quotation": [0.9, 0.8], "guess": [0.2]}, rows=2, room=8)
    {'quotation': 2}
    """
    likeliest = sorted(((chance, key) for key, each in chances.items() for chance in each), key=lambda each: -each[0])
    expected, time = float(rows), 1 + COST * (rows - 1)
    counts: dict[K, int] = {}
    for chance, key in likeliest[: max(room, 0)]:
        if chance * time <= COST * expected:
            break
        counts[key] = counts.get(key, 0) + 1
        expected += chance
        time += COST
    return counts
