"""Idempotent sends on platforms that do not deduplicate them."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bot.errors import PlatformUnavailable

K = TypeVar("K")
V = TypeVar("V")

# Far more than are in flight at once; some are never resolved.
_REMEMBERED = 10_000


class RecentDict(OrderedDict[K, V]):
    """A dict that drops the entries set longest ago beyond its limit.

    >>> recent = RecentDict(2)
    >>> recent["a"], recent["b"], recent["a"], recent["c"] = 1, 2, 3, 4
    >>> dict(recent)
    {'a': 3, 'c': 4}
    """

    def __init__(self, limit: int = _REMEMBERED) -> None:
        super().__init__()
        self._limit = limit

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._limit:
            self.popitem(last=False)


class SendOnce:
    """Send each message once, although the response to a send can be lost."""

    def __init__(self) -> None:
        self._maybe_sent: RecentDict[str, None] = RecentDict()

    def maybe_sent(self, nonce: str) -> None:
        """Look for this message before it is sent again: an earlier send may have arrived."""
        self._maybe_sent[nonce] = None

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
