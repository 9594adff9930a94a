"""Whether the Bot API server takes rich messages, as its answers tell."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from telegram.error import BadRequest, EndPointNotFound

from bot.adapters.telegram.client import knows_no_blocks
from bot.errors import MarkupRefused
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

NO_RICH_MESSAGES = (
    "telegram: the Bot API server is older than 10.2 and knows no rich messages: tables and formulas are shown as text"
)
# Seconds until a server that seemed older is asked again: a proxy may have answered, or the message was at fault.
_ASK_AGAIN = 3600.0


class RichSupport:
    """What is known about a server: whether it knows rich messages.

    A refusal as by an older server turns them off for an hour.  After one that was taken, a refusal concerns the
    refused message only.
    """

    def __init__(self, clock: Clock, *, is_known: bool) -> None:
        self._clock = clock
        self._off_until = -math.inf
        self._has_taken = self._is_logged = False
        if not is_known:
            self._turn_off()

    @property
    def is_on(self) -> bool:
        return self._clock.now() >= self._off_until

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Note what the server says to a call with a rich message.

        Raises:
            MarkupRefused: The server does not know rich messages.
        """
        if not self.is_on:  # a reply that was begun before this was known
            raise MarkupRefused("the Bot API server does not know rich messages")
        try:
            yield
        except EndPointNotFound as error:
            self._turn_off()
            raise MarkupRefused("the Bot API server does not know sendRichMessage") from error
        except BadRequest as error:
            if knows_no_blocks(error):
                self._turn_off()
            raise
        self._has_taken = True

    def _turn_off(self) -> None:
        if self._has_taken:
            return
        self._off_until = self._clock.now() + _ASK_AGAIN
        if not self._is_logged:
            log.info(NO_RICH_MESSAGES)
        self._is_logged = True
