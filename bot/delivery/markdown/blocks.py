"""Block structure of a Markdown text: CommonMark with tables."""

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from markdown_it import MarkdownIt
from markdown_it.token import Token

from bot.delivery.markdown.emphasis import careful_emphasis
from bot.delivery.markdown.literal import literal_blocks, literal_inline

_BLOCK_PARSER = MarkdownIt("commonmark").enable("table").use(literal_blocks).disable("inline")
# For platforms that do not parse Markdown themselves.
MESSAGE_PARSER = (
    MarkdownIt("commonmark")
    .enable(["table", "strikethrough"])
    .use(literal_blocks)
    .use(literal_inline)
    .use(careful_emphasis)
)

_LINE_END = re.compile(r"\r\n|\r|\n")
_SPACES = re.compile(r"\s+")
_QUOTE = re.compile(r"(?: {0,3}> ?)+")

# Width of an indentation that starts a code block outside of a list.
_CODE_INDENT = 4


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced code block; positions are character offsets in the text."""

    begin: int  # after the opening marker
    content: int  # start of the first line of code
    closing: int  # start of the closing line
    end: int  # after the closing marker
    marker: str
    info: str
    prefix: str  # of each line: quote marks, and the indentation of a list item

    def contains(self, at: int) -> bool:
        return self.begin <= at < self.end

    @property
    def opening(self) -> str:
        return f"{self.prefix}{self.marker}{self.info}\n"


class BlockIndex:
    """Index of the blocks of one text.

    The structure before a position does not depend on the lines after it, except for
    tables and setext headings, which need their second line.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        # The added newline gives the last line an end; the parser drops no line.
        self._tokens = [
            token for token in _BLOCK_PARSER.parse(text + "\n") if token.map is not None and token.nesting >= 0
        ]
        self.line_starts = [0, *(match.end() for match in _LINE_END.finditer(text))]

    @cached_property
    def fences(self) -> tuple[Fence, ...]:
        return tuple(self._fence(token) for token in self._tokens if token.type == "fence")

    @cached_property
    def block_starts(self) -> frozenset[int]:
        """Start of each block, also inside a list, a quote or a table."""
        return frozenset(self._offset(first) for first, _ in self._spans(r".*"))

    @cached_property
    def top_level(self) -> tuple[tuple[int, int], ...]:
        """Start and end of each block that is not nested."""
        return tuple((self._offset(first), self._offset(last)) for first, last in self._spans(r".*", top_level=True))

    def fence_at(self, at: int) -> Fence | None:
        """Return the code block that is open at this position."""
        number = bisect_right(self.fences, at, key=lambda fence: fence.begin) - 1
        return self.fences[number] if number >= 0 and self.fences[number].contains(at) else None

    def line_at(self, at: int) -> str:
        """Return the line at this position, without its newline."""
        begin = self.line_starts[self._row(at)]
        match = _LINE_END.search(self.text, begin)
        return self.text[begin : match.start() if match else len(self.text)]

    def column(self, at: int) -> int:
        return at - self.line_starts[self._row(at)]

    def is_line_start(self, at: int) -> bool:
        return self.column(at) == 0

    def closing_at(self, at: int) -> str:
        """Return the text that closes the code block open at this position, if any."""
        fence = self.fence_at(at)
        if fence is None:
            return ""
        line_end = "" if at > fence.begin and self.is_line_start(at) else "\n"
        return f"{line_end}{fence.prefix}{fence.marker}"

    def opening_at(self, at: int, room: int) -> str:
        """Return the text to insert before the rest, so that its structure is the same there.

        At most `room` characters: where more are needed, the language of a code block or the
        header of a table is omitted, else all of it.
        """
        opening = self._opening_at(at, room)
        return opening if len(opening) <= room else ""

    def _opening_at(self, at: int, room: int) -> str:
        mid_line = not self.is_line_start(at)
        if fence := self.fence_at(at):
            head = _enclosing_items(fence.prefix)
            opening = head + fence.opening
            if len(opening) > room:
                opening = f"{head}{fence.prefix}{fence.marker}\n"
            return opening + fence.prefix if mid_line else opening
        row = self._row(at)
        line = self.line_at(at)
        if mid_line:
            if self._is_within("code_block", row):
                return line[: len(line) - len(line.lstrip())]
            quote = _QUOTE.match(line)
            return quote.group() if quote and self._is_within("blockquote_open", row) else ""
        if self._is_within("code_block", row):
            return ""
        if header := self._table_header(row):
            return header if len(header) <= room else ""
        return _enclosing_items(_prefix(line, len(line)))

    def _table_header(self, row: int) -> str:
        """Return an empty header for the remaining rows of a table."""
        for first, last in self._spans("table_open"):
            if first + 2 <= row < last:
                columns = self.line_at(self.line_starts[first + 1])
                indentation = _prefix(columns, len(columns))
                count = columns.strip("|> \t").count("|") + 1
                return f"{_enclosing_items(indentation)}{indentation}{'|  ' * count}|\n{columns}\n"
        return ""

    def _fence(self, token: Token) -> Fence:
        assert token.map is not None
        first, last = token.map
        line = self.line_at(self.line_starts[first])
        mark = line.index(token.markup)
        begin = self.line_starts[first] + mark + len(token.markup)
        prefix = _prefix(line, mark)
        is_closed = last - first - 2 == token.content.count("\n")
        content = self._offset(first + 1)
        if is_closed:
            closing = self._offset(last - 1)
            end = closing + len(self.line_at(closing).rstrip())
        else:
            # The end of a list or quote closes its code block.
            closing = end = self._offset(last) if last < len(self.line_starts) else len(self.text) + 1
        return Fence(begin, content, closing, end, token.markup, token.info.strip(), prefix)

    def _spans(self, kind: str, top_level: bool = False) -> list[tuple[int, int]]:
        pattern = re.compile(kind)
        return [
            (token.map[0], token.map[1])
            for token in self._tokens
            if token.map is not None and pattern.fullmatch(token.type) and not (top_level and token.level)
        ]

    def _is_within(self, kind: str, row: int) -> bool:
        return any(first <= row < last for first, last in self._spans(kind))

    def _row(self, at: int) -> int:
        return bisect_right(self.line_starts, at) - 1

    def _offset(self, row: int) -> int:
        return self.line_starts[row] if row < len(self.line_starts) else len(self.text)


