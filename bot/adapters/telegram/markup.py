"""Markdown as Telegram takes it: plain text, and entities for bold, code, links.

The text has exactly the characters of `bot.delivery.markdown.blocks.visible`, raw HTML
included.  Additions (bullets, numbers, table lines) end in an en space, which the text
itself never contains, so that tests can remove them.
"""

import bisect
import re
import unicodedata
from dataclasses import dataclass, replace
from itertools import zip_longest

from markdown_it.token import Token
from telegram import MessageEntity

from bot.delivery.markdown.blocks import MESSAGE_PARSER
from bot.delivery.markdown.format import Rendered, utf16_units

LIMIT = 4096  # UTF-16 code units: at least as many as in any other way of counting
MOST_ENTITIES = 100  # Telegram drops the rest
EN_SPACE = "\N{EN SPACE}"

_STYLES = {"strong": "bold", "em": "italic", "s": "strikethrough", "heading": "bold", "blockquote": "blockquote"}
_LINE_END = re.compile(r"\r\n|\r|\n")
# No other scheme: a tg:// link to a user would notify that user.
_LINK = re.compile(r"https?://", re.IGNORECASE)
# Telegram turns `@name` into a mention, which notifies, but not inside code or a link.  Of an address the path is
# a link too, if the host has a top-level domain; a comma behind the host ends it.
_MENTION = re.compile(
    r"https?://(?:[a-z0-9-]+\.)+[a-z]{2,}(?::\d+)?[/?#][^\s<>\"«»\u2000-\u206f]*|(?<![a-z0-9_])(@[a-z0-9_]{2,})",
    re.IGNORECASE,
)
# Where Telegram looks for no mention.
_LITERAL = frozenset({"code", "pre", "text_link"})
_WORD_JOINER = "\N{WORD JOINER}"


@dataclass(frozen=True, slots=True)
class Entity:
    """A styled span of the text, in UTF-16 code units."""

    kind: str
    offset: int
    length: int
    url: str | None = None
    language: str | None = None


