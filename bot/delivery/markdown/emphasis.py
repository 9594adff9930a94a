"""Emphasis beside Chinese text, and none in calculations, identifiers and patterns."""

import re
import unicodedata

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.balance_pairs import processDelimiters
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.rules_inline.strikethrough import tokenize as tokenize_strikethrough

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
# ASCII characters that an operand or a path ends or begins with: a marker beside them is an operator.
_NOT_BEFORE = frozenset(")]}./\\^=+%$@#&")
_NOT_BEFORE_STRONG = frozenset("/\\^$@#&")
_NOT_AFTER = frozenset("([{/\\^=+%$@#&_")
_NOT_FIRST = frozenset(")]}.,;:=/|^+?!&%")
_NOT_LAST = frozenset("([{=/|^+-<&@#\\")
_OPENING = frozenset("([{“‘「『（《【〈")
_LONGEST_RUN = 3
# Symbols before it are parts of emoticons: `(*^▽^*)`.
_FIRST_EMOJI = "\u2600"
_IDENTIFIER = re.compile(r"[A-Za-z0-9_]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_CODE = re.compile(r"[;=\\]|\w\(")
_POWER = re.compile(r"\d+\W")
_BRACKETS = re.compile(r"[()\[\]{}]")
_NUMBERING = re.compile(r"^\w{1,3}\)")
# The first characters of an emphasised text, which are checked for code.
_CHECKED = 200
# Rounds of pairing; a hostile text may need one per pair.
_ATTEMPTS = 4


def careful_emphasis(parser: MarkdownIt) -> None:
    """Change the parser's rules for `*`, `_` and `~~`.

    In CommonMark a delimiter beside punctuation opens or closes emphasis only if white space
    or punctuation is on its other side.  CJK text has neither there, so `**` beside its
    letters is markup.  A marker between two operands is an operator, and `__name__` a name.

    >>> parser = MarkdownIt("commonmark").use(careful_emphasis)
    >>> parser.renderInline("**重点：**你好，这是**“引用”**的话，2**10 和 3*4*5")
    '<strong>重点：</strong>你好，这是<strong>“引用”</strong>的话，2**10 和 3*4*5'
    >>> parser.renderInline("__init__ calls f(*args, **kwargs), *never* _twice a day_")
    '__init__ calls f(*args, **kwargs), <em>never</em> <em>twice a day</em>'
    """
    parser.inline.ruler.at("emphasis", _tokenize)
    parser.inline.ruler.at("strikethrough", _strikethrough)
    parser.inline.ruler2.at("balance_pairs", _pair)


def _tokenize(state: StateInline, silent: bool) -> bool:
    delimiter = state.src[state.pos]
    if silent or delimiter not in "*_":
        return False
    run = state.scanDelims(state.pos, True)
    end = state.pos + run.length
    before = state.src[state.pos - 1] if state.pos else " "
    after = state.src[end] if end < state.posMax else " "
    is_strong = delimiter == "*" and run.length > 1
    opens, closes = _strong(before, after) if is_strong else _light(before, after)
    other = "_" if delimiter == "*" else "*"
    if run.length == 1 and other in (before, after):
        opens, closes = opens and before != other, closes and after != other  # `T_*_x`
    if run.length > _LONGEST_RUN:
        opens = closes = False
    for number in range(run.length):
        token = state.push("text", "", 0)
        token.content, token.meta = delimiter, {"at": state.pos + number}
        state.delimiters.append(
            Delimiter(ord(delimiter), run.length, len(state.tokens) - 1, end=-1, open=opens, close=closes)
        )
    state.pos = end
    return True


def _strong(before: str, after: str) -> tuple[bool, bool]:
    """Return whether `**` between these characters opens, and whether it closes."""
    if _is_ascii_word(before) and (_is_ascii_word(after) or not _is_cjk(after)):
        # `x**2`, `x**(y)`; but a word can end here: "**Python** 语言", "**note**, and".
        return False, not (_is_ascii_word(after) or after in "([{")
    opens = not (after.isspace() or after in _NOT_FIRST or before in _NOT_BEFORE_STRONG)
    if before in ").]}" and (after.isdigit() or (before != "." and _is_ascii_word(after))):
        opens = False  # `(a+b)**2`
    closes = not (before.isspace() or before in _OPENING or after in _OPENING or (after.isascii() and after.isdigit()))
    if _is_ascii_word(after) and not _is_cjk(before):
        closes = False
    return opens, closes


def _light(before: str, after: str) -> tuple[bool, bool]:
    """Return whether `*` or `_` between these characters opens, and whether it closes."""
    if _is_word(before) and _is_word(after):
        return False, False
    is_beside_cjk = _is_cjk(before) and _is_cjk(after)
    opens = not (before in _NOT_BEFORE or after.isspace() or after in _NOT_FIRST)
    closes = not (after in _NOT_AFTER or before.isspace() or before in _NOT_LAST)
    opens = opens and (is_beside_cjk or not _is_word(before))
    closes = closes and (is_beside_cjk or not _is_word(after))
    return opens, closes


def _strikethrough(state: StateInline, silent: bool) -> bool:
    begin, source = state.pos, state.src
    if source[begin] != "~" or silent:
        return False
    end = begin
    while end < state.posMax and source[end] == "~":
        end += 1
    if begin > 0 and end < state.posMax and _is_ascii_word(source[begin - 1]) and _is_ascii_word(source[end]):
        state.pending += source[begin:end]  # a range: 5~~10
        state.pos = end
        return True
    return tokenize_strikethrough(state, silent)


def _pair(state: StateInline) -> None:
    """Pair delimiters, without those that open names or code."""
    nested = [meta["delimiters"] for meta in state.tokens_meta if meta and "delimiters" in meta]
    for delimiters in [state.delimiters, *nested]:
        flags = [(each.open, each.close) for each in delimiters]
        for attempt in range(_ATTEMPTS):
            processDelimiters(state, delimiters)
            doubtful = [
                number
                for number, opener in enumerate(delimiters)
                if opener.end >= 0 and _is_doubtful(state, opener, delimiters[opener.end])
            ]
            if not doubtful:
                break
            for number in doubtful:
                opener = delimiters[number]
                flags[number] = False, flags[number][1]
                if _is_of_signs(_content(state, opener, delimiters[opener.end]), opener):
                    flags[opener.end] = flags[opener.end][0], False  # it belongs to `(*_*)`
                opener.end = -1
            if attempt < _ATTEMPTS - 1:
                # What a doubtful one had closed may close another.
                for each, (opens, closes) in zip(delimiters, flags, strict=True):
                    each.open, each.close, each.end = opens, closes, -1


def _is_doubtful(state: StateInline, opener: Delimiter, closer: Delimiter) -> bool:
    marker = chr(opener.marker)
    if marker not in "*_":
        return False
    if opener.length != closer.length and max(opener.length, closer.length) < _LONGEST_RUN:
        return True  # `**kwargs, args*`
    content = _content(state, opener, closer)
    if _is_unbalanced(content) or _is_of_signs(content, opener):
        return True  # `{**a, **b}`, `(*_*)`
    if marker == "_" and ("_" in content or _IDENTIFIER.fullmatch(content)):
        return opener.length > 1 or not _WORD.fullmatch(content)
    if opener.length == 1:
        return bool(_CODE.search(content)) or content.isdigit()
    at = _position(state, opener)
    before = state.src[max(0, at - _LONGEST_RUN) : at].rstrip(marker)
    return bool(_POWER.match(content)) and _is_word(before[-1:] or " ")


def _position(state: StateInline, delimiter: Delimiter) -> int:
    at: int = state.tokens[delimiter.token].meta["at"]
    return at


def _content(state: StateInline, opener: Delimiter, closer: Delimiter) -> str:
    """Return the beginning of the text between two delimiters."""
    at, end = _position(state, opener), _position(state, closer)
    return state.src[at + 1 : min(end, at + _CHECKED)].strip(chr(opener.marker))


def _is_of_signs(content: str, opener: Delimiter) -> bool:
    """Return whether there are no words between delimiters, as in `(*_*)` or `*.*`; of two, symbols are words: `**>**`."""
    if opener.length > 1:
        return all(unicodedata.category(each)[0] in "PZ" for each in content)
    return "`" not in content and all(
        unicodedata.category(each)[0] in "PZS" and not _is_emoji(each) for each in content
    )


def _is_emoji(character: str) -> bool:
    return character >= _FIRST_EMOJI and unicodedata.category(character) == "So"


def _is_unbalanced(content: str) -> bool:
    """Return whether a bracket is closed that is opened before the content; `1) …` is a number."""
    depth = 0
    for bracket in _BRACKETS.findall(_NUMBERING.sub("", content)):
        depth += 1 if bracket in "([{" else -1
        if depth < 0:
            return True
    return False


def _is_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"


def _is_ascii_word(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _is_cjk(character: str) -> bool:
    return character >= "\u1100" and any(first <= ord(character) <= last for first, last in _CJK)
