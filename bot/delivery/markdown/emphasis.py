"""CJK-friendly emphasis: bold and italics beside Chinese, Japanese and Korean text."""

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace
from markdown_it.rules_inline.state_inline import Delimiter, StateInline

# Unicode blocks of ideographs with their punctuation, kana, Hangul and full-width forms.
_CJK = (
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
    """Change the parser's rule for delimiter runs beside CJK characters.

    In CommonMark a delimiter beside punctuation opens or closes emphasis only if white space
    or punctuation is on its other side.  CJK text has neither there, so its letters
    count as punctuation, and its punctuation as letters.

    >>> parser = MarkdownIt("commonmark").use(cjk_friendly_emphasis)
    >>> parser.render("**重点：**你好，这是**“引用”**的话").strip()
    '<p><strong>重点：</strong>你好，这是<strong>“引用”</strong>的话</p>'
    """
    parser.inline.ruler.at("emphasis", _tokenize)


def _tokenize(state: StateInline, silent: bool) -> bool:
    delimiter = state.src[state.pos]
    if silent or delimiter not in "*_":
        return False
    run = state.scanDelims(state.pos, delimiter == "*")
    opens, closes = run.can_open, run.can_close
    if delimiter == "*":
        before = state.src[state.pos - 1] if state.pos else " "
        end = state.pos + run.length
        after = state.src[end] if end < state.posMax else " "
        opens = not _is_space(after) and (not _is_punctuation(after) or _separates(before))
        closes = not _is_space(before) and (not _is_punctuation(before) or _separates(after))
    for _ in range(run.length):
        state.push("text", "", 0).content = delimiter
        state.delimiters.append(
            Delimiter(ord(delimiter), run.length, len(state.tokens) - 1, end=-1, open=opens, close=closes)
        )
    state.pos += run.length
    return True


def _is_space(character: str) -> bool:
    return isWhiteSpace(ord(character))


def _is_punctuation(character: str) -> bool:
    return (isMdAsciiPunct(ord(character)) or isPunctChar(character)) and not _is_cjk(character)


def _separates(character: str) -> bool:
    return _is_space(character) or _is_punctuation(character) or _is_cjk(character)


def _is_cjk(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _CJK)