class TelegramFormat:
    """A Format whose lengths are UTF-16 code units of the text."""

    limit = LIMIT

    def render(self, markdown: str) -> Rendered:
        """Turn Markdown into text and entities.

        >>> rendered = TelegramFormat().render("**好** [x](https://y.z)")
        >>> rendered.text, [(entity.kind, entity.offset, entity.length) for entity in rendered.entities]
        ('好 x', [('bold', 0, 1), ('text_link', 2, 1)])
        """
        return self.render_tokens(markdown, MESSAGE_PARSER.parse(markdown))

    def render_tokens(self, markdown: str, tokens: list[Token]) -> Rendered:
        """Render Markdown that was parsed already."""
        return _Writer(markdown, tokens).rendered()

    def plain(self, markdown: str) -> Rendered:
        # Without entities only another character keeps a name from being a mention; this one is invisible.
        joined = _MENTION.sub(
            lambda match: match[0].replace("@", f"@{_WORD_JOINER}") if match[1] else match[0], markdown
        )
        return Rendered(joined)

    def measure(self, rendered: Rendered) -> int:
        # With too many entities a text counts as too long, so that it is split and keeps them.
        count = len(rendered.entities)
        return max(utf16_units(rendered.text), self.limit * count // MOST_ENTITIES if count > MOST_ENTITIES else 0)


@dataclass(slots=True, eq=False)
class _Style:
    """An open span; it begins with the next text."""

    kind: str
    url: str | None = None
    begin: int | None = None


class _Writer:
    """Renders the tokens of one text."""

    def __init__(self, markdown: str, tokens: list[Token]) -> None:
        self._lines = _LINE_END.split(markdown)
        self._text: list[str] = []
        self._length = 0
        self._entities: list[Entity] = []
        self._open: list[_Style] = []
        # Written before the next text, if there is any.
        self._newlines = 0
        self._additions: list[str] = []
        self._depth = 0
        self._write_blocks(tokens)

    def rendered(self) -> Rendered:
        # Telegram strips the end too; texts that differ only there must compare equal.
        text = "".join(self._text).rstrip()
        length = utf16_units(text)
        entities = [
            replace(entity, length=min(entity.length, length - entity.offset))
            for entity in sorted(self._entities, key=lambda entity: (entity.offset, -entity.length))
            if entity.offset < length
        ]
        return Rendered(text, tuple(_with_names_as_code(text, entities)))

    def _write_blocks(self, tokens: list[Token]) -> None:
        table: list[list[str]] = []
        for number, token in enumerate(tokens):
            if token.map is not None and token.nesting >= 0 and token.type != "inline":
                self._begin_block(token.map[0])
            match token.type:
                case "inline" if table:
                    table[-1].append(_words(token.children or []))
                case "inline":
                    self._write_inline(token.children or [])
                case "fence" | "code_block":
                    language = token.info.split()[0] if token.info.split() else None
                    self._write_alone(content_of(token).removesuffix("\n"), Entity("pre", 0, 0, language=language))
                case "html_block":
                    self._write(content_of(token).rstrip("\n"))
                case "hr":
                    self._additions.append(f"———{EN_SPACE}\n")
                case "bullet_list_open" | "ordered_list_open":
                    self._depth += 1
                case "bullet_list_close" | "ordered_list_close":
                    self._depth -= 1
                case "list_item_open" if not token.hidden:
                    self._begin_item(_marker(token, tokens[number + 1 : number + 3]))
                case "list_item_close":
                    self._additions.clear()
                case "tr_open":
                    table.append([])
                case "table_close":
                    self._write_alone(draw_table(table), Entity("pre", 0, 0))
                    table = []
                case kind:
                    self._toggle(kind)

    def _begin_block(self, line: int) -> None:
        is_apart = line > 0 and not self._lines[line - 1].strip("> \t")
        self._newlines = max(self._newlines, 2 if is_apart else 1)

    def _begin_item(self, marker: str) -> None:
        self._additions.append(f"{'   ' * (self._depth - 1)}{marker}{EN_SPACE}")

    def _write_inline(self, tokens: list[Token]) -> None:
        for token in tokens:
            match token.type:
                case "text" | "formula" | "html_inline":
                    self._write(content_of(token))
                case "code_inline":
                    self._write_alone(content_of(token), Entity("code", 0, 0))
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
                case kind:
                    self._toggle(kind)

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
        """Write code: no style continues inside it; within a link it is plain text."""
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

    def _toggle(self, kind: str) -> None:
        name, _, edge = kind.rpartition("_")
        if style := _STYLES.get(name):
            (self._begin if edge == "open" else self._end)(style)

    def _begin(self, kind: str, url: str | None = None) -> None:
        self._open.append(_Style(kind, url if url and _LINK.match(url) else None))

    def _end(self, kind: str) -> None:
        style = next(style for style in reversed(self._open) if style.kind == kind)
        self._open.remove(style)
        self._finish(style)

    def _finish(self, style: _Style) -> None:
        is_needed = style.kind != "text_link" or style.url
        # Telegram rejects nested entities of one kind; the outer one is enough.
        if style.begin is not None and is_needed and not any(other.kind == style.kind for other in self._open):
            self._entities.append(Entity(style.kind, style.begin, self._length - style.begin, url=style.url))


def entities_of(text: Rendered) -> list[MessageEntity]:
    return [
        MessageEntity(entity.kind, entity.offset, entity.length, url=entity.url, language=entity.language)
        for entity in text.entities
        if isinstance(entity, Entity)
    ]


def _with_names_as_code(text: str, entities: list[Entity]) -> list[Entity]:
    """Show each name as code, since only the asker is to be notified; other styles end before it and begin again after.

    >>> [(each.kind, each.offset, each.length) for each in _with_names_as_code("hi @mei", [Entity("bold", 0, 7)])]
    [('bold', 0, 3), ('code', 3, 4)]
    """
    literal = [each for each in entities if each.kind in _LITERAL]  # they do not overlap
    names: list[Entity] = []
    at = begin = number = 0
    for match in _MENTION.finditer(text):
        if match[1]:
            begin += utf16_units(text[at : match.start()])
            at = match.start()
            while number < len(literal) and _end(literal[number]) <= begin:
                number += 1
            if number == len(literal) or literal[number].offset >= begin + len(match[1]):
                names.append(Entity("code", begin, len(match[1])))
    pieces = [piece for each in entities for piece in _between(each, names)]
    return sorted([*pieces, *names], key=lambda each: (each.offset, -each.length))


def _between(entity: Entity, names: list[Entity]) -> list[Entity]:
    """Return the parts of an entity between names; a quotation may contain them."""
    if entity.kind == "blockquote":
        return [entity]
    number, at = bisect.bisect_right(names, entity.offset, key=_end), entity.offset
    pieces: list[Entity] = []
    while number < len(names) and names[number].offset < _end(entity):
        pieces.append(replace(entity, offset=at, length=names[number].offset - at))
        at = _end(names[number])
        number += 1
    pieces.append(replace(entity, offset=at, length=_end(entity) - at))
    return [piece for piece in pieces if piece.length > 0]


def _end(entity: Entity) -> int:
    return entity.offset + entity.length


def _marker(item: Token, first: list[Token]) -> str:
    """Return the marker of a list item: as it was written where it can be a sign or a year."""
    return marker_of(item, next((token.content for token in first if token.type == "inline"), ""))


def is_sign(item: Token, words: str) -> bool:
    """Return whether the marker of a list item can be a plus or minus."""
    return item.markup == "+" or (item.markup == "-" and words[:1].isdigit())


def marker_of(item: Token, words: str) -> str:
    return item.markup if is_sign(item, words) else f"{item.info}{item.markup}" if item.info else "•"


def content_of(token: Token) -> str:
    return token.content.replace(EN_SPACE, " ")


def _words(tokens: list[Token]) -> str:
    """Return the plain text of a table cell: code blocks take no entities."""
    return "".join(
        _words(token.children) if token.children else " " if token.type.endswith("break") else content_of(token)
        for token in tokens
    )


def draw_table(rows: list[list[str]]) -> str:
    """Draw a table with aligned columns; Chinese characters are two columns wide.

    >>> [line.replace(EN_SPACE, "") for line in draw_table([["名", "b"], ["c", "d"]]).splitlines()]
    ['名 │b', '───┼──', 'c  │d']
    """
    widths = [max(map(_width, column)) for column in zip_longest(*rows, fillvalue="")]
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
    return sum(
        2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
        if not unicodedata.combining(character)
    )
