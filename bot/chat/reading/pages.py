"""The text of a PDF, page by page."""

import io
import logging

from pypdf import PdfReader
from pypdf.errors import PyPdfError

from bot.chat.reading.fault import Unreadable
from bot.chat.reading.text import Text


def read_pages(data: bytes, text: Text) -> None:
    """Add the text of all pages, as far as they can be read.

    Raises:
        Unreadable: It has a password, or is damaged.
    """
    logging.disable()
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("locked")
        number = len(reader.pages)
    except (PyPdfError, NotImplementedError) as error:
        raise Unreadable("damaged") from error
    for page in range(number):
        text.add(reader.pages[page].extract_text().strip(), "\n\n")
