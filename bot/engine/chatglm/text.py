"""Detokenisation of ChatGLM answers, whole or incremental.

`expand`, `clean_up` and `respond` process a whole answer like the published code; they are
the reference.  `AnswerDetokenizer` does the same incrementally, and returns text only once
no later token can change it.  It differs in one thing: spaces in code stay, where the
published code makes `git add.` of `git add .`.  Full-width marks are restored in code too: the
vocabulary has none, and beside Chinese they are in a comment or a string.
"""

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

MAX_BLANK = 80  # the longest run of spaces with its own piece

WHITE_SPACE = {"<n>": "\n", "<|tab|>": "\t", **{f"<|blank_{n}|>": " " * n for n in range(2, MAX_BLANK + 1)}}

# transformers 4.27.1, clean_up_tokenization: replacements in this order.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)

# A placeholder of the training data, replaced as in the published code.
TRAINING_TIME = {"[[训练时间]]": "2023年"}

_FULL_WIDTH = str.maketrans(",!:;?", "，！：；？")
_MARK_BY_CHINESE = re.compile("(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")
_OPEN_MARK = re.compile(r"[,!:;?]\Z")

_CODE_MARKS = re.compile(r"`+|~+|\n|[^`~\n]+")
_FENCE = 3
# Columns of indentation that make a line code, after those of a list's text.
_INDENTED = 4
_TAB = 4
_BLANK = " \t\r"
_LIST_ITEM = re.compile(r"[ \t]*(?:[*+-]|\d{1,9}[.)])(?:[ \t]|\Z)")
# What may stand before a fence: indentation, the marks of lists and quotations.
_BEFORE_FENCE = re.compile(r"[ \t>*+\-0-9.)]*")


class Pieces(Protocol):
    """The vocabulary as `PieceDecoder` needs it."""

    def surface(self, token: int) -> str | bytes | None:
        """Return the text of an id with "▁" for a space, its byte, or None for a control id.

        Padding is `b""`.
        """
        ...

    @property
    def leading_spaces_dropped(self) -> int:
        """Number of pieces at the start that lose a leading "▁"."""
        ...


def expand(text: str) -> str:
    """Replace white-space pieces by white space."""
    for code, space in WHITE_SPACE.items():
        text = text.replace(code, space)
    return text


def clean_up(text: str) -> str:
    """Remove spaces before English punctuation.

    >>> clean_up("I do n't know , sorry .")
    "I don't know, sorry."
    """
    for gap, closed in CLEAN_UP:
        text = text.replace(gap, closed)
    return text


def respond(text: str) -> str:
    r"""Post-process a whole answer, like process_response of the published code.

    >>> respond(" 你好,world!\n")
    '你好，world!'
    """
    text = text.strip()
    for old, new in TRAINING_TIME.items():
        text = text.replace(old, new)
    return _MARK_BY_CHINESE.sub(lambda mark: mark[0].translate(_FULL_WIDTH), text)


class Replace:
    """Incremental `str.replace`; no key may begin inside another key.

    Holds back the end of the text while it may begin a key.
    """

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = table
        self._keys = re.compile("|".join(map(re.escape, table)))
        self._first = frozenset(key[0] for key in table)
        self._beginnings = frozenset(key[:n] for key in table for n in range(1, len(key)))
        self._longest = max(map(len, self._beginnings))
        self._held = ""

    def push(self, text: str) -> str:
        if not self._held and self._first.isdisjoint(text):
            return text
        text = self._held + text
        done: list[str] = []
        start = 0
        for match in self._keys.finditer(text):
            done += text[start : match.start()], self._table[match[0]]
            start = match.end()
        end = len(text)
        for n in range(min(self._longest, end - start), 0, -1):
            if text[end - n :] in self._beginnings:
                end -= n
                break
        self._held = text[end:]
        done.append(text[start:end])
        return "".join(done)

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class Strip:
    """Incremental `str.strip`: holds back white space until more text follows."""

    def __init__(self) -> None:
        self._started = False
        self._spaces: list[str] = []

    def push(self, text: str) -> str:
        if not self._started:
            text = text.lstrip()
            self._started = bool(text)
        visible = text.rstrip()
        if not visible:
            if text:
                self._spaces.append(text)
            return ""
        released = "".join(self._spaces) + visible
        self._spaces = [text[len(visible) :]]
        return released

    def finish(self) -> str:
        return ""


