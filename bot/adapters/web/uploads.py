"""Large bodies of requests, which are kept in memory: few at a time, and fewer of one session."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException

from bot.chat.i18n import Translate

# Bodies in memory, of all sessions and of one.
_AT_ONCE, _OF_SESSION = 4, 2
# Of a session, with those that wait; a page sends one after the other, and has four tabs at most.
_MOST = 6


class Uploads:
    """The uploads of all sessions."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(_AT_ONCE)
        self._of_session: dict[str, asyncio.Semaphore] = {}
        self._begun = Counter[str]()

    @asynccontextmanager
    async def place(self, session: str, translate: Translate) -> AsyncIterator[None]:
        """Wait for a place, and hold it inside the block: from the first byte until the body is used up.

        Raises:
            HTTPException: Too many of the session wait already (429).
        """
        if self._begun[session] >= _MOST:
            why = translate("Too many files are being sent at once. Please try again in a moment.")
            raise HTTPException(429, why, {"Retry-After": "1"})
        self._begun[session] += 1
        try:
            async with self._of_session.setdefault(session, asyncio.Semaphore(_OF_SESSION)), self._all:
                yield
        finally:
            self._begun[session] -= 1
            if not self._begun[session]:
                del self._begun[session], self._of_session[session]
