"""Bold and italics beside Chinese, where CommonMark sees only asterisks."""

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.rules_inline.state_inline import Delimiter, StateInline

# Ideographs with their punctuation, kana, Hangul, full-width forms: Unicode's blocks.
_EAST_ASIAN = (
    (0x1100, 0x11FF),
    (0x2E80, 0x9FFF),
    (0xA960, 0xA97F),
    (0xAC00, 0xD7FF),
    (0xF900, 0xFAFF),
    (0xFE30, 0xFE4F),
    (0xFF00, 0xFFEF),
    (0x20000, 0x323AF),
)


def cjk_friendly_emphasis(parser: MarkdownIt) -> None:
    """Let the parser read emphasis where words have no spaces between them.

    In CommonMark a marker beside punctuation opens or closes only if white space or
    punctuation is on its other side.  Chinese has neither there: so its letters count
    as such, and its own punctuation as letters.

    >>> parser = MarkdownIt("commonmark").use(cjk_friendly_emphasis)
    >>> parser.render("**重点：**你好，这是**“引用”**的话").strip()
    '<p><strong>重点：</strong>你好，这是<strong>“引用”</strong>的话</p>'
    """
    parser.inline.ruler.at("emphasis", _tokenize)


def _tokenize(state: StateInline, silent: bool) -> bool:
    marker = state.src[state.pos]
    if silent or marker not in "*_":
        return False
    scanned = state.scanDelims(state.pos, marker == "*")
    opens, closes = scanned.can_open, scanned.can_close
    if marker == "*":
        before = state.src[state.pos - 1] if state.pos else " "
        end = state.pos + scanned.length
        after = state.src[end] if end < state.posMax else " "
        opens = not _is_space(after) and (not _is_mark(after) or _separates(before))
        closes = not _is_space(before) and (not _is_mark(before) or _separates(after))
    for _ in range(scanned.length):
        state.push("text", "", 0).content = marker
        state.delimiters.append(
            Delimiter(ord(marker), scanned.length, len(state.tokens) - 1, end=-1, open=opens, close=closes)
        )
    state.pos += scanned.length
    return True


def _is_space(letter: str) -> bool:
    return isWhiteSpace(ord(letter))


def _is_mark(letter: str) -> bool:
    return (isMdAsciiPunct(ord(letter)) or isPunctChar(letter)) and not _is_east_asian(letter)


def _separates(letter: str) -> bool:
    return _is_space(letter) or _is_mark(letter) or _is_east_asian(letter)


def _is_east_asian(letter: str) -> bool:
    return any(first <= ord(letter) <= last for first, last in _EAST_ASIAN)
