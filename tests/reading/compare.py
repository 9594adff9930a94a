"""Compare what is read of files by LibreOffice with its own exports and pdftotext: `python -m tests.reading.compare --files 500`.

Needs the Debian packages libreoffice-writer, libreoffice-calc, libreoffice-impress, poppler-utils and fonts-noto-cjk.  Of each kind
(Word, Excel, PowerPoint, PDF) so many files are made, with Chinese and English words.  Status 1 if less than 98 % of a kind
are equal, white space aside, and 2 if a program is missing.
"""

import argparse
import asyncio
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from html import escape
from pathlib import Path

from bot.chat.reading.fault import Unreadable
from bot.chat.reading.reader import read_file

_LEAST = 0.98
_MOST_BYTES, _MOST_CHARACTERS = 20 * 2**20, 1_000_000
# Files that LibreOffice converts in one run.
_AT_ONCE = 50
_WORDS = re.findall(
    r"\w+", "the quick brown fox jumps over a lazy dog and reads quarterly figures of revenue profit growth by region"
)
_CHARACTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈"
_NAMESPACES = " ".join(
    f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{path}:1.0"'
    for name, path in {"office": "office", "text": "text", "draw": "drawing", "svg": "svg-compatible"}.items()
)

Chance = random.Random


def _sentence(chance: Chance) -> str:
    if chance.random() < 0.5:
        return " ".join(chance.choices(_WORDS, k=chance.randrange(3, 14))).capitalize() + "."
    return "".join(chance.choices(_CHARACTERS, k=chance.randrange(4, 25))) + "。"


def _paragraph(chance: Chance) -> str:
    return " ".join(_sentence(chance) for _ in range(chance.randrange(1, 6)))


def _html(chance: Chance) -> str:
    """Return a document with headings, paragraphs, lists and a table."""
    parts = [f"<h1>{_sentence(chance)}</h1>"]
    for _ in range(chance.randrange(2, 12)):
        match chance.randrange(4):
            case 0:
                parts.append(f"<h2>{_sentence(chance)}</h2>")
            case 1:
                cells = (
                    "".join(f"<td>{_sentence(chance)}</td>" for _ in range(3)) for _ in range(chance.randrange(1, 4))
                )
                parts.append(f"<table border=1>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>")
            case _:
                parts.append(f"<p>{escape(_paragraph(chance))} <b>{_sentence(chance)}</b></p>")
    return f"<html><head><meta charset='utf-8'></head><body>{''.join(parts)}</body></html>"


def _csv(chance: Chance) -> str:
    def cell() -> str:
        value = chance.choice([chance.randrange(10**6), chance.randrange(10**4) / 4, _sentence(chance)])
        return str(value).replace(",", "")

    return "\n".join(",".join(cell() for _ in range(4)) for _ in range(chance.randrange(2, 40))) + "\n"


def _slides(chance: Chance) -> str:
    def page(number: int) -> str:
        frames = "".join(
            f'<draw:frame svg:x="1cm" svg:y="{1 + 4 * at}cm" svg:width="24cm" svg:height="3cm"><draw:text-box>'
            f"<text:p>{_sentence(chance)}</text:p></draw:text-box></draw:frame>"
            for at in range(chance.randrange(1, 4))
        )
        return f'<draw:page draw:name="page{number}">{frames}</draw:page>'

    pages = "".join(page(number) for number in range(chance.randrange(1, 8)))
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><office:document {_NAMESPACES} office:version="1.2" '
        'office:mimetype="application/vnd.oasis.opendocument.presentation"><office:body>'
        f"<office:presentation>{pages}</office:presentation></office:body></office:document>"
    )


# Source, ending of the source, of the file, and of LibreOffice's own export ("" for pdftotext of its PDF).
_KINDS: dict[str, tuple[Callable[[Chance], str], str, str, str]] = {
    "Word": (_html, "html", "docx:MS Word 2007 XML", "txt:Text (encoded):UTF8"),
    "PDF": (_html, "html", "pdf:writer_web_pdf_Export", ""),
    "Excel": (_csv, "csv", "xlsx:Calc MS Excel 2007 XML", "csv:Text - txt - csv (StarCalc):9,34,76"),
    "PowerPoint": (_slides, "fodp", "pptx:Impress MS PowerPoint 2007 XML", ""),
}


def _convert(office: str, files: Iterable[Path], to: str, folder: Path, *options: str) -> None:
    listed = [str(path) for path in files]
    for at in range(0, len(listed), _AT_ONCE):
        profile = f"-env:UserInstallation=file://{folder / 'profile'}"
        command = [
            office,
            profile,
            "--headless",
            *options,
            "--convert-to",
            to,
            "--outdir",
            str(folder),
            *listed[at : at + _AT_ONCE],
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=600)


def _pdf_text(path: Path) -> str:
    return subprocess.run(
        ["pdftotext", "-raw", str(path), "-"], check=True, capture_output=True, timeout=60
    ).stdout.decode()


async def _read(path: Path) -> str:
    async def chunks() -> AsyncIterator[bytes]:
        yield path.read_bytes()

    try:
        return (await read_file(chunks(), most_bytes=_MOST_BYTES, most_characters=_MOST_CHARACTERS)).text
    except Unreadable as error:
        return f"not read: {error.fault}"


def _squeezed(text: str) -> str:
    # Form feeds between pages, and the quotes of cells with commas, are the export's.
    return re.sub(r"[\s\ufeff\x0c\"•]+", "", text)


async def compare(kind: str, count: int, seed: int, office: str) -> list[str]:
    """Make and read files of a kind; return the names of those whose text differs."""
    make, source, ending, export = _KINDS[kind]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = [f"{kind}{number:04}" for number in range(count)]
        for name in names:
            (folder / f"{name}.{source}").write_text(make(Chance(f"{seed} {name}")), encoding="utf-8")
        imported = ["--infilter=CSV:44,34,76"] if source == "csv" else []
        _convert(office, [folder / f"{name}.{source}" for name in names], ending, folder, *imported)
        extension = ending.partition(":")[0]
        files = {name: folder / f"{name}.{extension}" for name in names}
        texts = {name: await _read(path) for name, path in files.items()}
        if export:
            for path in folder.glob(f"*.{source}"):
                path.unlink()
            _convert(office, files.values(), export, folder)
            expected = {
                name: (folder / f"{name}.{export.partition(':')[0]}").read_text(encoding="utf-8") for name in names
            }
        else:
            if extension != "pdf":
                _convert(office, files.values(), "pdf", folder)
            expected = {name: _pdf_text(folder / f"{name}.pdf") for name in names}
    return [name for name in names if _squeezed(texts[name]) != _squeezed(expected[name])]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reading.compare", description=__doc__)
    parser.add_argument("--files", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    office = shutil.which("soffice")
    if office is None or shutil.which("pdftotext") is None:
        print("skipped: install libreoffice-writer, libreoffice-calc, libreoffice-impress and poppler-utils")  # noqa: T201
        return 2
    is_good = True
    for kind in _KINDS:
        differ = asyncio.run(compare(kind, options.files, options.seed, office))
        share = 1 - len(differ) / options.files
        is_good = is_good and share >= _LEAST
        print(f"{kind:<11} {options.files} files, {share:.1%} equal {' '.join(differ[:5])}".rstrip(), flush=True)  # noqa: T201
    return not is_good


if __name__ == "__main__":
    sys.exit(main())
