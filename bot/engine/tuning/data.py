"""Questions and answers to train on, from JSON lines or CSV."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from bot.domain import ChatMessage
from bot.engine.tuning.errors import BadData
from bot.util.files import nests_deeper, read_regular, shown

# Bytes; ADGEN's training file takes 50 MB.
_LARGEST_FILE = 4 << 30
_DEEPEST_LINE = 8

History = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns; a `history` of "" is none.

    `source_prefix` is put in front of every prompt's text.
    """

    question: str = "prompt"
    answer: str = "response"
    history: str = ""
    source_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A question, the rounds before it, and the answer to learn; `lead` precedes the prompt's text."""

    question: str
    answer: str
    history: History = ()
    lead: str = ""

    def messages(self, first: int = 0) -> tuple[ChatMessage, ...]:
        """Return the chat without its last answer, from round `first` on."""
        rounds = [
            message
            for asked, answered in self.history[first:]
            for message in (ChatMessage("user", asked), ChatMessage("assistant", answered))
        ]
        return (*rounds, ChatMessage("user", self.question))


@dataclass(frozen=True, slots=True)
class Dataset:
    """The pairs of one or more files; `empty` rows without question or answer are left out.

    `digest` identifies the files' content.
    """

    pairs: tuple[Pair, ...]
    empty: int
    digest: str


def read_data(files: Sequence[Path], columns: Columns) -> Dataset:
    """Read files of JSON lines (.json, .jsonl) or CSV (.csv, with a header).

    Raises:
        BadData: A file cannot be read, or a line is not as its format says; nothing is skipped.
    """
    pairs: list[Pair] = []
    empty = 0
    digest = hashlib.sha256(repr(columns).encode())
    for file in files:
        content = _content(file)
        digest.update(content)
        found = [_pair(row, columns, file, line) for line, row in _rows(file, content)]
        if not found:
            raise BadData(f"{file} is empty: write one question and answer per line")
        kept = [pair for pair in found if pair is not None]
        empty += len(found) - len(kept)
        pairs += kept
    if not pairs:
        names = f'"{columns.question}" or "{columns.answer}"'
        raise BadData(
            f"{', '.join(map(str, files))}: in all {empty} rows {names} is empty, so there is nothing to learn"
        )
    return Dataset(tuple(pairs), empty, digest.hexdigest())


def _content(file: Path) -> bytes:
    if file.suffix.lower() not in (".json", ".jsonl", ".csv"):
        raise BadData(f"{file} ends in neither .json, .jsonl nor .csv: convert it to JSON lines")
    try:
        return read_regular(file, _LARGEST_FILE)
    except OSError as exc:
        raise BadData(f"{file} cannot be read ({exc.strerror}): name a file that you can read") from exc


def _rows(file: Path, content: bytes) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield line numbers and rows."""
    if file.suffix.lower() == ".csv":
        yield from _csv_rows(file, "\n".join(text for _, text in _lines(file, content)))
        return
    for number, text in _lines(file, content):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as exc:
            reason = exc.msg if isinstance(exc, json.JSONDecodeError) else "nested too deeply"
            raise BadData(
                f"{file}, line {number} is not JSON ({reason}): write one object per line, without a list around them"
            ) from exc
        if not isinstance(row, dict):
            raise BadData(f"{file}, line {number} is a JSON {type(row).__name__}, not an object with named columns")
        yield number, row


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise BadData(f"{file}, line {reader.line_num} has another number of fields than the header")
            yield reader.line_num, row
    except csv.Error as exc:
        raise BadData(f"{file}, line {reader.line_num} is not CSV ({exc}): quote fields that contain quotes") from exc


def _lines(file: Path, content: bytes) -> Iterator[tuple[int, str]]:
    """Decode line by line, so that an error names its line."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadData(f"{file} is UTF-16: save it as UTF-8")
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            yield number, line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as exc:
            raise BadData(f"{file}, line {number} is not UTF-8: convert the whole file to UTF-8") from exc


def _pair(row: Mapping[str, object], columns: Columns, file: Path, line: int) -> Pair | None:
    """Build a pair; None if its question or answer is empty."""
    place = f"{file}, line {line}"

    def column(name: str, option: str) -> object:
        if name not in row:
            names = ", ".join(shown(str(each)) for each in row) or "none"
            raise BadData(f'{place} has no column "{name}"; its columns: {names}; name one with {option}')
        return row[name]

    def text(name: str, option: str) -> str:
        value = column(name, option)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise BadData(f'{place}: "{name}" is a JSON {type(value).__name__}, not a text: put it in quotes')
        return value

    question = text(columns.question, "--prompt-column")
    answer = text(columns.answer, "--response-column")
    history = _history(column(columns.history, "--history-column"), place) if columns.history else ()
    if not question or not answer:
        return None
    return Pair(question, answer, history, columns.source_prefix)


def _history(value: object, place: str) -> History:
    expected = f'{place}: the history is not a list of [question, answer] pairs, such as [["Hi", "Hello!"]]'
    if isinstance(value, str):  # a field of CSV
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError) as exc:
            raise BadData(expected) from exc
    if value is None:
        return ()
    if not isinstance(value, list) or nests_deeper(value, _DEEPEST_LINE):
        raise BadData(expected)
    rounds: list[tuple[str, str]] = []
    for each in value:
        if not (isinstance(each, list) and len(each) == 2 and all(isinstance(part, str) for part in each)):
            raise BadData(expected)
        rounds.append((each[0], each[1]))
    return tuple(rounds)
