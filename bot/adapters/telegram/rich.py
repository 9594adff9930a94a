"""Markdown as blocks of Telegram's rich messages: tables, formulas, headings, lists.

Bot API 10.1 (June 2026) has rich messages, 10.2 takes them as blocks (InputRichMessage.blocks).  Blocks
rather than its Markdown: what the model writes can then be no HTML, picture or link to a user.
Names and limits are from https://core.telegram.org/bots/api#rich-messages, read in November 2026; other
limits are noted below.  None of this was tried on the live platform.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

from markdown_it.token import Token

from bot.adapters.telegram.markup import EN_SPACE, LIMIT, TelegramFormat, content_of, draw_table, is_sign, marker_of
from bot.delivery.markdown.blocks import MESSAGE_PARSER
from bot.delivery.markdown.format import Rendered, utf16_units

Json = dict[str, Any]
RichText = str | Json | list[Any]

RICH_LIMIT = 32_768  # characters; counted in UTF-16 code units here, at least as many
MOST_BLOCKS = 500  # list items and rows count too
DEEPEST = 16  # nested blocks and styles
MOST_COLUMNS = 20
# Styled spans.  Bots report that Telegram drops some of several thousand without an error.
MOST_SPANS = 1_000

_STYLES = {"strong_open": "bold", "em_open": "italic", "s_open": "strikethrough"}
_ADDRESS = re.compile(r"https?://[\w\-.~:/?#\[\]@!$&'()*+,;=%]+", re.IGNORECASE | re.ASCII)
_DELIMITERS = {"$$": "$$", r"\[": r"\]", r"\(": r"\)"}


@dataclass(frozen=True, slots=True)
class RichMessage:
    """The blocks of one message, as InputRichMessage."""

    blocks: tuple[Json, ...]

    @property
    def facts(self) -> Json:
        # Without the detection of entities, names are no mentions.
        return {"blocks": list(self.blocks), "skip_entity_detection": True}


def rich_message_of(text: Rendered) -> RichMessage | None:
    """Return the blocks of a text; None for one that is sent with entities."""
    return next((each for each in text.entities if isinstance(each, RichMessage)), None)


class RichFormat:
    """A RicherFormat: blocks for what entities cannot show, and for texts too long for them."""

    limit = RICH_LIMIT
    simpler = TelegramFormat()

    def render(self, markdown: str) -> Rendered:
        r"""Turn Markdown into blocks, or into text and entities if these show all of it.

        >>> RichFormat().render("**so**").text
        'so'
        >>> rich_message_of(RichFormat().render("# Area\n$r^2$")).blocks[1]
        {'type': 'paragraph', 'text': {'type': 'mathematical_expression', 'expression': 'r^2'}}
        """
        tokens = MESSAGE_PARSER.parse(markdown)
        if _is_deep(tokens):  # deeper than the interpreter's stack, in hostile text
            return self.simpler.render_tokens(markdown, tokens)
        is_short = sum(map(_length, tokens)) <= LIMIT
        text = (
            self.simpler.render_tokens(markdown, tokens) if is_short and not any(map(_needs_blocks, tokens)) else None
        )
        if text is not None and self.simpler.measure(text) <= LIMIT:
            return text
        blocks = _blocks(iter(tokens))
        if not blocks or _depth(blocks) > DEEPEST:
            return text or self.simpler.render_tokens(markdown, tokens)
        return Rendered(plain_text(blocks), (RichMessage(tuple(blocks)),))

    def plain(self, markdown: str) -> Rendered:
        return self.simpler.plain(markdown)

    def measure(self, rendered: Rendered) -> int:
        rich = rich_message_of(rendered)
        if rich is None:
            length = self.simpler.measure(rendered)
            # A text with entities is short, or the message is too long.
            return length if length <= LIMIT else length * self.limit // LIMIT
        counts = (_count(rich.blocks), MOST_BLOCKS), (_spans(rich.blocks), MOST_SPANS)
        return max(utf16_units(rendered.text), *(self.limit * n // most for n, most in counts if n > most), 0)


def plain_text(blocks: object) -> str:
    """Return the words of blocks, also of received ones, whose kinds and fields may be others.

    >>> plain_text([{"type": "heading", "text": ["a ", {"type": "bold", "text": "b"}], "size": 1}, {"type": "divider"}])
    'a b'
    """
    return "\n".join(filter(None, map(_block_text, blocks if isinstance(blocks, list | tuple) else ())))


def _block_text(block: object) -> str:
    if not isinstance(block, dict):
        return ""
    rows = block.get("cells")
    cells = [cell for row in rows if isinstance(row, list) for cell in row] if isinstance(rows, list) else []
    inner = [plain_text(block.get("blocks")), plain_text(block.get("items")), plain_text(cells)]
    return "\n".join(filter(None, [_words(block.get("text")), _words(block.get("expression")), *inner]))


def _words(text: object) -> str:
    match text:
        case str():
            return text
        case list():
            return "".join(map(_words, text))
        case dict():
            return _words(text.get("text") or text.get("expression"))
        case _:
            return ""


def _needs_blocks(token: Token) -> bool:
    is_formula = any(child.type == "formula" and _expression(child.content) for child in token.children or ())
    return is_formula or token.type in ("heading_open", "table_open")


def _length(token: Token) -> int:
    return sum(map(_length, token.children)) if token.children else len(token.content)


def _is_deep(tokens: Iterable[Token]) -> bool:
    """Return whether styles are nested deeper than Telegram accepts."""
    return any(
        max(accumulate(child.nesting for child in each.children or [each]), default=0) > DEEPEST for each in tokens
    )


def _blocks(tokens: Iterator[Token]) -> list[Json]:
    """Read blocks up to the end of the one that contains them."""
    blocks: list[Json] = []
    for token in tokens:
        match token.type:
            case "paragraph_open":
                blocks += _paragraph(next(tokens).children or [])
                next(tokens)
            case "heading_open":
                text = _rich_text(iter(next(tokens).children or []))
                next(tokens)
                blocks.append({"type": "heading", "text": text, "size": int(token.tag[1:])})
            case "fence" | "code_block":
                language = {"language": token.info.split()[0]} if token.info.split() else {}
                blocks += [{"type": "pre", "text": text} | language] if (text := _code(token)).strip() else []
            case "html_block":
                blocks.append({"type": "paragraph", "text": content_of(token).rstrip("\n")})
            case "hr":
                blocks.append({"type": "divider"})
            case "blockquote_open":
                inner = _blocks(tokens)
                blocks += [{"type": "blockquote", "blocks": inner}] if inner else []
            case "bullet_list_open" | "ordered_list_open":
                blocks += _list(tokens)
            case "table_open":
                blocks += _table(tokens)
            case _:
                break
    return blocks


def _code(token: Token) -> str:
    # Telegram makes a space of a tab.
    return content_of(token).removesuffix("\n").expandtabs(4)


def _paragraph(children: list[Token]) -> list[Json]:
    content = [child for child in children if child.content.strip() or child.type != "text"]
    is_formula = len(content) == 1 and content[0].type == "formula" and content[0].content[:2] in ("$$", r"\[")
    if is_formula and (expression := _expression(content[0].content)):
        return [{"type": "mathematical_expression", "expression": expression}]
    text = _rich_text(iter(children))
    return [{"type": "paragraph", "text": text}] if _words(text).strip() else []


def _list(tokens: Iterator[Token]) -> list[Json]:
    items: list[tuple[Token, list[Json]]] = []
    for token in tokens:
        if token.type != "list_item_open":
            break
        items.append((token, _blocks(tokens)))
    if all(_is_native(item, blocks) for item, blocks in items):
        return [{"type": "list", "items": [{"blocks": blocks} | _label(item) for item, blocks in items]}]
    return [block for item, blocks in items for block in (blocks if item.hidden else _marked(item, blocks))]


def _is_native(item: Token, blocks: list[Json]) -> bool:
    """Return whether Telegram's own label says the same as the marker, which can be a sign or a text."""
    is_numbered = not item.info or int(item.info) > 0  # Telegram takes 0 for no number
    return bool(blocks) and not item.hidden and is_numbered and not is_sign(item, plain_text(blocks))


