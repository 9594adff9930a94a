"""What others quoted of a text that is deleted goes with it."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from bot.storage.schema import exchanges


def spoken(*which: ColumnElement[bool]) -> Select[tuple[str, str, str]]:
    """The texts of these exchanges, to be read before they are blanked."""
    return select(exchanges.c.platform, exchanges.c.channel, exchanges.c.text).where(*which)


async def unquote(tx: AsyncConnection, said: Iterable[Row[Any]]) -> None:
    """Delete what was quoted of these texts in their channels, whole or a part.

    A platform tells the words that were quoted, not of which message they are: where two
    said the same, both quotations go.  What was quoted from elsewhere, or never said to
    the bot, is known as the words of who quoted it alone.
    """
    texts: dict[tuple[str, str], list[str]] = {}
    for row in said:
        if text := _folded(row.text):
            texts.setdefault((row.platform, row.channel), []).append(text)
    for (platform, channel), gone in texts.items():
        quoting = select(exchanges.c.id, exchanges.c.quoted).where(
            exchanges.c.platform == platform, exchanges.c.channel == channel, exchanges.c.quoted.is_not(None)
        )
        found = [row.id for row in await tx.execute(quoting) if _quotes(_folded(row.quoted), gone)]
        if found:
            await tx.execute(update(exchanges).where(exchanges.c.id.in_(found)).values(quoted=None))


def _quotes(quoted: str, texts: Iterable[str]) -> bool:
    # The longer one may be either: a part can be quoted, and a quotation may hold the bot's name besides.
    return any(quoted in text or text in quoted for text in texts)


def _folded(text: str) -> str:
    """The text as it is compared: a platform may quote it with other spaces."""
    return " ".join(text.split())
