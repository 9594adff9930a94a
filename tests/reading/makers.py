"""Small office files and PDFs, written by hand."""

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape
from zipfile import ZIP_DEFLATED, ZipFile

_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_A = "http://schemas.openxmlformats.org/drawingml/2006/main"
_P = "http://schemas.openxmlformats.org/presentationml/2006/main"
_S = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_RELATIONSHIPS = "http://schemas.openxmlformats.org/package/2006/relationships"
_HEAD = '<?xml version="1.0" encoding="UTF-8"?>'


def archive(parts: Mapping[str, str | bytes]) -> bytes:
    """Return a zip file of these parts."""
    file = io.BytesIO()
    with ZipFile(file, "w", ZIP_DEFLATED) as package:
        for name, content in parts.items():
            package.writestr(name, content)
    return file.getvalue()


def relationships(targets: Iterable[str]) -> str:
    """Return relationships with the ids r0, r1, …"""
    listed = "".join(f'<Relationship Id="r{n}" Type="x" Target="{each}"/>' for n, each in enumerate(targets))
    return f'{_HEAD}<Relationships xmlns="{_RELATIONSHIPS}">{listed}</Relationships>'


def document(*paragraphs: str, body: str = "") -> bytes:
    """Return a Word file; `body` is XML after the paragraphs."""
    words = "".join(f"<w:p><w:r><w:t>{escape(each)}</w:t></w:r></w:p>" for each in paragraphs)
    return archive(
        {"word/document.xml": f'{_HEAD}<w:document xmlns:w="{_W}"><w:body>{words}{body}</w:body></w:document>'}
    )


def workbook(sheets: Mapping[str, str], strings: Sequence[str] = (), styles: str = "") -> bytes:
    """Return an Excel file; each sheet is the XML of its rows."""
    listed = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, name in enumerate(sheets))
    parts = {
        "xl/workbook.xml": f'{_HEAD}<workbook xmlns="{_S}" xmlns:r="{_R}"><sheets>{listed}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": relationships(f"worksheets/sheet{n}.xml" for n in range(len(sheets))),
        "xl/sharedStrings.xml": f'{_HEAD}<sst xmlns="{_S}">'
        + "".join(f"<si><t>{escape(each)}</t></si>" for each in strings)
        + "</sst>",
    }
    if styles:
        parts["xl/styles.xml"] = f'{_HEAD}<styleSheet xmlns="{_S}">{styles}</styleSheet>'
    for n, rows in enumerate(sheets.values()):
        parts[f"xl/worksheets/sheet{n}.xml"] = (
            f'{_HEAD}<worksheet xmlns="{_S}"><sheetData>{rows}</sheetData></worksheet>'
        )
    return archive(parts)


def slides(*texts: str, order: Sequence[int] | None = None) -> bytes:
    """Return a PowerPoint file with a slide for each text."""
    order = range(len(texts)) if order is None else order
    listed = "".join(f'<p:sldId id="{256 + n}" r:id="r{n}"/>' for n in order)
    head = f'xmlns:p="{_P}" xmlns:a="{_A}" xmlns:r="{_R}"'
    parts = {
        "ppt/presentation.xml": f"{_HEAD}<p:presentation {head}><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relationships(f"slides/slide{n}.xml" for n in range(len(texts))),
    }
    for n, text in enumerate(texts):
        words = f"<a:p><a:r><a:t>{escape(text)}</a:t></a:r></a:p>"
        parts[f"ppt/slides/slide{n}.xml"] = f"{_HEAD}<p:sld {head}>{words}</p:sld>"
    return archive(parts)


def pdf(*pages: str, objects: Sequence[bytes] = (), root: bytes = b"") -> bytes:
    """Return a PDF with a line of Latin text a page; `objects` come after them, `root` goes into the catalogue."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * n) for n in range(len(pages)))
    listed = [
        b"<< /Type /Catalog /Pages 2 0 R %s >>" % root,
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, text in enumerate(pages):
        shown = text.encode("latin-1").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
        listed.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % (5 + 2 * n)
        )
        listed.append(stream(b"BT /F1 12 Tf 72 720 Td (%s) Tj ET" % shown))
    return numbered([*listed, *objects])


def stream(data: bytes, more: bytes = b"") -> bytes:
    """Return a compressed stream."""
    packed = zlib.compress(data)
    return b"<< /Length %d /Filter /FlateDecode %s >>\nstream\n%s\nendstream" % (len(packed), more, packed)


def numbered(objects: Sequence[bytes], trailer: bytes = b"/Root 1 0 R") -> bytes:
    """Return a PDF of these objects, numbered from 1, with its table of offsets."""
    file, offsets = bytearray(b"%PDF-1.7\n"), []
    for number, each in enumerate(objects, 1):
        offsets.append(len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % each for each in offsets)
    start = len(file)
    file += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    file += b"trailer\n<< /Size %d %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, start)
    return bytes(file)