def _label(item: Token) -> Json:
    return {"value": int(item.info), "type": "1"} if item.info else {}


def _marked(item: Token, blocks: list[Json]) -> list[Json]:
    """Write a marker as text, as `markup.py` does."""
    marker = f"{marker_of(item, plain_text(blocks))}{EN_SPACE}"
    if blocks and blocks[0]["type"] == "paragraph":
        return [{"type": "paragraph", "text": _joined([marker, blocks[0]["text"]])}, *blocks[1:]]
    return [{"type": "paragraph", "text": marker}, *blocks]


def _table(tokens: Iterator[Token]) -> list[Json]:
    rows: list[list[Json]] = []
    for token in tokens:
        match token.type:
            case "tr_open":
                rows.append([])
            case "th_open" | "td_open":
                align = str(token.attrGet("style") or "text-align:left").partition(":")[2]
                cell = {"text": _rich_text(iter(next(tokens).children or [])), "align": align, "valign": "middle"}
                rows[-1].append(cell | ({"is_header": True} if token.type == "th_open" else {}))
            case "table_close":
                break
    # The rest of a table that was split has an empty header.
    rows = [row for row in rows if any(_words(cell["text"]).strip() for cell in row)]
    if not rows:
        return []
    if len(rows[0]) > MOST_COLUMNS:
        return [{"type": "pre", "text": draw_table([[_words(cell["text"]) for cell in row] for row in rows])}]
    return [{"type": "table", "cells": rows, "is_bordered": True}]


