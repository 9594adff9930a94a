r"""Rules that keep characters which CommonMark would take for markup.

A platform that is sent plain text and entities shows no Markdown source: what counts as markup is
gone.  Models write operators (`2**10`), identifiers (`__init__`), LaTeX (`\(x\)`, `\[ … \]`), regular
expressions and prompts without marking them as code, so here a marker is markup only where
it can hardly be anything else.  In doubt the characters stay.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.rules_block import StateBlock, blockquote, heading, hr, lheading, list_block, table
from markdown_it.rules_block.table import escapedSplit
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline, image, link
from markdown_it.token import Token

_ANY_BLOCK = ["paragraph", "reference", "blockquote", "list"]
_EMPTY_ITEM = re.compile(r"(?:[-+*]|\d{1,9}[.)]|#{1,6}(?:[ \t]+#+)?|>)[ \t]*")
_QUOTE = re.compile(r">(?:[ \t]|$)")
_UNDERLINE = re.compile(r"[ \t>]*(?:={3,}|-{3,})[ \t]*")
_WEB = re.compile(r"https?://", re.IGNORECASE)
_FORMULA_ENDS = {r"\(": r"\)", r"\[": r"\]", "$$": "$$"}
_VARIABLE = re.compile(r"\{|[A-Z_]{2}")
# Characters of a formula, and lines of a displayed one; what is longer is read as text.
_LONGEST_FORMULA = 1000
_MOST_LINES = 40

_BlockRule = Callable[[StateBlock, int, int, bool], bool]
_InlineRule = Callable[[StateInline, bool], bool]


def literal_blocks(parser: MarkdownIt) -> None:
    r"""Take lines for lists, quotes, headings and tables only if nothing of them is lost.

    >>> parser = MarkdownIt("commonmark").use(literal_blocks)
    >>> parser.render(">>> print(42)\n[1]: https://example.org").strip()
    '<p>&gt;&gt;&gt; print(42)\n[1]: https://example.org</p>'
    """
    ruler = parser.block.ruler
    ruler.at("list", _unless_empty(list_block), {"alt": ["paragraph", "reference", "blockquote"]})
    ruler.at("heading", _unless_empty(heading), {"alt": ["paragraph", "reference", "blockquote"]})
    ruler.at("blockquote", _quote, {"alt": _ANY_BLOCK})
    ruler.at("hr", _rule, {"alt": _ANY_BLOCK})
    ruler.at("lheading", _underlined, {"alt": []})
    ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    ruler.before("table", "formula", _formula_block, {"alt": _ANY_BLOCK})
    # A definition of a link target would vanish; lists of sources look like one.
    parser.disable("reference")
    parser.core.ruler.after("block", "bare_items", _name_bare_items)


def literal_inline(parser: MarkdownIt) -> None:
    r"""Keep backslashes, character references, formulas and what only looks like a link.

    >>> parser = MarkdownIt("commonmark").use(literal_inline)
    >>> parser.renderInline(r"\(a_1\) \d+\. handlers[name](event) [1](https://x.y)")
    '\\(a_1\\) \\d+\\. handlers[name](event) <a href="https://x.y">1</a>'
    """
    parser.inline.ruler.at("escape", _escape)
    parser.inline.ruler.before("escape", "formula", _formula)
    parser.add_render_rule("formula", _render_formula)
    parser.inline.ruler.at("link", _if_closed(link))
    parser.inline.ruler.at("image", _if_closed(image))
    parser.disable("entity")
    parser.validateLink = _is_web_link  # type: ignore[method-assign]
    parser.core.ruler.at("inline", _inline)
    parser.core.ruler.after("inline", "bare_links", _name_bare_links)


def _line(state: StateBlock, line: int) -> str:
    return state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]


def _unless_empty(rule: _BlockRule) -> _BlockRule:
    """Wrap a rule so that a marker alone stays: an answer can be `42.` or `-`."""

    def wrapped(state: StateBlock, begin: int, end: int, silent: bool) -> bool:
        if _EMPTY_ITEM.fullmatch(_line(state, begin)):
            following = begin + 1
            if following >= end or state.isEmpty(following) or state.sCount[following] <= state.sCount[begin]:
                return False
        return rule(state, begin, end, silent)

    return wrapped


def _quote(state: StateBlock, begin: int, end: int, silent: bool) -> bool:
    line = _line(state, begin)
    return bool(_QUOTE.match(line)) and not _EMPTY_ITEM.fullmatch(line) and blockquote(state, begin, end, silent)


def _rule(state: StateBlock, begin: int, end: int, silent: bool) -> bool:
    return hr(state, begin, end, True) and bool(state.src.strip("-*_ \t\n")) and hr(state, begin, end, silent)


def _underlined(state: StateBlock, begin: int, end: int, silent: bool) -> bool:
    count, line = len(state.tokens), state.line
    if not lheading(state, begin, end, silent):
        return False
    if _UNDERLINE.fullmatch(_line(state, state.line - 1)):
        return True
    del state.tokens[count:]  # a single sign is part of a calculation
    state.line = line
    return False


def _table(state: StateBlock, begin: int, end: int, silent: bool) -> bool:
    count, line = len(state.tokens), state.line
    if not table(state, begin, end, silent):
        return False
    columns = _cells(_line(state, begin))
    if silent or all(_cells(_line(state, each)) <= columns for each in range(begin, state.line)):
        return True
    del state.tokens[count:]  # further cells of a row would vanish
    state.line = line
    return False


def _cells(line: str) -> int:
    return len(escapedSplit(line.strip().strip("|")))


def _formula_block(state: StateBlock, begin: int, end: int, silent: bool) -> bool:
    """Read a displayed formula as one paragraph: its lines may begin with + or -."""
    opening = _line(state, begin)[:2]
    closing = _FORMULA_ENDS.get(opening)
    if closing is None or opening == r"\(":
        return False
    inside = state.bMarks[begin] + state.tShift[begin] + len(opening)
    if state.src.find(closing, inside, inside + _LONGEST_FORMULA) < 0:
        return False
    last = begin
    while closing not in _line(state, last)[2 if last == begin else 0 :]:
        last += 1
        if last >= min(end, begin + _MOST_LINES) or state.isEmpty(last) or state.sCount[last] < state.blkIndent:
            return False
    if silent:
        return True
    state.line = last + 1
    state.push("paragraph_open", "p", 1).map = [begin, state.line]
    inline = state.push("inline", "", 0)
    inline.content = state.getLines(begin, state.line, state.blkIndent, False).strip()
    inline.map, inline.children = [begin, state.line], []
    state.push("paragraph_close", "p", -1)
    return True


def _formula(state: StateInline, silent: bool) -> bool:
    begin, source = state.pos, state.src
    opening = source[begin : begin + 2]
    closing = _FORMULA_ENDS.get(opening)
    if closing is None:
        if opening[:1] != "$":
            return False
        opening = closing = "$"
    inside = begin + len(opening)
    at = source.find(closing, inside, min(state.posMax, begin + _LONGEST_FORMULA))
    if at <= inside or (closing == "$" and not _is_formula(source, inside, at)):
        return False
    if not silent:
        state.push("formula", "", 0).content = source[begin : at + len(closing)]
    state.pos = at + len(closing)
    return True


def _render_formula(renderer: object, tokens: Sequence[Token], at: int, options: object, env: object) -> str:
    return escapeHtml(tokens[at].content)


def _is_formula(source: str, begin: int, end: int) -> bool:
    """Return whether the text between two dollar signs is none about money or shell variables."""
    content, after = source[begin:end], source[end + 1 : end + 2]
    is_variable = _VARIABLE.match(content)
    return not (content[0].isspace() or content[-1].isspace() or after.isalnum() or "\n" in content or is_variable)


def _escape(state: StateInline, silent: bool) -> bool:
    r"""Keep the backslash; the character after it is no markup."""
    pair = state.src[state.pos : min(state.pos + 2, state.posMax)]
    if len(pair) < 2 or pair[0] != "\\" or not pair[1].isascii() or pair[1].isalnum() or pair[1].isspace():
        return False
    if not silent:
        state.pending += pair
    state.pos += 2
    return True


def _if_closed(rule: _InlineRule) -> _InlineRule:
    """Wrap a rule for links, which looks for the end of their text once for each bracket, so that it needs an end."""

    def wrapped(state: StateInline, silent: bool) -> bool:
        return state.src.find("](", state.pos) >= 0 and rule(state, silent)

    return wrapped


def _is_web_link(url: str) -> bool:
    return bool(_WEB.match(url))


def _inline(state: StateCore) -> None:
    """Parse inline markup; most cells, items and headings of a long text have none."""
    for token in state.tokens:
        if token.type == "inline":
            if token.content and not state.md.inline.terminator_re.search(token.content):
                token.children = [_text(token.content)]
            else:
                token.children = []
                state.md.inline.parse(token.content, state.md, state.env, token.children)


def _name_bare_items(state: StateCore) -> None:
    """Show the marker of a list item without content as text: `42.` after a list continues it."""
    found = list[Token]()
    for token in state.tokens:
        if token.type == "list_item_close" and found[-1].type == "list_item_open":
            inline = Token(
                "inline", "", 0, content=f"{found[-1].info}{found[-1].markup}", map=found[-1].map, children=[]
            )
            found[-1].hidden = True
            found += [Token("paragraph_open", "p", 1, map=inline.map), inline, Token("paragraph_close", "p", -1)]
        found.append(token)
    state.tokens = found


def _name_bare_links(state: StateCore) -> None:
    """Show the address of a link or picture that has no text."""
    for token in state.tokens:
        children = token.children or []
        for number, child in enumerate(children):
            if child.type == "image" and not child.content.strip():
                child.children = [_text(child.attrGet("src"))]
            elif child.type == "link_close" and children[number - 1].type == "link_open":
                children[number - 1 : number] = [children[number - 1], _text(children[number - 1].attrGet("href"))]


def _text(content: Any) -> Token:
    return Token("text", "", 0, content=str(content))
