"""Text of files of all kinds, each read in its own process."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.chat.reading import sandbox
from bot.chat.reading.fault import Unreadable
from bot.chat.reading.reader import Reading, read_file
from tests.reading import makers
from tests.reading.__main__ import MOST_GROWTH, MOST_SECONDS, read_hostile
from tests.reading.hostile_pictures import drawn

_DATES = '<cellXfs><xf numFmtId="0"/><xf numFmtId="14"/><xf numFmtId="22"/></cellXfs>'
_ROWS = """<row r="1"><c r="A1" t="s"><v>1</v></c><c r="C1" t="inlineStr"><is><t>inline</t></is></c></row>
<row r="2"><c><v>0.10000000000000001</v></c><c s="1"><v>45292</v></c><c s="2"><v>45292.75</v></c><c t="b"><v>1</v></c></row>"""
_HYPHEN = "<w:p><w:r><w:t>555</w:t><w:noBreakHyphen/><w:t>1234</w:t></w:r></w:p>"
_DURATIONS = """<numFmts><numFmt numFmtId="164" formatCode="[hh]:mm"/><numFmt numFmtId="165" formatCode="[Red]hh:mm"/></numFmts>
<cellXfs><xf numFmtId="46"/><xf numFmtId="164"/><xf numFmtId="165"/></cellXfs>"""
_HOURS = """<row r="1"><c><v>1.6875</v></c><c s="1"><v>0.0416666666666667</v></c><c s="1"><v>-1.50005787037</v></c><c s="2"><v>0.5</v></c></row>"""
_TABLE = """<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
<mc:AlternateContent xmlns:mc="m"><mc:Choice><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Choice>
<mc:Fallback><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Fallback></mc:AlternateContent>"""

FILES: dict[str, tuple[bytes, str]] = {
    "UTF-8": ("héllo 你好\r\n".encode(), "héllo 你好"),
    "a byte order mark": ("你好".encode("utf-8-sig"), "你好"),
    "UTF-16": ("你好".encode("utf-16"), "你好"),
    "GB 18030": ("你好,world".encode("gb18030"), "你好,world"),
    "UTF-8 with a wrong byte": ("今天的天气很好。".encode() + b"\xa0 ok", "今天的天气很好。\ufffd ok"),
    "UTF-8 without its last byte": ("今天的天气很好".encode()[:-1], "今天的天气很\ufffd"),
    "GB 18030 with a wrong byte": ("今天的天气很好。".encode("gb18030") + b"\xff\xff", "今天的天气很好。\ufffd\ufffd"),
    "Windows-1252": ("déjà vu".encode("cp1252"), "déjà vu"),
    "a table whose first column is called PK": (b"PK,name\n1,Mei\n", "PK,name\n1,Mei"),
    "Word": (makers.document("你好 & bye", "second", body=_TABLE), "你好 & bye\nsecond\na \tb \t\nbox"),
    "Word with a hyphen that does not break": (makers.document("call", body=_HYPHEN), "call\n555-1234"),
    "Excel": (
        makers.workbook({"one": _ROWS, "二": _ROWS.partition("\n")[0]}, ["", "shared"], _DATES),
        "one\nshared\t\tinline\n0.1\t2024-01-01\t2024-01-01 18:00:00\tTRUE\n\n二\nshared\t\tinline",
    ),
    "Excel with durations": (
        makers.workbook({"one": _HOURS}, [], _DURATIONS),
        "40:30:00\t1:00:00\t-36:00:05\t12:00:00",
    ),
    "PowerPoint": (makers.slides("first", "second", order=[1, 0]), "second\n\nfirst"),
    "PDF": (makers.pdf("first page", "second (page)"), "first page\n\nsecond (page)"),
}
FAULTS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "a picture": (drawn("PNG"), "picture"),
    "another archive": (makers.archive({"a.txt": "a"}), "kind"),
    "an empty archive": (makers.archive({}), "kind"),
    "a torn archive": (makers.archive({"a.txt": "a"})[:20], "damaged"),
    "an encrypted Word file": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
        "locked",
    ),
    "a torn PDF": (makers.pdf("words")[:100], "damaged"),
    "a document type": (makers.archive({"word/document.xml": "<!DOCTYPE d [<!ENTITY a 'b'>]><d>&a;</d>"}), "damaged"),
}


async def read(data: bytes, *, most_bytes: int = 2**20, most_characters: int = 1000) -> Reading:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1000):
            yield data[start : start + 1000]

    return await read_file(chunks(), most_bytes=most_bytes, most_characters=most_characters)


@pytest.mark.parametrize(("data", "text"), FILES.values(), ids=FILES)
async def test_text_is_read(data: bytes, text: str) -> None:
    if data.startswith(b"%PDF-"):
        pytest.importorskip("pypdf")
    assert await read(data) == Reading(text)


@pytest.mark.parametrize(("data", "fault"), FAULTS.values(), ids=FAULTS)
async def test_a_file_without_text_says_why(data: bytes, fault: str) -> None:
    with pytest.raises(Unreadable) as error:
        await read(data)
    assert error.value.fault == fault


async def test_a_long_text_is_cut() -> None:
    assert await read(b"abc" * 10, most_characters=5) == Reading("abcab", is_cut=True)
    pytest.importorskip("pypdf")
    assert await read(makers.pdf("first page", "second page"), most_characters=14) == Reading("first page\n\nse", True)


async def test_more_bytes_than_allowed_are_not_taken() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while taken < 2**30:
            taken += 2**16
            yield bytes(2**16)

    with pytest.raises(Unreadable) as error:
        await read_file(endless(), most_bytes=2**20, most_characters=1000)
    assert error.value.fault == "large"
    assert taken < 16 * 2**20


async def test_hostile_files_do_no_harm() -> None:
    figures = await read_hostile(30, seed=3)
    assert figures.crashes == []
    assert figures.slowest[0] <= 2 * MOST_SECONDS  # other tests run meanwhile
    assert figures.growth <= MOST_GROWTH
    assert figures.connections == 0


@pytest.mark.skipif(not sandbox.has_seccomp(), reason="no seccomp here")
@pytest.mark.parametrize(
    "act",
    [
        "import socket; socket.socket()",
        "import os; os.fork()",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(1, 0)",
        "import signal; signal.pthread_kill(__import__('threading').get_ident(), 0)",
        "import os, signal; signal.pidfd_send_signal(os.open('/proc/1', 0), 0)",
        "import os; os.truncate('kept', 0)",
        "import os; os.open('kept', os.O_RDWR | os.O_TRUNC)",
        "import os; os.open('kept', os.O_RDONLY | os.O_TRUNC)",
        "import os; os.unlink('kept')",
        "import os; os.rename('kept', 'other')",
        "import os; os.link('kept', 'other')",
        "import os; os.symlink('kept', 'other')",
        "import os; os.chmod('kept', 0o777)",
        "import os; os.mkdir('made')",
        "import os; os.mkfifo('made')",
        "import os; os.write(os.open('written', os.O_CREAT | os.O_WRONLY), b'x')",
        "bytearray(2**29)",
    ],
)
async def test_the_process_may_not(act: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept", encoding="utf-8")
    program = (
        "from bot.chat.reading.sandbox import limit_resources, refuse_system_calls\n"
        "limit_resources(); refuse_system_calls()\n"
        f"try:\n    {act}\nexcept (MemoryError, OSError) as error:\n    print(type(error).__name__)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    output, _ = await process.communicate()
    assert output.strip() in {b"PermissionError", b"MemoryError", b"OSError"}
    assert [(file.name, file.read_text(encoding="utf-8")) for file in tmp_path.iterdir()] == [("kept", "kept")]
