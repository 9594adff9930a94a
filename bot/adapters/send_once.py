"""Idempotent sends on platforms that do not deduplicate them."""

from collections.abc import Awaitable, Callable

from bot.errors import PlatformUnavailable
from bot.util.recent import RecentDict


class SendOnce:
    """Send each message once, although the response to a send can be lost."""

    def __init__(self) -> None:
        self._maybe_sent: RecentDict[str, None] = RecentDict()

    def maybe_sent(self, nonce: str) -> None:
        """Look for this message before it is sent again: an earlier send may have arrived."""
        self._maybe_sent[nonce] = None

    def is_in_doubt(self, nonce: str) -> bool:
        """Return whether an earlier send of this message may have arrived."""
        return nonce in self._maybe_sent

    async def send(
        self, nonce: str, post: Callable[[], Awaitable[str]], find: Callable[[], Awaitable[str | None]]
    ) -> str:
        """Return the id of the message: from `find()` if it may exist already, else from `post()`.

        Raises:
            PlatformUnavailable: The message may have arrived; the next send looks for it.
        """
        if nonce in self._maybe_sent:
            found = await find()
            self._maybe_sent.pop(nonce, None)
            if found is not None:
                return found
        try:
            return await post()
        except PlatformUnavailable:
            self.maybe_sent(nonce)
            raise
