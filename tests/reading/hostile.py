"""Files that try to crash, block, fill or cheat the reader."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from zipfile import ZIP_STORED, ZipFile

from tests.reading import makers
from tests.reading.hostile_pictures import PICTURES

Maker = Callable[[random.Random], bytes]

_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_MEGABYTE = 2**20
_WORD = "word/document.xml"


def hostile_files(count: int, seed: int, url: str) -> Iterator[tuple[str, bytes]]:
    """Yield kind and bytes of files, all kinds in turn; external entities name `url`."""
    kinds = list(_MAKERS.items())
    kinds += [(f"external entity {n}", partial(_external, form, url)) for n, form in enumerate(_EXTERNAL)]
    for number in range(count):
        name, make = kinds[number % len(kinds)]
        yield name, make(random.Random(f"{seed}/{number}"))


# Archives


def _word(xml: bytes | str) -> bytes:
    return makers.archive({_WORD: xml})


@cache
def _packed_zeros(megabytes: int, byte: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    piece = byte * _MEGABYTE
    return b"".join([*(packer.compress(piece) for _ in range(megabytes)), packer.flush()])


def _raw_zip(name: bytes, packed: bytes, size: int, *, method: int = 8, flags: int = 0, entries: int = 1) -> bytes:
    """Return an archive whose headers say what is given; all entries share the data."""
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, flags, method, 0, 0, 0, len(packed), size, len(name), 0) + name
    headers = []
    for number in range(entries):
        each = name if number == 0 else b"%s%d" % (name, number)
        headers.append(
            struct.pack(
                "<4sHHHHHHIIIHHHHHII",
                *(b"PK\1\2", 20, 20, flags, method, 0, 0, 0, len(packed), size, len(each), 0, 0, 0, 0, 0, 0),
            )
        )
        headers.append(each)
    directory = b"".join(headers)
    number = min(entries, 0xFFFF)
    at = len(local) + len(packed)
    return (
        local + packed + directory + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, number, number, len(directory), at, 0)
    )


def _bomb(random: random.Random) -> bytes:
    megabytes = random.choice([100, 200])
    return _raw_zip(_WORD.encode(), _packed_zeros(megabytes, random.choice([b" ", b"a"])), megabytes * _MEGABYTE)


def _lying_size(random: random.Random) -> bytes:
    size = random.choice([0, 1, 2**30, 2**32 - 1, 2**31])
    return _raw_zip(_WORD.encode(), _packed_zeros(100, b" "), size, flags=random.choice([0, 1, 8, 0x800]))


def _method(random: random.Random) -> bytes:
    return _raw_zip(_WORD.encode(), random.randbytes(1000), 1000, method=random.choice([1, 6, 9, 12, 14, 93, 97, 99]))


def _many_entries(random: random.Random) -> bytes:
    return _raw_zip(b"x/", b"", 0, method=0, entries=random.choice([10_000, 60_000]))


def _shared_parts(random: random.Random) -> bytes:
    return _raw_zip(_WORD.encode(), _packed_zeros(200, b"a"), 200 * _MEGABYTE, entries=1000)


def _nested(random: random.Random) -> bytes:
    data = makers.document("inside")
    for _ in range(random.randrange(1, 20)):
        data = makers.archive({random.choice(["a.zip", _WORD, "xl/workbook.xml"]): data})
    return data


def _paths(random: random.Random) -> bytes:
    names = ["../../etc/passwd", "/etc/passwd", "C:\\windows\\win.ini", "word/../word/document.xml", "word/" * 5000]
    return makers.archive({**dict.fromkeys(names, "x"), _WORD: f"<w:document xmlns:w='{_W}'/>"})


# XML


def _entities(random: random.Random) -> bytes:
    depth, width = random.randrange(5, 30), random.randrange(2, 20)
    entities = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * width if n else 'lol' * 100}'>" for n in range(depth))
    return _word(f"<!DOCTYPE d [{entities}]><w:document xmlns:w='{_W}'><w:t>&e{depth - 1};</w:t></w:document>")


def _quadratic(random: random.Random) -> bytes:
    text = "A" * random.randrange(10_000, 200_000)
    return _word(
        f"<!DOCTYPE d [<!ENTITY a '{text}'>]><w:document xmlns:w='{_W}'><w:t>{'&a;' * 50_000}</w:t></w:document>"
    )


_EXTERNAL = (
    "<!DOCTYPE d [<!ENTITY x SYSTEM '{url}'>]><d>&x;</d>",
    "<!DOCTYPE d SYSTEM '{url}'><d/>",
    "<!DOCTYPE d PUBLIC '-//x' '{url}'><d/>",
    "<!DOCTYPE d [<!ENTITY % p SYSTEM '{url}'> %p;]><d/>",
    "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><d>&x;</d>",
    "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///dev/zero'>]><d>&x;</d>",
    "<?xml-stylesheet href='{url}'?><d xmlns:xi='http://www.w3.org/2001/XInclude'><xi:include href='{url}'/></d>",
)


def _external(form: str, url: str, random: random.Random) -> bytes:
    xml = form.format(url=url)
    part = random.choice([_WORD, "xl/workbook.xml", "ppt/presentation.xml"])
    link = f'<Relationships><Relationship Id="r0" TargetMode="External" Target="{url}"/></Relationships>'
    folder, _, name = part.rpartition("/")
    return makers.archive({part: xml, f"{folder}/_rels/{name}.rels": random.choice([xml, link])})


def _deep(random: random.Random) -> bytes:
    depth = random.choice([10_000, 1_000_000])
    return _word(f"<w:document xmlns:w='{_W}'>{'<w:p>' * depth}")


def _broken_xml(random: random.Random) -> bytes:
    forms = [
        b"<w:document",
        b"\xff\xfe<\x00a\x00>",
        b"<?xml version='1.0' encoding='utf-7'?><a/>",
        b"<?xml version='1.0' encoding='nonsense'?><a/>",
        b"<a>" + b"x" * 5_000_000 + b"</b>",
        b"<a " + b" ".join(b"a%d='1'" % n for n in range(100_000)) + b"/>",
        b"<a b='" + b"x" * 10_000_000,
        b"\0" * 1000,
        b"",
        b"<a>]]>&#x0;</a>",
    ]
    return _word(random.choice(forms))


def _sheet(random: random.Random) -> bytes:
    far = '<row r="1048576"><c r="XFD1048576" t="s"><v>99999999999999999999</v></c></row>' * 1000
    many = '<row r="1"><c r="ZZZZZ9"/><c r="A1"><v>1e999</v></c><c t="s"><v>-1</v></c></row>' * 50_000
    dates = '<row><c s="0"><v>1e15</v></c><c s="0"><v>-5e9</v></c><c s="0"><v>nan</v></c></row>'
    styles = '<cellXfs><xf numFmtId="14"/></cellXfs>'
    rows = random.choice([far, many, dates])
    return makers.workbook({f"s{n}": rows for n in range(random.randrange(1, 4))}, ["x"], styles)


def _empty_cells(random: random.Random) -> bytes:
    return makers.workbook({"s": "<row><c r='XFD1'/></row>" * 500_000})


def _many_strings(random: random.Random) -> bytes:
    return makers.workbook({"s": "<row/>"}, ["x"] * 1_500_000)


def _slide_loop(random: random.Random) -> bytes:
    return makers.slides("once " * 100, order=[0] * random.choice([1000, 100_000]))


def _relation_loop(random: random.Random) -> bytes:
    parts = {
        "ppt/presentation.xml": "<p xmlns:r='http://x/relationships'><sldId r:id='r0'/><sldId r:id='r1'/></p>",
        "ppt/_rels/presentation.xml.rels": makers.relationships(["presentation.xml", "../ppt/../../../etc/passwd"]),
    }
    return makers.archive(parts)


def _macros(random: random.Random) -> bytes:
    body = makers.document("with macros")
    file = io.BytesIO(body)
    with ZipFile(file, "a", ZIP_STORED) as package:
        package.writestr("word/vbaProject.bin", b'Attribute VB_Name Shell "calc"' + random.randbytes(5000))
    return file.getvalue()


# PDF


def _page_loop(random: random.Random) -> bytes:
    kids = random.choice([b"[2 0 R]", b"[3 0 R 3 0 R]", b"[2 0 R 3 0 R]", b"2 0 R"])
    back = b"<< /Type /Pages /Kids [2 0 R 3 0 R] /Count 5 /Parent 2 0 R >>"
    return makers.numbered([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids %s /Count 9 >>" % kids, back])


def _many_pages(random: random.Random) -> bytes:
    count = random.choice([10_000, 1_000_000])
    kids = b"3 0 R " * (count if random.random() < 0.5 else 10)
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>"
    tree = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count)
    return makers.numbered([b"<< /Type /Catalog /Pages 2 0 R >>", tree, page])


def _stream_bomb(random: random.Random) -> bytes:
    packed = zlib.compress(_packed_zeros(200, b" ")) if random.random() < 0.3 else _zlib_zeros(200)
    filters = random.choice([b"/FlateDecode", b"[/FlateDecode /FlateDecode]", b"[/FlateDecode /ASCIIHexDecode]"])
    content = b"<< /Length %d /Filter %s >>\nstream\n%s\nendstream" % (len(packed), filters, packed)
    return _one_page(content)


@cache
def _zlib_zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(b" " * _MEGABYTE) for _ in range(megabytes)), packer.flush()])


def _one_page(content: bytes, resources: bytes = b"") -> bytes:
    return makers.numbered(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << %s >> >>" % resources,
            content,
        ]
    )


def _form_loop(random: random.Random) -> bytes:
    form = makers.stream(
        b"/F Do " * random.choice([1, 100]), b"/Type /XObject /Subtype /Form /Resources << /XObject << /F 4 0 R >> >>"
    )
    return _one_page(form, b"/XObject << /F 4 0 R >>")


def _long_content(random: random.Random) -> bytes:
    operators = random.choice([b"q ", b"[", b"(a) Tj ", b"<< ", b"1 0 0 1 0 0 cm ", b"BT (x) Tj ET ", b"BI ID "])
    return _one_page(makers.stream(operators * random.choice([10_000, 1_000_000])))


def _deep_pdf(random: random.Random) -> bytes:
    opening = random.choice([b"[", b"<< /A ", b"("])
    return makers.numbered([b"<< /Type /Catalog /Pages 2 0 R >>", opening * random.choice([1000, 1_000_000])])


def _table_loop(random: random.Random) -> bytes:
    file = makers.pdf("words")
    start = file.rindex(b"xref\n0")
    trailer = random.choice([b"/Prev %d" % start, b"/Prev 0", b"/XRefStm %d" % start, b"/Size 99999999999"])
    return file.replace(b"trailer\n<<", b"trailer\n<< " + trailer)


def _object_stream(random: random.Random) -> bytes:
    inside = makers.stream(b"1 0 2 5 << >> << >>", b"/Type /ObjStm /N 99999999 /First 8 /Extends 4 0 R")
    return makers.numbered([b"<< /Type /Catalog /Pages 2 0 R >>", b"2 0 R", b"1 0 R", inside], b"/Root 2 0 R")


def _actions(random: random.Random) -> bytes:
    action = b"/OpenAction << /S /Launch /F (/bin/sh) /Next << /S /URI /URI (http://192.0.2.1/) >> >>"
    script = b'<< /S /JavaScript /JS (app.launchURL\\("http://192.0.2.1/"\\)) >>'
    return makers.pdf("with actions", objects=[script], root=action)


def _locked(random: random.Random) -> bytes:
    version = random.choice([1, 2, 4, 5, 99])
    owner, user = (random.randbytes(32).hex().encode() for _ in range(2))
    revision = random.choice([2, 3, 4, 6])
    rights = b"/V %d /R %d /Length 128 /P -1 /O <%s> /U <%s>" % (version, revision, owner, user)
    key = b"<< /Filter /Standard %s >>" % rights
    return makers.pdf("secret", objects=[key]).replace(b"/Root 1 0 R", b"/Root 1 0 R /Encrypt 6 0 R /ID [<00> <00>]")


# Text and wrong types


def _odd_text(random: random.Random) -> bytes:
    return random.choice(
        [
            b"\xff\xfe" + random.randbytes(9999),
            b"\xef\xbb\xbf",
            b" \n" * 100_000,
            b"a" * 15 * _MEGABYTE,
            b"\x1b[2J\x07\x08" * 1000,
            b"\xed\xa0\x80" * 1000,
            "\u202e\u0000\ufffe".encode(),
            b"\x81" * 100_000,
            b"{" * _MEGABYTE,
            b"",
        ]
    )


def _wrong_type(random: random.Random) -> bytes:
    heads = [
        b"\x89PNG\r\n",
        b"MZ\x90\0",
        b"\x7fELF",
        b"%PDF-1.4\n",
        b"PK\3\4",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        b"GIF89a",
        b"",
    ]
    return random.choice(heads) + random.randbytes(random.choice([10, 10_000, _MEGABYTE]))


def _damaged(random: random.Random) -> bytes:
    rows = "<row><c r='A1' t='s'><v>0</v></c><c><v>1.5</v></c></row>"
    good = random.choice(
        [
            makers.pdf("one", "two", "three"),
            makers.document("one", "two"),
            makers.workbook({"a": rows, "b": rows}, ["words"]),
            makers.slides("one", "two"),
        ]
    )
    data = bytearray(good)
    for _ in range(random.choice([1, 5, 50])):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data[: random.randrange(1, len(data))] if random.random() < 0.3 else data)


_MAKERS: dict[str, Maker] = {
    **PICTURES,
    "zip bomb": _bomb,
    "lying size": _lying_size,
    "unknown method": _method,
    "many entries": _many_entries,
    "shared parts": _shared_parts,
    "nested archives": _nested,
    "paths": _paths,
    "entities": _entities,
    "quadratic entities": _quadratic,
    "deep XML": _deep,
    "broken XML": _broken_xml,
    "odd sheet": _sheet,
    "empty cells": _empty_cells,
    "many strings": _many_strings,
    "slide loop": _slide_loop,
    "relation loop": _relation_loop,
    "macros": _macros,
    "page loop": _page_loop,
    "many pages": _many_pages,
    "stream bomb": _stream_bomb,
    "form loop": _form_loop,
    "long content": _long_content,
    "deep PDF": _deep_pdf,
    "table loop": _table_loop,
    "object stream": _object_stream,
    "actions": _actions,
    "password": _locked,
    "odd text": _odd_text,
    "wrong type": _wrong_type,
    "damaged": _damaged,
    "damaged again": _damaged,
}
