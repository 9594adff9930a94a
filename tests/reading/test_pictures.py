"""Pictures as a model gets them, each made in its own process."""

import io
from collections.abc import AsyncIterator
from random import Random

import pytest
from PIL import Image, ImageDraw

from bot.chat.reading.fault import Unreadable
from bot.chat.reading.limits import LONGEST_SIDE, MOST_PICTURE_BYTES, MOST_PIXELS
from bot.chat.reading.reader import read_file
from bot.domain import Picture
from tests.reading.hostile_pictures import drawn, png


async def read(data: bytes) -> Picture:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    reading = await read_file(chunks(), most_bytes=20 * 2**20, most_characters=100, sees=True)
    assert reading.picture is not None
    return reading.picture


def opened(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(picture.data), formats=["JPEG"])
    assert picture.media_type == "image/jpeg"
    assert image.size == (picture.width, picture.height)
    return image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "I;16", "CMYK"])
async def test_every_kind_and_mode_becomes_a_jpeg(kind: str, mode: str) -> None:
    try:
        data = drawn(kind, mode=mode)
    except (OSError, ValueError):
        pytest.skip("no such file")
    assert opened(await read(data)).size == (64, 48)


@pytest.mark.parametrize("size", [(4000, 3000), (100, 5000), (5000, 1), (1568, 668)])
async def test_a_large_picture_is_scaled_down(size: tuple[int, int]) -> None:
    found = opened(await read(drawn("PNG", size)))
    assert max(found.size) <= LONGEST_SIDE
    assert found.width * found.height <= MOST_PIXELS
    assert found.width * size[1] == pytest.approx(found.height * size[0], rel=0.02, abs=max(size))


async def test_a_picture_that_compresses_badly_stays_within_its_bytes() -> None:
    noise = Image.frombytes("RGB", (1024, 1024), Random(1).randbytes(3 * 2**20))
    assert len((await read(saved(noise, "PNG"))).data) <= MOST_PICTURE_BYTES


async def test_a_photo_is_turned_upright_and_loses_its_metadata() -> None:
    photo = Image.new("RGB", (40, 20), "blue")
    ImageDraw.Draw(photo).rectangle((0, 0, 9, 19), fill="red")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "at home"
    found = await read(saved(photo, "JPEG", exif=exif, comment=b"at home", quality=95))
    assert b"at home" not in found.data
    upright = opened(found)
    assert upright.size == (20, 40)
    top, bottom = upright.getpixel((10, 2)), upright.getpixel((10, 37))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[0] > 200 > top[2]
    assert bottom[2] > 200 > bottom[0]


async def test_transparent_parts_are_white() -> None:
    found = opened(await read(saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG")))
    assert found.getpixel((4, 4)) == (255, 255, 255)


async def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    found = opened(await read(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    assert found.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (png((b"IDAT", b""), size=(6000, 6000)), "large"),
        (png((b"IDAT", b""), size=(2**31 - 1, 2**31 - 1)), "large"),
        (drawn("JPEG", (500, 500))[:300], "damaged"),
        (drawn("PNG")[:40], "damaged"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "damaged"),
    ],
)
async def test_a_bomb_and_a_damaged_picture_are_refused(data: bytes, fault: str) -> None:
    with pytest.raises(Unreadable) as error:
        await read(data)
    assert error.value.fault == fault
