"""The text of Word, Excel and PowerPoint files, from the XML in them.

A streaming parser holds one element at a time.  Such files need no document type, and with it
go all entities; a file may unpack to 64 MB.
"""

import io
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from xml.parsers import expat
from zipfile import BadZipFile, ZipFile

from bot.chat.reading.fault import Unreadable
from bot.chat.reading.text import Text

_MOST_UNPACKED = 64 * 2**20
_CHUNK = 2**16

_FOOTNOTES = ("footnotes", "endnotes")
# Number formats of dates: those without a code in the file, and the letters of a code outside its literals.
_DATE_FORMATS = frozenset([*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)])
# Of durations, which may have more than 24 hours: [h]:mm:ss without a code in the file, and what tells them in a code.
_DURATION_FORMAT = 46
_DURATION = re.compile(r"\[(h+|m+|s+)\]", re.IGNORECASE)
_LITERAL = re.compile(r'"[^"]*"|\[[^\]]*\]|\\.')
_DATE_LETTERS = re.compile("[ymdhs]", re.IGNORECASE)
_EPOCH, _EPOCH_1904 = datetime(1899, 12, 30), datetime(1904, 1, 1)  # noqa: DTZ001  # a sheet has no time zone
_MOST_GAP = 50  # empty cells of a row that are shown

Attributes = dict[str, str]
# By the number of a cell style: the first day of dates, None for durations.
_Times = dict[str, datetime | None]


