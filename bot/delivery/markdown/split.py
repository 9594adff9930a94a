"""Split long Markdown into messages with closed code blocks, without loss of text.

The bodies of the chunks, joined, are exactly the text; whitespace at a cut belongs to the
chunk before it where it fits.  Markup that a chunk needs in addition (a fence reopened
and closed, the quote mark of a long line, an empty header above the rest of a table) is
not part of the body.

A cut falls at the start of a block, else between lines, sentences, words or characters.
It does not break inline markup such as `**` or a link, unless a message cannot hold
it.  A fence whose markers exceed a message is split like text.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from bot.delivery.markdown.blocks import BlockIndex, is_balanced, visible_text
from bot.delivery.markdown.format import Format

# Characters after a cut that are checked for broken markup; with as many, the cut is settled.
_LOOKAHEAD = 256
# Cuts to try before one that breaks markup is accepted.
_TRIES = 24
# Marks to parse in these tries: text that is mostly marks takes a hundred times as long to parse as prose.
_MOST_MARKS = 4000
# Characters of a message that a better boundary is worth.
_WASTE = 1024
# Guesses at the longest chunk before the search falls back to bisection.
_GUESSES = 5
# The bisection of a message may leave this part of it empty: each step renders the whole message.
_PRECISION = 128

_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？；…][」』”’）】]*\s*")
_WORD_END = re.compile(r"\s+|[、，：]\s*")
_NOT_FIRST = frozenset("、。，！？；：」』）】》”’…—,.!?;:)]}")
_NOT_LAST = frozenset("「『（【《“‘([{")
_MARK = re.compile(r"[*_~`\[\]<$|]")
_FLAGS = "".join(map(chr, range(0x1F1E6, 0x1F200)))


@dataclass(frozen=True, slots=True)
class Chunk:
    """One message of a split text: `body` is part of the text, the rest is added markup."""

    body: str
    opening: str = ""
    closing: str = ""

    @property
    def text(self) -> str:
        return f"{self.opening}{self.body}{self.closing}"


def split(markdown: str, format: Format) -> list[Chunk]:
    r"""Split a text into chunks of at most one message.

    A chunk may be all whitespace; it need not be sent.

    >>> from bot.delivery.markdown.format import MarkdownFormat
    >>> [chunk.text for chunk in split("```py\na = 1\nb = 2\nc = 3\nd = 4\n```", MarkdownFormat(28))]
    ['```py\na = 1\nb = 2\nc = 3\n```', '```py\nd = 4\n```']
    """
    splitter = Splitter(format)
    splitter.append(markdown)
    return splitter.chunks()


def join(chunks: Iterable[Chunk]) -> str:
    """Return the text that was split, exactly."""
    return "".join(chunk.body for chunk in chunks)


class Splitter:
    """Splits a growing text incrementally, with the same chunks as `split`.

    All but the last few chunks are settled, and not computed again: a cut is settled once
    `_LOOKAHEAD` characters follow it, or as many as its chunk can hold.  (Where a longer
    text may render shorter, the chunks depend on the order in which the text arrived.)
    """

    def __init__(self, format: Format) -> None:
        self._format = format
        self._settled: list[Chunk] = []
        self._opening = ""
        self._expected = format.limit
        self._rest = ""
        self._more: list[str] = []
        self._chunks: list[Chunk] = []  # of all text but `_more`

    def append(self, text: str) -> None:
        self._more.append(text)

    @property
    def pending(self) -> int:
        """Return the number of characters that `chunks` has to split."""
        return len(self._rest) + sum(map(len, self._more))

    def chunks(self) -> list[Chunk]:
        if not self._more:
            return list(self._chunks)
        rest = self._rest + "".join(self._more)
        self._more.clear()
        opening, expected = self._opening, self._expected
        chunks = list(self._settled)
        is_settled = True
        while rest:
            cut = _Cut(self._format, opening, rest, expected)
            expected = cut.expected
            chunks.append(cut.chunk)
            is_settled = is_settled and cut.is_settled
            if is_settled:
                self._settled.append(cut.chunk)
                self._opening, self._expected = cut.next_opening, expected
            opening, rest = cut.next_opening, rest[len(cut.chunk.body) :]
        self._rest = join(chunks[len(self._settled) :])
        self._chunks = chunks
        return list(chunks)


class _Cut:
    """The first chunk of a text, and the opening of the next one."""

    def __init__(self, format: Format, opening: str, rest: str, expected: int) -> None:
        self._format = format
        self._opening = opening
        self._rest = rest
        self.next_opening = ""
        self.is_settled = False
        self.expected = expected
        longest = self._longest()
        if longest == 0 and opening:
            self._opening = ""
            longest = self._longest()
        if longest == len(rest):
            self.chunk = self._head(longest)
            return
        longest = max(1, longest)
        # What follows text that is mostly markup is probably as dense: a short search saves most of the rendering.
        self.expected = longest if 2 * longest < format.limit else format.limit
        ahead = longest + min(_LOOKAHEAD, longest)
        self.is_settled = len(rest) > ahead
        self._index = BlockIndex(self._opening + rest[:ahead])
        self._visible: dict[tuple[int, int], str] = {}  # the text of blocks that a cut falls into
        self._marks = 0  # parsed to find a cut
        at = self._best(longest)
        self.chunk = self._head(at)
        self.next_opening = self._next_opening(at)

    def _longest(self) -> int:
        """Return the length of the longest head that fits; the search begins at the expected one."""
        # At most two limits of Markdown per chunk, even if a platform's rendering omits more: the
        # work per chunk must not depend on the length of the text.
        most = min(2 * self._format.limit, len(self._rest))
        window = min(most, 2 * self.expected + self._precision)
        while True:
            self._index = BlockIndex(self._opening + self._rest[:window])
            fitting = self._longest_within(window)
            if window == most or fitting + self._precision < window:
                return self._before_closing_line(fitting) if fitting < len(self._rest) else fitting
            window = min(most, 2 * window)

    def _longest_within(self, window: int) -> int:
        fitting, too_long = 0, window + 1
        probe = min(window, self.expected)
        if window == len(self._rest):
            measured = self._measure(window)
            if measured <= self._format.limit:
                return window
            too_long = window
            probe = min(probe, window - 1)
            if measured > 4 * self._format.limit:
                probe = min(probe, self._guess(window, measured))
        guesses = _GUESSES
        while too_long - fitting > (1 if guesses > 0 else self._precision):
            measured = self._measure(probe)
            if measured <= self._format.limit:
                fitting = probe
            else:
                too_long = probe
            # Lengths are about proportional; where that misleads, bisection ends the search.
            guesses -= 1
            probe = self._guess(probe, measured) if guesses > 0 else (fitting + too_long) // 2
            probe = min(max(probe, fitting + 1), too_long - 1)
        return fitting

    @property
    def _precision(self) -> int:
        return 1 + self._format.limit // _PRECISION

    def _guess(self, length: int, measured: int) -> int:
        return length * self._format.limit // max(1, measured)

    def _head(self, at: int) -> Chunk:
        closing = self._index.closing_at(len(self._opening) + at)
        return Chunk(self._rest[:at], self._opening, closing)

    def _next_opening(self, at: int) -> str:
        return self._index.opening_at(len(self._opening) + at, room=self._format.limit // 2)

    def _fits(self, at: int) -> bool:
        return self._measure(at) <= self._format.limit

    def _measure(self, at: int) -> int:
        text = self._head(self._before_closing_line(at)).text
        return self._format.measure(self._format.render(text))

    def _before_closing_line(self, at: int) -> int:
        """Move a position out of a closing fence: part of it would count twice."""
        fence = self._index.fence_at(len(self._opening) + at)
        return at if fence is None else min(at, fence.closing - len(self._opening))

    def _best(self, longest: int) -> int:
        tried: list[int] = []
        for at in islice(_unique(self._boundaries(longest)), _TRIES):
            if self._keeps_visible_text(at) and self._fits(at):
                return at
            tried.append(at)
            if self._marks > _MOST_MARKS:
                break
        balanced = (at for at in tried if is_balanced(self._head(at).text))
        return next((at for at in chain(balanced, tried) if self._fits(at)), longest)

    def _boundaries(self, longest: int) -> Iterator[int]:
        """Yield positions to cut, the best first: by kind of boundary, then from the end."""
        # An earlier boundary would make the message very short, or cost another one: a platform allows few a minute.
        full = longest - _WASTE
        least = max(longest // 2, full)
        blocks = self._lines(max(longest // 3, full), longest, {begin for begin, _ in self._index.top_level})
        nested = self._lines(least, longest, self._index.block_starts)
        lines = self._lines(least, longest)
        sentences = self._ends(_SENTENCE_END, least, longest)
        words = self._ends(_WORD_END, least, longest)
        cuts = chain(blocks, nested, lines, sentences, words)
        yield from (at for at in cuts if self._is_open(at) and not _is_inside_grapheme(self._rest, at))
        yield from self._characters(longest)

    def _lines(self, least: int, longest: int, among: Iterable[int] | None = None) -> list[int]:
        starts = self._index.line_starts if among is None else sorted(among)
        offset = len(self._opening)
        return [at for start in reversed(starts) if least < (at := start - offset) <= longest]

    def _ends(self, boundary: re.Pattern[str], least: int, longest: int) -> list[int]:
        # One more character shows whether the whitespace continues; the cut may fall inside it.
        found = (min(match.end(), longest) for match in boundary.finditer(self._rest, least, longest + 1))
        return sorted((at for at in found if at > least), reverse=True)

    def _characters(self, longest: int) -> Iterator[int]:
        nearby = [at for at in range(longest, max(0, longest - 64), -1) if not _is_inside_grapheme(self._rest, at)]
        preferred = (at for at in nearby if self._rest[at] not in _NOT_FIRST and self._rest[at - 1] not in _NOT_LAST)
        yield from (at for at in chain(preferred, nearby) if self._is_open(at))
        yield from nearby
        yield longest

    def _is_open(self, at: int) -> bool:
        """Return True if a cut here is outside the opening and closing line of a code block."""
        position = len(self._opening) + at
        fence = self._index.fence_at(position)
        if fence is None:
            return True
        if not fence.content < position < fence.closing:
            return False
        if self._index.is_line_start(position):
            return True
        line, column = self._index.line_at(position), self._index.column(position)
        in_prefix = fence.prefix and not line[:column].strip("> \t")
        return not in_prefix and fence.marker[:3] not in line

    def _keeps_visible_text(self, at: int) -> bool:
        """Return True if both sides of a cut together render like the whole block."""
        position = len(self._opening) + at
        text = self._index.text
        block = next(((begin, end) for begin, end in self._index.top_level if begin < position < end), None)
        if block is None:
            return True
        begin, end = block
        if block not in self._visible:
            self._visible[block] = visible_text(text[begin:end])
        whole = self._visible[block]
        self._marks += len(_MARK.findall(text, begin, position))
        # Hostile text takes a tenth of a second to parse, and most of its cuts break the head already.
        head = visible_text(text[begin:position] + self._head(at).closing)
        return whole.startswith(head) and whole[len(head) :] == visible_text(
            self._next_opening(at) + text[position:end]
        )


def _unique(numbers: Iterable[int]) -> Iterator[int]:
    seen: set[int] = set()
    for number in numbers:
        if number not in seen:
            seen.add(number)
            yield number


def _is_inside_grapheme(text: str, at: int) -> bool:
    """Return True if the characters on both sides belong to one grapheme."""
    before, after = text[at - 1], text[at]
    if before == "\r" and after == "\n":
        return True
    if "\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff":
        return True
    if before == "\u200d" or after == "\u200d":  # zero-width joiner
        return True
    if unicodedata.category(after).startswith("M") or "\U0001f3fb" <= after <= "\U0001f3ff":
        return True  # accents, variation selectors; skin tones
    if "\u1160" <= after <= "\u11ff" or "\U000e0020" <= after <= "\U000e007f":
        return True  # Hangul jamo; tag characters of a flag
    return after in _FLAGS and _flags_before(text, at) % 2 == 1


def _flags_before(text: str, at: int) -> int:
    return at - len(text[:at].rstrip(_FLAGS))
