"""What the program asks of a platform, and the one way a platform with edits answers."""

from typing import Protocol

import structlog

from bot.delivery import Delivery, Messenger, Pacer
from bot.dispatch import Dispatcher
from bot.domain import Exchange
from bot.errors import ChannelGone

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Adapter(Protocol):
    """One platform: translate, `accept`, acknowledge, `answer`."""

    async def run(self, dispatcher: Dispatcher) -> None:
        """Serve until cancelled; once connected, first answer what is `owed`.

        Raises:
            LoginRefused: The platform does not know the token; the program ends.
        """
        ...


async def answer(dispatcher: Dispatcher, messenger: Messenger, pacer: Pacer, exchange: Exchange) -> None:
    """Show the reply to `exchange`: new, edited, retried and owed ones alike."""
    delivery = Delivery(messenger, exchange, dispatcher.placed, pacer, dispatcher.say_to(exchange))
    try:
        await delivery.run(dispatcher.handle(exchange))
    except ChannelGone as gone:
        log.info("channel gone", exchange=exchange.id)
        await dispatcher.failed(exchange.id, str(gone))
    else:
        await dispatcher.delivered(exchange.id)