class _Package:
    """The parts of an office file."""

    def __init__(self, archive: ZipFile) -> None:
        self._archive = archive
        self._names = frozenset(archive.namelist())
        self._left = _MOST_UNPACKED

    def has(self, name: str) -> bool:
        return name in self._names

    def parse(
        self,
        name: str,
        start: Callable[[str, Attributes], None] = lambda tag, attributes: None,
        end: Callable[[str], None] = lambda tag: None,
        text: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Call these with the elements of a part, named without their namespace.

        Raises:
            Unreadable: It is damaged or too large, or has a document type.
        """
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartElementHandler = lambda tag, attributes: start(_local(tag), attributes)
        parser.EndElementHandler = lambda tag: end(_local(tag))
        parser.CharacterDataHandler = text
        parser.StartDoctypeDeclHandler = _refuse
        try:
            with self._archive.open(name) as part:
                while chunk := part.read(_CHUNK):
                    self._left -= len(chunk)
                    if self._left < 0:
                        raise Unreadable("large")
                    parser.Parse(chunk)
                parser.Parse(b"", True)
        except RuntimeError as error:
            raise Unreadable("locked") from error  # zipfile has no password
        except (BadZipFile, EOFError, KeyError, NotImplementedError, OSError, ValueError, zlib.error) as error:
            raise Unreadable("damaged") from error
        except expat.ExpatError as error:
            raise Unreadable("damaged") from error

    def targets(self, name: str) -> dict[str, str]:
        """Return the parts that a part refers to, by the id of the relationship."""
        folder, base = posixpath.split(name)
        relationships = f"{folder}/_rels/{base}.rels"
        found: dict[str, str] = {}

        def start(tag: str, attributes: Attributes) -> None:
            if tag == "Relationship" and attributes.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, attributes.get("Target", "")))
                found[attributes.get("Id", "")] = target.lstrip("/")

        if self.has(relationships):
            self.parse(relationships, start)
        return found

    def listed(self, name: str, tag: str) -> Iterator[tuple[str, str]]:
        """Yield name and part of each element of this kind, in its order."""
        found: list[tuple[str, str]] = []

        def start(each: str, attributes: Attributes) -> None:
            if each == tag:
                id = next((value for key, value in attributes.items() if key.endswith("relationships id")), "")
                found.append((attributes.get("name", ""), id))

        self.parse(name, start)
        targets = self.targets(name)
        return ((label, targets[id]) for label, id in found if self.has(targets.get(id, "")))


def read_office(data: bytes, text: Text) -> None:
    """Add the text of a Word, Excel or PowerPoint file.

    Raises:
        Unreadable: It is damaged, too large, or another archive.
    """
    try:
        archive = ZipFile(io.BytesIO(data))
    except (BadZipFile, ValueError, NotImplementedError) as error:
        raise Unreadable("damaged") from error
    for pattern, read in _KINDS.items():
        if main := next(filter(pattern.fullmatch, archive.namelist()), None):
            return read(archive, main, text)
    raise Unreadable("kind")


def read_document(archive: ZipFile, main: str, text: Text) -> None:
    """Add the paragraphs of a Word file, a row of a table in a line, then its notes."""
    package = _Package(archive)
    folder = posixpath.dirname(main)
    notes = [f"{folder}/{name}.xml" for name in _FOOTNOTES]
    for part in (main, *filter(package.has, notes)):
        _read_paragraphs(package, part, text)


def read_slides(archive: ZipFile, main: str, text: Text) -> None:
    """Add the text of each slide."""
    package = _Package(archive)
    for _, slide in package.listed(main, "sldId"):
        _read_paragraphs(package, slide, text)
        text.add("\n")


def _read_paragraphs(package: _Package, part: str, text: Text) -> None:
    depths = {"Fallback": 0, "r": 0, "t": 0, "tc": 0}  # of the elements that are open

    def start(tag: str, attributes: Attributes) -> None:
        if tag in depths:
            depths[tag] += 1
        if depths["Fallback"]:  # a second version of the same, for older programs
            return
        if tag == "tab" and depths["r"]:
            text.add("\t")
        elif tag == "noBreakHyphen":
            text.add("-")
        elif tag in {"br", "cr"}:
            text.add("\n")

    def end(tag: str) -> None:
        if tag in depths:
            depths[tag] -= 1
        if depths["Fallback"]:
            return
        if tag == "p":
            text.add(" " if depths["tc"] else "\n")
        elif tag == "tc":
            text.add("\t")
        elif tag == "tr":
            text.add("\n")

    def words(found: str) -> None:
        if depths["t"] and not depths["Fallback"]:
            text.add(found)

    package.parse(part, start, end, words)


def read_workbook(archive: ZipFile, main: str, text: Text) -> None:
    """Add the cells of each sheet, a row in a line, with tabs between them."""
    package = _Package(archive)
    folder = posixpath.dirname(main)
    epoch = _EPOCH

    def start(tag: str, attributes: Attributes) -> None:
        nonlocal epoch
        if tag == "workbookPr" and attributes.get("date1904") in {"1", "true"}:
            epoch = _EPOCH_1904

    package.parse(main, start)
    strings = _shared_strings(package, f"{folder}/sharedStrings.xml")
    times = _time_styles(package, f"{folder}/styles.xml", epoch)
    sheets = list(package.listed(main, "sheet"))
    for label, sheet in sheets:
        if len(sheets) > 1:
            text.add(f"{label}\n")
        _read_cells(package, sheet, strings, times, text)
        text.add("\n")


def _shared_strings(package: _Package, part: str) -> list[str]:
    strings: list[str] = []
    pieces: list[str] = []
    depths = {"t": 0, "rPh": 0}  # the latter is how Japanese and Chinese words are read aloud

    def start(tag: str, attributes: Attributes) -> None:
        if tag in depths:
            depths[tag] += 1

    def end(tag: str) -> None:
        if tag in depths:
            depths[tag] -= 1
        if tag == "si":
            strings.append("".join(pieces))
            pieces.clear()

    def words(found: str) -> None:
        if depths["t"] and not depths["rPh"]:
            pieces.append(found)

    if package.has(part):
        package.parse(part, start, end, words)
    return strings


def _time_styles(package: _Package, part: str, epoch: datetime) -> _Times:
    """Return the cell styles that show dates or durations."""
    codes: dict[str, str] = {}
    formats: list[str] = []
    is_in_cells = False

    def start(tag: str, attributes: Attributes) -> None:
        nonlocal is_in_cells
        if tag == "numFmt":
            codes[attributes.get("numFmtId", "")] = attributes.get("formatCode", "")
        elif tag == "cellXfs":
            is_in_cells = True
        elif tag == "xf" and is_in_cells:
            formats.append(attributes.get("numFmtId", ""))

    def end(tag: str) -> None:
        nonlocal is_in_cells
        if tag == "cellXfs":
            is_in_cells = False

    if package.has(part):
        package.parse(part, start, end)

    def is_date(id: str) -> bool:
        if id in codes:
            return _DATE_LETTERS.search(_LITERAL.sub("", codes[id])) is not None
        return id.isdecimal() and len(id) < 4 and int(id) in _DATE_FORMATS

    def is_duration(id: str) -> bool:
        return _DURATION.search(codes[id]) is not None if id in codes else id == str(_DURATION_FORMAT)

    times: _Times = {}
    for number, id in enumerate(formats):
        if is_duration(id):
            times[str(number)] = None
        elif is_date(id):
            times[str(number)] = epoch
    return times


def _read_cells(package: _Package, part: str, strings: list[str], times: _Times, text: Text) -> None:
    cell: Attributes = {}
    pieces: list[str] = []
    column = 0
    is_value = False

    def start(tag: str, attributes: Attributes) -> None:
        nonlocal cell, column, is_value
        if tag == "row":
            column = 0
        elif tag == "c":
            cell = attributes
            at = max(column, _column(attributes.get("r", ""), column))
            text.add("\t" * min(at - max(0, column - 1), _MOST_GAP))
            column = at + 1
        elif tag in {"v", "t"}:
            is_value = True

    def end(tag: str) -> None:
        nonlocal is_value
        if tag in {"v", "t"}:
            is_value = False
        elif tag == "c":
            text.add(_shown("".join(pieces), cell, strings, times))
            pieces.clear()
        elif tag == "row":
            text.add("\n")

    def words(found: str) -> None:
        if is_value:
            pieces.append(found)

    package.parse(part, start, end, words)


def _shown(value: str, cell: Attributes, strings: list[str], times: _Times) -> str:
    """Return what a cell shows."""
    kind = cell.get("t", "n")
    if kind == "s":
        number = int(value) if value.isdecimal() and len(value) < 10 else -1
        return strings[number] if 0 <= number < len(strings) else ""
    if kind == "b":
        return {"0": "FALSE", "1": "TRUE"}.get(value, value)
    if kind != "n":
        return value
    try:
        number_ = float(value)
        style = cell.get("s", "0")
        if style not in times:
            return f"{number_:.15g}"
        seconds = round(number_ * 86_400)
        if (epoch := times[style]) is None:
            minutes, rest = divmod(abs(seconds), 60)
            return f"{'-' * (seconds < 0)}{minutes // 60}:{minutes % 60:02}:{rest:02}"
        moment = epoch + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return value
    if number_ < 1:
        return f"{moment:%H:%M:%S}"
    return f"{moment:%Y-%m-%d}" if number_.is_integer() else f"{moment:%Y-%m-%d %H:%M:%S}"


def _column(reference: str, default: int) -> int:
    """Return the number of a cell's column, or the default if it names none.

    >>> _column("A7", 5), _column("AB12", 5), _column("", 5)
    (0, 27, 5)
    """
    number = 0
    for letter in reference[:3]:
        if not ("A" <= letter <= "Z"):
            break
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1 if number else default


def _local(tag: str) -> str:
    return tag.rpartition(" ")[2]


def _refuse(*declared: object) -> None:
    raise Unreadable("damaged")


# Where each kind has its main part; some programs number it.
_KINDS = {
    re.compile(r"word/document\d*\.xml"): read_document,
    re.compile(r"xl/workbook\d*\.xml"): read_workbook,
    re.compile(r"ppt/presentation\d*\.xml"): read_slides,
}
