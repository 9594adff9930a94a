"""Where the blocks of a Markdown text are, as CommonMark reads them (with tables)."""

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from markdown_it import MarkdownIt
from markdown_it.token import Token

from bot.delivery.markdown.emphasis import cjk_friendly_emphasis

_BLOCKS = MarkdownIt("commonmark").enable("table").disable("inline")
# How a whole message is read, on platforms that do not read it themselves.
MESSAGE_PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"]).use(cjk_friendly_emphasis)

_LINE_END = re.compile(r"\r\n|\r|\n")
_SPACES = re.compile(r"\s+")
_QUOTE = re.compile(r"(?: {0,3}> ?)+")

# An indentation from here on reads as code, where nothing stands around it.
_CODE = 4


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced code block; positions count characters of the text that was read."""

    begin: int  # behind the marker that opens it
    content: int  # where its first line begins
    closing: int  # where the line that closes it begins
    end: int  # from here on it is closed
    marker: str
    info: str
    prefix: str  # what its lines begin with: quote marks, and the indentation of a list

    def holds(self, at: int) -> bool:
        return self.begin <= at < self.end

    @property
    def opening(self) -> str:
        return f"{self.prefix}{self.marker}{self.info}\n"


class BlockIndex:
    """The blocks of one text.

    What stands before a position never depends on the lines that follow it, but for
    tables and underlined headings, which need their second line.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        # The parser drops no line, but it must see the end of the last one.
        self._tokens = [token for token in _BLOCKS.parse(text + "\n") if token.map is not None and token.nesting >= 0]
        self.starts = [0, *(match.end() for match in _LINE_END.finditer(text))]

    @cached_property
    def fences(self) -> tuple[Fence, ...]:
        return tuple(self._fence(token) for token in self._tokens if token.type == "fence")

    @cached_property
    def blocks(self) -> frozenset[int]:
        """Where any block begins, also one within a list, a quote or a table."""
        return frozenset(self._position(first) for first, _ in self._spans(r".*"))

    @cached_property
    def tops(self) -> tuple[tuple[int, int], ...]:
        """Begin and end of each block that stands in no other."""
        return tuple(
            (self._position(first), self._position(last)) for first, last in self._spans(r".*", outermost=True)
        )

    def fence(self, at: int) -> Fence | None:
        """The code block that is open at this position."""
        return next((fence for fence in self.fences if fence.holds(at)), None)

    def line(self, at: int) -> str:
        """The line that this position stands in, without its end."""
        begin = self.starts[self._row(at)]
        match = _LINE_END.search(self.text, begin)
        return self.text[begin : match.start() if match else len(self.text)]

    def column(self, at: int) -> int:
        return at - self.starts[self._row(at)]

    def is_line_start(self, at: int) -> bool:
        return self.column(at) == 0

    def closing(self, at: int) -> str:
        """What closes the code block that is open there, or nothing."""
        fence = self.fence(at)
        if fence is None:
            return ""
        line_end = "" if at > fence.begin and self.is_line_start(at) else "\n"
        return f"{line_end}{fence.prefix}{fence.marker}"

    def opening(self, at: int, room: int) -> str:
        """What must stand before the rest of the text, so that it reads as it does here.

        At most `room` characters where that can be: then the language of a code block
        is left out, and a table's rows are no table.
        """
        middle = not self.is_line_start(at)
        if fence := self.fence(at):
            head = _around(fence.prefix)
            opening = head + fence.opening
            if len(opening) > room:
                opening = f"{head}{fence.prefix}{fence.marker}\n"
            return opening + fence.prefix if middle else opening
        row = self._row(at)
        line = self.line(at)
        if middle:
            if self._within("code_block", row):
                return line[: len(line) - len(line.lstrip())]
            quote = _QUOTE.match(line)
            return quote.group() if quote and self._within("blockquote_open", row) else ""
        if self._within("code_block", row):
            return ""
        if header := self._table_header(row):
            return header if len(header) <= room else ""
        return _around(_prefix(line, len(line)))

    def _table_header(self, row: int) -> str:
        """An empty header for the rows of a table that follow: nothing is said twice."""
        for first, last in self._spans("table_open"):
            if first + 2 <= row < last:
                columns = self.line(self.starts[first + 1])
                indentation = _prefix(columns, len(columns))
                count = columns.strip("|> \t").count("|") + 1
                return f"{_around(indentation)}{indentation}{'|  ' * count}|\n{columns}\n"
        return ""

    def _fence(self, token: Token) -> Fence:
        assert token.map is not None
        first, last = token.map
        line = self.line(self.starts[first])
        mark = line.index(token.markup)
        begin = self.starts[first] + mark + len(token.markup)
        prefix = _prefix(line, mark)
        is_closed = last - first - 2 == token.content.count("\n")
        content = self._position(first + 1)
        if is_closed:
            closing = self._position(last - 1)
            end = closing + len(self.line(closing).rstrip())
        else:
            # A list or a quote that ends takes its code block along.
            closing = end = self._position(last) if last < len(self.starts) else len(self.text) + 1
        return Fence(begin, content, closing, end, token.markup, token.info.strip(), prefix)

    def _spans(self, kind: str, outermost: bool = False) -> list[tuple[int, int]]:
        wanted = re.compile(kind)
        return [
            (token.map[0], token.map[1])
            for token in self._tokens
            if token.map is not None and wanted.fullmatch(token.type) and not (outermost and token.level)
        ]

    def _within(self, kind: str, row: int) -> bool:
        return any(first <= row < last for first, last in self._spans(kind))

    def _row(self, at: int) -> int:
        return bisect_right(self.starts, at) - 1

    def _position(self, row: int) -> int:
        return self.starts[row] if row < len(self.starts) else len(self.text)


def _prefix(line: str, end: int) -> str:
    """What the next line must begin with to stand in the same quotes and lists.

    >>> _prefix("> 1. ```py", 5)
    '>    '
    """
    head = line[:end]
    head = head[: len(head) - len(head.lstrip("> \t"))] if end == len(line) else head
    return re.sub(r"[^\s>]", " ", head)


def _around(prefix: str) -> str:
    """Empty list items for lines that are indented so far that they would read as code."""
    quotes = prefix[: prefix.rfind(">") + 2] if ">" in prefix else ""
    indentation = len(prefix[len(quotes) :].expandtabs(_CODE))
    if indentation < _CODE:
        return ""
    return f"{quotes}{' '.join(['+'] * (indentation // 2 - 1))}\n"


def is_balanced(markdown: str) -> bool:
    """Whether each code block in the text is closed by a line of its own."""
    reading = BlockIndex(markdown)
    return reading.fence(len(markdown)) is None


def visible_text(markdown: str) -> str:
    """The text that a reader sees, without any whitespace.

    >>> visible_text("**Bold** and [a link](https://example.org)")
    'Boldandalink'
    """
    return _SPACES.sub("", "".join(_words(MESSAGE_PARSER.parse(markdown))))


def _words(tokens: list[Token]) -> list[str]:
    words = []
    for token in tokens:
        if token.children:
            words += _words(token.children)
        elif token.type != "inline":
            words.append(token.content)
    return words
