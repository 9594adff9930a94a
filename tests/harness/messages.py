"""Messages for tests, each with its own id unless one is given."""

from datetime import UTC, datetime
from itertools import count

from bot.domain import Author, ChannelKey, IncomingMessage

CHANNEL = ChannelKey("discord", "c1")
MEI = Author("discord", "1", "Mei")
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
_ids = count(1)


def a_message(
    text: str = "hello",
    *,
    id: str | None = None,
    channel: ChannelKey = CHANNEL,
    author: Author = MEI,
    server: str | None = None,
    is_direct: bool = True,
    locale: str | None = None,
    quoted: str | None = None,
    quoted_id: str | None = None,
    quotes_bot: bool = False,
) -> IncomingMessage:
    return IncomingMessage(
        id=id or str(next(_ids)),
        channel=channel,
        author=author,
        text=text,
        sent_at=NOON,
        server=server,
        is_direct=is_direct,
        locale=locale,
        quoted=quoted,
        quoted_id=quoted_id,
        quotes_bot=quotes_bot,
    )
