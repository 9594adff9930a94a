"""Cut long Markdown into messages: code blocks stay closed, and nothing is lost.

What stays exact: the bodies of the chunks, joined, are the text, whitespace included,
which stands at the end of the chunk before the cut where it fits.  What is added so
that a chunk reads as the text does (a fence reopened and closed, the quote mark of a
long line, an empty header over the rest of a table) is kept apart from the body.

Cuts fall where a block begins, else between lines, sentences, words, characters; they
spare what people see: `**`, links and the like are not torn unless a message cannot
hold them.  A fence that would take more than a whole message is cut like text.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from bot.delivery.markdown.blocks import BlockIndex, is_balanced, visible_text
from bot.delivery.markdown.format import Format

# How far beyond a cut the text is read to see whether the cut tears something; a
# cut whose text has grown so far stays where it is.
_AHEAD = 256
# Cuts that are tried before one is taken that shows a torn mark.
_TRIES = 24
# Guesses at the longest chunk that fits before the search turns to halving.
_GUESSES = 8

_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？；…][」』”’）】]*\s*")
_WORD_END = re.compile(r"\s+|[、，：]\s*")
_NOT_FIRST = frozenset("、。，！？；：」』）】》”’…—,.!?;:)]}")
_NOT_LAST = frozenset("「『（【《“‘([{")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One message's worth of a text: `body` is the text's own, the rest was added."""

    body: str
    opening: str = ""
    closing: str = ""

    @property
    def text(self) -> str:
        return f"{self.opening}{self.body}{self.closing}"


def split(markdown: str, format: Format) -> list[Chunk]:
    """Cut a text into chunks that each fit one message there.

    A chunk of nothing but whitespace may occur, and need not be sent.

    >>> from bot.delivery.markdown.format import MarkdownFormat
    >>> [chunk.text for chunk in split("```py\\na = 1\\nb = 2\\nc = 3\\nd = 4\\n```", MarkdownFormat(28))]
    ['```py\\na = 1\\nb = 2\\nc = 3\\n```', '```py\\nd = 4\\n```']
    """
    splitter = Splitter(format)
    splitter.append(markdown)
    return splitter.chunks()


def join(chunks: Iterable[Chunk]) -> str:
    """The text that was cut, to the character."""
    return "".join(chunk.body for chunk in chunks)


class Splitter:
    """A text that grows, in chunks.

    The chunks are those of `split`, however the text arrived.  All but the last few
    stay as they are and cost nothing any more: a cut is settled once the text goes on
    for another `_AHEAD` characters, or for as many as the cut chunk could hold.  (A
    format where a longer text may render shorter settles them in the order of growth.)
    """

    def __init__(self, format: Format) -> None:
        self._format = format
        self._settled: list[Chunk] = []
        self._opening = ""
        self._rest = ""
        self._more: list[str] = []

    def append(self, text: str) -> None:
        self._more.append(text)

    def chunks(self) -> list[Chunk]:
        rest = self._rest + "".join(self._more)
        self._more.clear()
        opening = self._opening
        chunks = list(self._settled)
        is_settled = True
        while rest:
            cut = _Cut(self._format, opening, rest)
            chunks.append(cut.chunk)
            is_settled = is_settled and cut.is_settled
            if is_settled:
                self._settled.append(cut.chunk)
                self._opening = cut.next_opening
            opening, rest = cut.next_opening, rest[len(cut.chunk.body) :]
        self._rest = join(chunks[len(self._settled) :])
        return chunks