def _prefix(line: str, end: int) -> str:
    """Return the prefix that continues the quotes and lists of a line on the next one.

    >>> _prefix("> 1. ```py", 5)
    '>    '
    """
    head = line[:end]
    head = head[: len(head) - len(head.lstrip("> \t"))] if end == len(line) else head
    return re.sub(r"[^\s>]", " ", head)


def _enclosing_items(prefix: str) -> str:
    """Return empty list items for lines whose indentation would otherwise start a code block."""
    quotes = prefix[: prefix.rfind(">") + 2] if ">" in prefix else ""
    indentation = len(prefix[len(quotes) :].expandtabs(_CODE_INDENT))
    if indentation < _CODE_INDENT:
        return ""
    return f"{quotes}{' '.join(['+'] * (indentation // 2 - 1))}\n"


def is_balanced(markdown: str) -> bool:
    """Return True if every code block of the text is closed."""
    return BlockIndex(markdown).fence_at(len(markdown)) is None


def visible_text(markdown: str) -> str:
    """Return the rendered text without markup and whitespace.

    >>> visible_text("**Bold** and [a link](https://example.org)")
    'Boldandalink'
    """
    return _SPACES.sub("", "".join(_contents(MESSAGE_PARSER.parse(markdown))))


def _contents(tokens: list[Token]) -> list[str]:
    contents = []
    for token in tokens:
        if token.children:
            contents += _contents(token.children)
        elif token.type != "inline":
            contents.append(token.content)
    return contents