class CodeFinder:
    """Tells code from prose in growing Markdown; its own marks belong to code.

    A span that is not closed in its line ends with it.  Backticks and tildes at the end are held back: more may
    follow.  An indented line is code after a blank line or such a line, in a list only if it is indented by more
    than the text of the last item.
    """

    def __init__(self) -> None:
        self._length = 0  # of the mark of the fence or span that is open
        self._sign = ""
        self._is_fence = False
        self._follows_blank = True
        self._is_indented = False
        self._least = _INDENTED
        self._line = ""
        self._held = ""

    def push(self, text: str) -> list[tuple[bool, str]]:
        """Return pieces of the text, each with whether it is code."""
        text = self._held + text
        end = len(text.rstrip("`~"))
        self._held = text[end:]
        return self._pieces(text[:end])

    def finish(self) -> list[tuple[bool, str]]:
        held, self._held = self._held, ""
        return self._pieces(held)

    def _pieces(self, text: str) -> list[tuple[bool, str]]:
        return [(self._is_code(mark), mark) for mark in _CODE_MARKS.findall(text)]

    def _is_code(self, mark: str) -> bool:
        if mark == "\n":
            return self._end_line()
        before, self._line = self._line, self._line + mark
        is_blank = not self._line.strip(_BLANK)
        if not (is_blank or before.strip(_BLANK) or self._is_fence):
            self._is_indented = self._begins_indented()
        is_marked = self._is_marked(mark, before)
        # Blanks at the beginning are no code yet: the text does not depend on where it is cut.
        return is_marked or (self._is_indented and not is_blank)

    def _is_marked(self, mark: str, before: str) -> bool:
        """Return whether the mark is of a fence or span, or in one."""
        begins_line = _BEFORE_FENCE.fullmatch(before) is not None
        if self._length:
            is_end = begins_line and len(mark) >= self._length if self._is_fence else len(mark) == self._length
            if mark[0] == self._sign and is_end:
                self._length, self._is_fence = 0, False
            return True
        is_fence = begins_line and len(mark) >= _FENCE
        if mark[0] == "`" or (mark[0] == "~" and is_fence):
            self._length, self._sign, self._is_fence = len(mark), mark[0], is_fence
            return True
        return False

    def _begins_indented(self) -> bool:
        indent = self._line[: -len(self._line.lstrip(_BLANK))]
        return (self._follows_blank or self._is_indented) and _columns(indent) >= self._least

    def _end_line(self) -> bool:
        is_code = self._length > 0
        if not self._is_fence:
            self._length = 0
            self._note_line(self._line)
        self._line = ""
        return is_code

    def _note_line(self, line: str) -> None:
        """Keep what the line tells of the indentation of code after it."""
        is_blank = not line.strip(_BLANK)
        if not (is_blank or self._is_indented):
            if item := _LIST_ITEM.match(line):
                self._least = _columns(item[0]) + _INDENTED
            elif self._follows_blank and line[0] not in _BLANK:
                self._least = _INDENTED
        self._follows_blank = is_blank


def _columns(text: str) -> int:
    return len(text.expandtabs(_TAB))


class OutsideCode:
    """Applies replacements one after the other to what is no code."""

    def __init__(self, *filters: "Replace") -> None:
        self._filters = filters
        self._code = CodeFinder()

    def push(self, text: str) -> str:
        return self._join(self._code.push(text))

    def finish(self) -> str:
        return self._join(self._code.finish()) + self._end()

    def _join(self, pieces: list[tuple[bool, str]]) -> str:
        return "".join(self._end() + piece if is_code else self._tidy(piece) for is_code, piece in pieces)

    def _tidy(self, text: str) -> str:
        for each in self._filters:
            text = each.push(text)
        return text

    def _end(self) -> str:
        """Return what the replacements hold back: none spans code."""
        text = ""
        for each in self._filters:
            text = each.push(text) + each.finish()
        return text


class Punctuation:
    """Full-width punctuation beside Chinese: holds back a mark until the next character is known."""

    def __init__(self) -> None:
        self._before = ""
        self._held = ""

    def push(self, text: str) -> str:
        if not text:
            return ""
        known = len(self._before)
        text = _MARK_BY_CHINESE.sub(lambda mark: mark[0].translate(_FULL_WIDTH), self._before + self._held + text)
        end = len(text) - 1 if _OPEN_MARK.search(text) else len(text)
        self._held = text[end:]
        self._before = text[max(end - 1, 0) : end]
        return text[known:end]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class PieceDecoder:
    """Incremental SentencePiece decoding, in whole characters.

    Each byte that is not valid UTF-8 becomes U+FFFD.
    """

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._bytes = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._at_start = True
        self._to_drop = pieces.leading_spaces_dropped

    def push(self, token: int) -> str:
        piece = self._pieces.surface(token)
        if isinstance(piece, bytes):
            text = _visible(self._bytes.decode(piece))
        else:
            text = self.finish()
            self._at_start = self._at_start and not text
            text += self._text(piece or "")
        self._at_start = self._at_start and not text
        return text

    def _text(self, piece: str) -> str:
        if self._at_start and self._to_drop and piece.startswith("▁"):
            piece = piece[1:]
            self._to_drop -= 1
        return piece.replace("▁", " ")

    def finish(self) -> str:
        return _visible(self._bytes.decode(b"", final=True))


def _visible(text: str) -> str:
    # "surrogateescape" marks every invalid byte; "replace" would merge some.
    return "".join("\ufffd" if "\udc80" <= char <= "\udcff" else char for char in text)


class AnswerDetokenizer:
    """Incremental detokenizer; without code the joined texts equal `respond(decode(ids))`."""

    def __init__(self, pieces: Pieces) -> None:
        self._decoder = PieceDecoder(pieces)
        self._filters: Sequence[Replace | Strip | Punctuation | OutsideCode] = (
            Replace(WHITE_SPACE),
            OutsideCode(*(Replace({gap: closed}) for gap, closed in CLEAN_UP)),
            Strip(),
            Replace(TRAINING_TIME),
            Punctuation(),
        )

    def push(self, token: int) -> str:
        text = self._decoder.push(token)
        for each in self._filters:
            text = each.push(text)
        return text

    def finish(self) -> str:
        text = self._decoder.finish()
        for each in self._filters:
            text = each.push(text) + each.finish()
        return text
