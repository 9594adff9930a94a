"""Markdown as Telegram takes it: plain text, and beside it the places of what is bold, code or a link.

The words are those that `bot.delivery.markdown.blocks.visible` sees, to the character, raw HTML
included.  What is added to them (bullets, numbers, the lines of a table) ends in an en
space, which the words never hold: so a reader can tell the two apart.
"""

import re
import unicodedata
from dataclasses import dataclass, replace

from markdown_it.token import Token

from bot.delivery.markdown.blocks import MESSAGE_PARSER
from bot.delivery.markdown.format import Rendered, utf16_units

LIMIT = 4096  # UTF-16 code units: whichever way the server counts, this is not more
MOST_ENTITIES = 100  # Telegram drops those beyond
EN_SPACE = "\N{EN SPACE}"

_STYLES = {"strong_open": "bold", "em_open": "italic", "s_open": "strikethrough"}
_CLOSING = {kind.replace("_open", "_close"): style for kind, style in _STYLES.items()}
# tg:// addresses among others: a link to a person would call that person.
_LINE_END = re.compile(r"\r\n|\r|\n")
_LINK = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entity:
    """A stretch of the text, counted in UTF-16 code units, that looks different."""

    kind: str
    offset: int
    length: int
    url: str | None = None
    language: str | None = None


class TelegramFormat:
    """A Format; its lengths are UTF-16 code units of the text."""

    limit = LIMIT

    def render(self, markdown: str) -> Rendered:
        """Turn Markdown into text and entities.

        >>> rendered = TelegramFormat().render("**好** [x](https://y.z)")
        >>> rendered.text, [(entity.kind, entity.offset, entity.length) for entity in rendered.entities]
        ('好 x', [('bold', 0, 1), ('text_link', 2, 1)])
        """
        return _Writer(markdown).rendered()

    def plain(self, markdown: str) -> Rendered:
        return Rendered(markdown)

    def measure(self, rendered: Rendered) -> int:
        # A text with too many entities counts as too long: so it is cut, and keeps them.
        excess = len(rendered.entities) - MOST_ENTITIES
        return max(utf16_units(rendered.text), self.limit + excess if excess > 0 else 0)


@dataclass(slots=True)
class _Style:
    """A stretch that is not over yet; it begins with the next word."""

    kind: str
    url: str | None = None
    begin: int | None = None


