"""Confirm a refused login by asking twice: one refusal may be the platform's own fault."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from bot.errors import LoginRefused
from bot.util.clock import Clock

T = TypeVar("T")

# Seconds before the second attempt.
_PAUSE = 5.0


async def confirm(attempt: Callable[[], Awaitable[T]], clock: Clock, pause: float = _PAUSE) -> T:
    """Await `attempt()`, a second time after `pause` seconds if the login is refused.

    Raises:
        LoginRefused: It was refused twice.
    """
    try:
        return await attempt()
    except LoginRefused:
        await clock.sleep(pause)
        return await attempt()
