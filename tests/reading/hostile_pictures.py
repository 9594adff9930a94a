"""Pictures that try to crash, block or fill the reader."""

import io
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"


def drawn(kind: str, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object) -> bytes:
    """Return a picture of one colour as a file of this kind."""
    file = io.BytesIO()
    Image.new(mode, size, 100).save(file, kind, **options)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (10, 10), depth: int = 8, colours: int = 2) -> bytes:
    """Return a PNG with a head and these chunks, whatever they are."""
    head = struct.pack(">IIBBBBB", *size, depth, colours, 0, 0, 0)
    return _PNG + b"".join(_chunk(name, data) for name, data in ((b"IHDR", head), *chunks, (b"IEND", b"")))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(2**20)) for _ in range(megabytes)), packer.flush()])


def _bomb(random: random.Random) -> bytes:
    side = random.choice([5_000, 8_000, 30_000, 2**31 - 1])
    return png(
        (b"IDAT", _zeros(200)), size=(side, side), depth=random.choice([1, 8, 16]), colours=random.choice([0, 2, 6])
    )


def _packed_text(random: random.Random) -> bytes:
    return png(*[(random.choice([b"zTXt", b"iCCP"]), b"a\0\0" + _zeros(100))] * random.choice([1, 10]), (b"IDAT", b""))


def _many_chunks(random: random.Random) -> bytes:
    return png(*[(b"tEXt", b"a\0b")] * random.choice([1_000, 200_000]), (b"IDAT", b""))


def _claimed_length(random: random.Random) -> bytes:
    return png()[:-12] + struct.pack(">I", random.choice([2**31, 2**32 - 1])) + b"IDAT" + random.randbytes(100)


def _canvas(random: random.Random) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 65535, random.choice([1, 500, 65535]), 0xF7, 0, 0) + bytes(768)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x08"
    return head + frame + b"\xff" + random.randbytes(255) + b"\0;"


def _frames(random: random.Random) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0xF0, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 2, 2, 0) + b"\x02\x03\x84\x51\x05\x00"
    return head + frame * random.choice([10, 500_000]) + b";"


def _large_jpeg(random: random.Random) -> bytes:
    data = bytearray(drawn("JPEG", (100, 100), progressive=random.random() < 0.5))
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[at + 5 : at + 9] = struct.pack(">HH", *random.choice([(65535, 65535), (5000, 5000), (1, 65535), (0, 0)]))
    return bytes(data)


def _scans(random: random.Random) -> bytes:
    data = drawn("JPEG", (2000, 2000), progressive=True)
    begin = data.index(b"\xff\xda")
    return data[:begin] + data[begin:-2] * 300 + data[-2:]


def _turned(random: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = random.choice([0, 3, 6, 9, 255])
    exif[0x010E] = "a" * 50_000
    return drawn("JPEG", (random.choice([1, 3000]), 5), exif=exif)


def _damaged(random: random.Random) -> bytes:
    kind = random.choice(["PNG", "JPEG", "GIF", "WEBP"])
    data = bytearray(drawn(kind, (random.randrange(1, 400), random.randrange(1, 400))))
    for _ in range(random.choice([0, 1, 5, 50])):
        data[random.randrange(12, len(data))] = random.randrange(256)
    return bytes(data[: random.randrange(12, len(data))] if random.random() < 0.5 else data)


PICTURES: dict[str, Callable[[random.Random], bytes]] = {
    "picture bomb": _bomb,
    "packed text in a picture": _packed_text,
    "many chunks": _many_chunks,
    "claimed length": _claimed_length,
    "large canvas": _canvas,
    "many frames": _frames,
    "large JPEG": _large_jpeg,
    "many scans": _scans,
    "turned picture": _turned,
    "damaged picture": _damaged,
}
