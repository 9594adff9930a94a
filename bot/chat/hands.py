"""Who works on what, so that nothing is taken up twice."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

from bot.domain import Exchange, IncomingMessage


class Hands:
    """The exchanges that somebody works on, and the messages that are about to become such.

    What nobody works on stands in the database alone, and its rows are old news when they
    arrive: meanwhile one exchange was done and let go, another kept and not taken up yet.
    """

    def __init__(self) -> None:
        self._held: dict[int, Exchange] = {}
        self._reaching: list[tuple[str, str, str]] = []
        self._looks: dict[object, set[int]] = {}  # what was let go during each look that has not ended

    def take(self, exchange: Exchange) -> None:
        """Work on it in the place of whoever took it before."""
        self._held[exchange.id] = exchange

    def let_go(self, exchange: Exchange) -> bool:
        """It is done with; taken anew meanwhile, it stays in those other hands, and this is False."""
        if self._held.get(exchange.id) is not exchange:
            return False
        self.free_up(exchange.id)
        return True

    def free_up(self, exchange: int) -> None:
        """Take it out of all hands: whoever still works on it ends without it."""
        self._held.pop(exchange, None)
        for let_go in self._looks.values():
            let_go.add(exchange)

    @contextmanager
    def reaching(self, message: IncomingMessage) -> Iterator[None]:
        """Let nobody else take up what this opens a row for, before it is taken here."""
        place = _place(message)
        self._reaching.append(place)
        try:
            yield
        finally:
            self._reaching.remove(place)

    async def free(self, rows: Awaitable[list[Exchange]]) -> list[Exchange]:
        """Those that nobody worked on at any moment since their rows were asked for, nor is about to."""
        look = object()
        let_go = self._looks[look] = set()
        try:
            arrived = await rows
        finally:
            del self._looks[look]
        busy = self._held.keys() | let_go
        return [row for row in arrived if row.id not in busy and _place(row.message) not in self._reaching]


def _place(message: IncomingMessage) -> tuple[str, str, str]:
    """What tells a message from all others before it has a row; its thread not every event knows."""
    return message.channel.platform, message.channel.channel, message.id