def _rich_text(tokens: Iterator[Token], *, in_link: bool = False) -> RichText:
    """Read inline markup up to the end of the style that contains it."""
    parts: list[RichText] = []
    for token in tokens:
        match token.type:
            case "text" | "html_inline":
                parts += [content_of(token)] if in_link else _with_addresses(content_of(token))
            case "formula":
                expression = _expression(token.content)
                parts.append(
                    {"type": "mathematical_expression", "expression": expression} if expression else content_of(token)
                )
            case "code_inline":
                parts.append({"type": "code", "text": content_of(token)})
            case "softbreak" | "hardbreak":
                parts.append("\n")
            case "link_open":
                parts.append(_url(_rich_text(tokens, in_link=True), token.attrGet("href"), in_link=in_link))
            case "image":
                text = _rich_text(iter(token.children or []), in_link=True)
                parts.append(_url(text, token.attrGet("src"), in_link=in_link))
            case kind if kind in _STYLES:
                parts.append({"type": _STYLES[kind], "text": _rich_text(tokens, in_link=in_link)})
            case _:
                break
    return _joined(parts)


def _url(text: RichText, address: object, *, in_link: bool) -> RichText:
    return text if in_link else {"type": "url", "text": text, "url": str(address)}


def _with_addresses(text: str) -> list[RichText]:
    """Make addresses links, as Telegram does in texts."""
    parts: list[RichText] = []
    at = 0
    for match in _ADDRESS.finditer(text):
        address = match[0].rstrip(".,;:!?'")
        address = address if "(" in address else address.rstrip(")")
        parts += [text[at : match.start()], {"type": "url", "text": address, "url": address}]
        at = match.start() + len(address)
    return [*parts, text[at:]]


def _joined(parts: Sequence[RichText]) -> RichText:
    """Join neighbouring strings; one part is itself."""
    joined: list[RichText] = []
    for part in chain.from_iterable(each if isinstance(each, list) else [each] for each in parts):
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return joined[0] if len(joined) == 1 else joined or ""


def _expression(source: str) -> str:
    r"""Return a formula without its delimiters.

    >>> _expression(r"\(a_1\)"), _expression("$$ x $$")
    ('a_1', 'x')
    """
    width = 2 if source[:2] in _DELIMITERS else 1
    return source[width:-width].strip()


def _inside(block: Json) -> list[Json]:
    rows = [{"cells": [row]} for row in block["cells"]] if len(block.get("cells", ())) > 1 else []
    return [*block.get("blocks", ()), *block.get("items", ()), *rows]


def _count(blocks: Iterable[Json]) -> int:
    return sum(1 + _count(_inside(block)) for block in blocks)


def _texts(block: Json) -> list[RichText]:
    return [block["text"]] if "text" in block else [cell["text"] for row in block.get("cells", ()) for cell in row]


def _spans(blocks: Iterable[Json]) -> int:
    return sum(_spans(_inside(block)) if _inside(block) else sum(map(_styled, _texts(block))) for block in blocks)


def _styled(text: RichText) -> int:
    match text:
        case str():
            return 0
        case list():
            return sum(map(_styled, text))
        case _:
            return 1 + _styled(text.get("text", ""))


def _depth(blocks: Iterable[Json]) -> int:
    return max((1 + max(_depth(_inside(block)), *map(_nested, _texts(block)), 0) for block in blocks), default=0)


def _nested(text: RichText) -> int:
    match text:
        case str():
            return 0
        case list():
            return max(map(_nested, text), default=0)
        case _:
            return 1 + _nested(text.get("text", ""))