class _Cut:
    """The first chunk of a text, and how the next one begins."""

    def __init__(self, format: Format, opening: str, rest: str) -> None:
        self._format = format
        self._opening = opening
        self._rest = rest
        self.next_opening = ""
        self.is_settled = False
        # However much a platform's rendering leaves out, a chunk holds at most two
        # limits of Markdown: so the work does not depend on how long the text is.
        most = 2 * format.limit
        self._reading = BlockIndex(opening + rest[:most])
        if len(rest) <= most and self._fits(len(rest)):
            self.chunk = self._head(len(rest))
            return
        longest = self._longest(min(most, len(rest) - 1))
        if longest == 0 and self._opening:
            self._opening = ""
            self._reading = BlockIndex(rest[:most])
            longest = self._longest(min(most, len(rest) - 1))
        longest = max(1, longest)
        ahead = longest + min(_AHEAD, longest)
        self.is_settled = len(rest) > ahead
        self._reading = BlockIndex(self._opening + rest[:ahead])
        at = self._best(longest)
        self.chunk = self._head(at)
        self.next_opening = self._next_opening(at)

    def _longest(self, most: int) -> int:
        """The longest beginning that fits."""
        fitting, too_long = 0, most + 1
        probe = min(most, self._format.limit)
        guesses = _GUESSES
        while too_long - fitting > 1:
            room = self._room(probe)
            if room >= 0:
                fitting = probe
            else:
                too_long = probe
            # The room left tells where to look next; where it misleads, halving ends it.
            guesses -= 1
            probe = probe + room if guesses > 0 else (fitting + too_long) // 2
            probe = min(max(probe, fitting + 1), too_long - 1)
        return self._before_closing_line(fitting)

    def _head(self, at: int) -> Chunk:
        closing = self._reading.closing(len(self._opening) + at)
        return Chunk(self._rest[:at], self._opening, closing)

    def _next_opening(self, at: int) -> str:
        return self._reading.opening(len(self._opening) + at, room=self._format.limit // 2)

    def _fits(self, at: int) -> bool:
        return self._room(at) >= 0

    def _room(self, at: int) -> int:
        text = self._head(self._before_closing_line(at)).text
        return self._format.limit - self._format.measure(self._format.render(text))

    def _before_closing_line(self, at: int) -> int:
        """Step back out of a line that closes a code block: half of it would count twice."""
        fence = self._reading.fence(len(self._opening) + at)
        return at if fence is None else min(at, fence.closing - len(self._opening))

    def _best(self, longest: int) -> int:
        tried: list[int] = []
        for at in islice(_unique(self._borders(longest)), _TRIES):
            if self._spares_what_is_seen(at):
                return at
            tried.append(at)
        return next((at for at in tried if is_balanced(self._head(at).text)), tried[0])

    def _borders(self, longest: int) -> Iterator[int]:
        """Places to cut, the best first: a kind of border, and then the later one."""
        # A border further to the front would leave a scrap of a message.
        blocks = self._lines(longest // 3, longest, {begin for begin, _ in self._reading.tops})
        nested = self._lines(longest // 2, longest, self._reading.blocks)
        lines = self._lines(longest // 2, longest)
        sentences = self._ends(_SENTENCE_END, longest)
        words = self._ends(_WORD_END, longest)
        cuts = chain(blocks, nested, lines, sentences, words)
        yield from (at for at in cuts if self._is_open(at) and not _is_joined(self._rest, at) and self._fits(at))
        yield from self._characters(longest)

    def _lines(self, least: int, longest: int, among: Iterable[int] | None = None) -> list[int]:
        starts = self._reading.starts if among is None else sorted(among)
        offset = len(self._opening)
        return [at for start in reversed(starts) if least < (at := start - offset) <= longest]

    def _ends(self, border: re.Pattern[str], longest: int) -> list[int]:
        # One character more shows whether the border goes on; the cut itself may then
        # stand within the whitespace.
        found = (min(match.end(), longest) for match in border.finditer(self._rest, longest // 2, longest + 1))
        return sorted((at for at in found if at > longest // 2), reverse=True)

    def _characters(self, longest: int) -> Iterator[int]:
        nearby = [at for at in range(longest, max(0, longest - 64), -1) if not _is_joined(self._rest, at)]
        pleasant = (at for at in nearby if self._rest[at] not in _NOT_FIRST and self._rest[at - 1] not in _NOT_LAST)
        yield from (at for at in chain(pleasant, nearby) if self._is_open(at))
        yield from nearby
        yield longest

    def _is_open(self, at: int) -> bool:
        """Whether a cut here leaves the lines alone that open and close a code block."""
        position = len(self._opening) + at
        fence = self._reading.fence(position)
        if fence is None:
            return True
        if not fence.content < position < fence.closing:
            return False
        if self._reading.is_line_start(position):
            return True
        line, column = self._reading.line(position), self._reading.column(position)
        in_prefix = fence.prefix and not line[:column].strip("> \t")
        return not in_prefix and fence.marker[:3] not in line

    def _spares_what_is_seen(self, at: int) -> bool:
        """Whether both sides of a cut, read alone, show what the whole block shows."""
        position = len(self._opening) + at
        text = self._reading.text
        around = next(((begin, end) for begin, end in self._reading.tops if begin < position < end), None)
        if around is None:
            return True
        begin, end = around
        head = text[begin:position] + self._head(at).closing
        tail = self._next_opening(at) + text[position:end]
        return visible_text(head) + visible_text(tail) == visible_text(text[begin:end])


def _unique(numbers: Iterable[int]) -> Iterator[int]:
    seen: set[int] = set()
    for number in numbers:
        if number not in seen:
            seen.add(number)
            yield number


def _is_joined(text: str, at: int) -> bool:
    """Whether the characters on both sides make one sign together."""
    before, after = text[at - 1], text[at]
    if before == "\r" and after == "\n":
        return True
    if "\ud800" <= before <= "\udbff" and "\udc00" <= after <= "\udfff":
        return True
    if before == "\u200d" or after == "\u200d":  # joins emoji to one picture
        return True
    if unicodedata.category(after).startswith("M") or "\U0001f3fb" <= after <= "\U0001f3ff":
        return True  # accents, variation selectors; the colour of a skin
    if "\u1160" <= after <= "\u11ff" or "\U000e0020" <= after <= "\U000e007f":
        return True  # later letters of a Korean syllable; letters of a flag
    return _is_flag(after) and _flags_before(text, at) % 2 == 1


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _flags_before(text: str, at: int) -> int:
    count = 0
    while at > count and _is_flag(text[at - 1 - count]):
        count += 1
    return count
