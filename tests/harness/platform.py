"""The interface of a loopback platform, for tests, the demo and `make lossless`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Literal, Protocol, Self

from bot.adapters.base import Adapter
from bot.delivery.markdown import blocks
from bot.domain import Action
from bot.util.clock import Clock

# Seconds to wait for progress on a busy machine.
TIMEOUT = 600.0

# Cached: who waits for a message reads all messages again at each change.
visible_text = lru_cache(maxsize=20_000)(blocks.visible_text)


@dataclass(frozen=True, slots=True)
class Seen:
    """A message as users see it now.

    `markdown` is the text as it was sent, converted back where the platform takes
    entities; `visible` is the text without markup.
    """

    id: str
    author: str
    markdown: str
    visible: str
    actions: frozenset[Action] = frozenset()
    reply_to: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a call: `429`, `500` and `timeout` happen before its work, `lost` after it.

    `seconds` is the wait of a `429`.  With `lost` the work is done, but the response is cut off.
    """

    kind: Literal["429", "500", "timeout", "lost"]
    seconds: float = 0.0


# Gets the number of the bot's writing call (0, 1, …) and its name; None lets it through.
FaultScript = Callable[[int, str], Fault | None]


class LoopbackPlatform(Protocol):
    """A server with users; an async context manager.

    Users, channels and threads are created when they are first named.  `violations` are
    calls that the real platform forbids: before Retry-After is over, over the length limit,
    an unchanged edit where that is an error; and events that were not acknowledged.
    """

    name: str
    violations: list[str]
    script: FaultScript

    def adapter(self, clock: Clock) -> Adapter:
        """Return the real adapter, connecting to this server."""
        ...

    async def say(
        self,
        text: str,
        *,
        author: str = "Mei",
        channel: str = "general",
        thread: str | None = None,
        direct: bool = False,
        mention: bool = True,
        reply_to: str | None = None,
    ) -> str:
        """Send a user's message, to the bot unless `mention` is false; return its id."""
        ...

    async def edit(self, message_id: str, text: str) -> None:
        """Edit a user's message."""
        ...

    async def delete(self, message_id: str) -> None:
        """Delete a user's message; does nothing where bots do not receive deletions."""
        ...

    async def command(self, name: str, *, author: str = "Mei", channel: str = "general") -> None:
        """Use a slash command."""
        ...

    async def press(self, message_id: str, action: Action, *, author: str = "Mei") -> None:
        """Press a button below a message of the bot."""
        ...

    def seen(self, channel: str = "general", thread: str | None = None) -> list[Seen]:
        """Return the messages of a channel, or of the direct channel named after a user."""
        ...

    async def until(self, condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
        """Wait until the condition holds, checked after each change on the server.

        Raises:
            TimeoutError: It does not hold after `seconds`.
        """
        ...

    async def disconnect(self, *, resumable: bool = True) -> None:
        """Close the bot's event connection; later events wait or are lost as on the platform."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