class _Writer:
    """Goes through the tokens of one text."""

    def __init__(self, markdown: str) -> None:
        self._lines = _LINE_END.split(markdown)
        self._text: list[str] = []
        self._length = 0
        self._entities: list[Entity] = []
        self._open: list[_Style] = []
        # Written only once a word follows: what stands before nothing is not wanted.
        self._newlines = 0
        self._additions: list[str] = []
        self._lists: list[int | None] = []
        self._quotes = 0
        self._write_blocks(MESSAGE_PARSER.parse(markdown))

    def rendered(self) -> Rendered:
        # Telegram drops whitespace at the end: what differs in that alone is one text there.
        text = "".join(self._text).rstrip()
        length = utf16_units(text)
        entities = [
            replace(entity, length=min(entity.length, length - entity.offset))
            for entity in sorted(self._entities, key=lambda entity: (entity.offset, -entity.length))
            if entity.offset < length
        ]
        return Rendered(text, tuple(entities))

    def _write_blocks(self, tokens: list[Token]) -> None:
        table: list[list[str]] = []
        for token in tokens:
            if token.map is not None and token.nesting >= 0 and token.type != "inline":
                self._begin_block(token.map[0])
            match token.type:
                case "inline" if table:
                    table[-1].append(_words(token.children or []))
                case "inline":
                    self._write_inline(token.children or [])
                case "fence" | "code_block":
                    language = token.info.split()[0] if token.info.split() else None
                    self._write_alone(_content(token).removesuffix("\n"), Entity("pre", 0, 0, language=language))
                case "html_block":
                    self._write(_content(token).rstrip("\n"))
                case "hr":
                    self._additions.append(f"———{EN_SPACE}\n")
                case "bullet_list_open":
                    self._lists.append(None)
                case "ordered_list_open":
                    self._lists.append(int(token.attrs.get("start", 1)))
                case "bullet_list_close" | "ordered_list_close":
                    self._lists.pop()
                case "list_item_open":
                    self._begin_item(token)
                case "list_item_close":
                    self._additions.clear()
                case "blockquote_open":
                    self._quotes += 1
                    if self._quotes == 1:  # a quote within a quote is not allowed
                        self._begin("blockquote")
                case "blockquote_close":
                    self._quotes -= 1
                    if self._quotes == 0:
                        self._end("blockquote")
                case "tr_open":
                    table.append([])
                case "table_close":
                    self._write_alone(_table(table), Entity("pre", 0, 0))
                    table = []
                case "heading_open":
                    self._begin("bold")
                case "heading_close":
                    self._end("bold")

    def _begin_block(self, line: int) -> None:
        is_apart = line > 0 and not self._lines[line - 1].strip("> \t")
        self._newlines = max(self._newlines, 2 if is_apart else 1)

    def _begin_item(self, token: Token) -> None:
        number = self._lists[-1]
        indent = "   " * (len(self._lists) - 1)
        if number is None:
            self._additions.append(f"{indent}•{EN_SPACE}")
        else:
            self._additions.append(f"{indent}{number}{token.markup}{EN_SPACE}")
            self._lists[-1] = number + 1

    def _write_inline(self, tokens: list[Token]) -> None:
        for token in tokens:
            match token.type:
                case "text" | "html_inline":
                    self._write(_content(token))
                case "code_inline":
                    self._write_alone(_content(token), Entity("code", 0, 0))
                case "softbreak" | "hardbreak":
                    self._newlines = max(self._newlines, 1)
                case "link_open":
                    self._begin("text_link", str(token.attrGet("href")))
                case "link_close":
                    self._end("text_link")
                case "image":
                    self._begin("text_link", str(token.attrGet("src")))
                    self._write_inline(token.children or [])
                    self._end("text_link")
                case kind if kind in _STYLES:
                    self._begin(_STYLES[kind])
                case kind if kind in _CLOSING:
                    self._end(_CLOSING[kind])

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._text:
            self._put("\n" * self._newlines)
        self._newlines = 0
        for addition in self._additions:
            self._put(addition)
        self._additions.clear()
        for style in self._open:
            if style.begin is None:
                style.begin = self._length
        self._put(text)

    def _write_alone(self, text: str, entity: Entity) -> None:
        """Write code: no style goes on in it, and in a link it is none."""
        if any(style.kind == "text_link" and style.url for style in self._open):
            self._write(text)
            return
        if not text:
            return
        styles = [style for style in self._open if style.kind != "blockquote"]
        self._open = [style for style in self._open if style.kind == "blockquote"]
        for number, style in enumerate(styles):
            if all(earlier.kind != style.kind for earlier in styles[:number]):
                self._finish(style)
        self._write(text)
        length = utf16_units(text)
        self._entities.append(replace(entity, offset=self._length - length, length=length))
        self._open += [replace(style, begin=None) for style in styles]

    def _put(self, text: str) -> None:
        self._text.append(text)
        self._length += utf16_units(text)

    def _begin(self, kind: str, url: str | None = None) -> None:
        self._open.append(_Style(kind, url if url and _LINK.match(url) else None))

    def _end(self, kind: str) -> None:
        style = next(style for style in reversed(self._open) if style.kind == kind)
        self._open.remove(style)
        self._finish(style)

    def _finish(self, style: _Style) -> None:
        is_needed = style.kind != "text_link" or style.url
        if style.begin is not None and is_needed and not any(other.kind == style.kind for other in self._open):
            self._entities.append(Entity(style.kind, style.begin, self._length - style.begin, url=style.url))


def _content(token: Token) -> str:
    return token.content.replace(EN_SPACE, " ")


def _words(tokens: list[Token]) -> str:
    """The words of a table's cell, where nothing can stand out."""
    return "".join(
        _words(token.children) if token.children else " " if token.type.endswith("break") else _content(token)
        for token in tokens
    )


def _table(rows: list[list[str]]) -> str:
    """Draw a table whose columns stand below each other, Chinese ones too.

    >>> [line.replace(EN_SPACE, "") for line in _table([["名", "b"], ["c", "d"]]).splitlines()]
    ['名 │b', '───┼──', 'c  │d']
    """
    columns = max(map(len, rows))
    widths = [max((_width(row[at]) for row in rows if at < len(row)), default=0) for at in range(columns)]
    lines = [line for line in (_row(row, widths) for row in rows) if line]
    if len(lines) > 1:
        lines.insert(1, "─┼".join("─" * width + ("─" if at else "") for at, width in enumerate(widths)) + EN_SPACE)
    return "\n".join(lines)


def _row(cells: list[str], widths: list[int]) -> str:
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    padded = [cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=False)]
    return f" │{EN_SPACE}".join(padded).rstrip()


def _width(text: str) -> int:
    """Columns of a terminal: a Chinese character takes two."""
    return sum(
        2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
        if not unicodedata.combining(character)
    )
