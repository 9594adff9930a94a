"""A picture as a model gets it: decoded, scaled down, without metadata.

Imported by the process that reads a file.
"""

import base64
import io

from PIL import ExifTags, Image, ImageFile, ImageOps

from bot.chat.reading.fault import Unreadable
from bot.chat.reading.limits import LONGEST_SIDE, MOST_PICTURE_BYTES, MOST_PIXELS

# Pixels of a file by its kind; a larger one is refused before it is decoded.  A JPEG is decoded at a fraction of its
# size, a WebP is in memory three times, at 4 bytes for a pixel.
_MOST_DECODED = {"JPEG": 100 * 2**20, "MPO": 100 * 2**20, "PNG": 20 * 2**20, "GIF": 20 * 2**20, "WEBP": 12 * 2**20}
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
# From the best; a picture is made smaller once the last one takes too many bytes.
_QUALITIES = (90, 75, 50)


def read_picture(data: bytes) -> dict[str, object]:
    """Return a JPEG with its sides in pixels; of an animation the first frame.

    Raises:
        Unreadable: It has too many pixels.
        Exception: It is damaged; Pillow raises errors of many kinds.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            if opened.width * opened.height > _MOST_DECODED.get(opened.format or "", 0):
                raise Unreadable("large")
            picture = _scaled(opened)
    except Image.DecompressionBombError as error:  # a multiple of that
        raise Unreadable("large") from error
    while True:
        for quality in _QUALITIES:
            written = io.BytesIO()
            picture.save(written, "JPEG", quality=quality)
            if written.tell() <= MOST_PICTURE_BYTES:
                content = base64.b64encode(written.getvalue()).decode()
                return {"picture": content, "width": picture.width, "height": picture.height}
        picture = picture.reduce(2)


def _scaled(opened: ImageFile.ImageFile) -> Image.Image:
    """Return the picture in RGB, upright, within the bounds of sides and pixels; transparent parts are white."""
    factor = min(1.0, LONGEST_SIDE / max(opened.size), (MOST_PIXELS / (opened.width * opened.height)) ** 0.5)
    size = (max(1, int(opened.width * factor)), max(1, int(opened.height * factor)))
    opened.draft("RGB", size)
    turn = opened.getexif().get(ExifTags.Base.Orientation, 1)
    picture: Image.Image = opened
    if picture.mode in {"P", "PA", "1"}:  # between colours of a palette there is nothing
        picture = picture.convert("RGBA")
    elif picture.mode.startswith("I;16"):
        picture = picture.point(lambda value: value / 256).convert("L")
    picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0) if picture.size != size else picture
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    picture = picture.convert("RGB")
    picture.getexif()[ExifTags.Base.Orientation] = turn
    picture = ImageOps.exif_transpose(picture)
    picture.info.clear()  # a comment would be written
    return picture
