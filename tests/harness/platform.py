"""A platform on this machine with people in it: what tests, the demo and `make lossless` drive."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from bot.adapters.base import Adapter
from bot.domain import Action
from bot.util.clock import Clock

# Seconds in which all that is waited for has come, on a machine with other work.
TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A message as people see it now.

    `markdown` is what was sent, as Markdown again where the platform took entities;
    `visible` is the text without markup.
    """

    id: str
    author: str
    markdown: str
    visible: str
    actions: frozenset[Action] = frozenset()
    reply_to: str | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """What the server does to a call instead of, or after, its work.

    `429` comes with `seconds` as the platform writes it; `500` and `timeout` happen
    before the work, `lost` after it: the work is done, its answer cut off.
    """

    kind: Literal["429", "500", "timeout", "lost"]
    seconds: float = 0.0


# Told the number of the bot's writing call (0, 1, …) and its name; None lets it through.
Script = Callable[[int, str], Fault | None]


class LoopbackPlatform(Protocol):
    """A server and the people on it; an async context manager.

    People, channels and threads are made by being named.  `violations` holds what a
    client of the real platform may not do: a call before its Retry-After was over, a
    text over the limit, an unchanged edit where that is an error, an unanswered event.
    """

    name: str
    violations: list[str]
    script: Script

    def adapter(self, clock: Clock) -> Adapter:
        """The real adapter, with the real library, pointed at this server."""
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
        """Let a person speak, to the bot unless `mention` is false; return the message's id."""
        ...

    async def edit(self, message_id: str, text: str) -> None:
        """Let its author edit a message."""
        ...

    async def delete(self, message_id: str) -> None:
        """Let its author delete a message; where bots are not told of that, nothing happens."""
        ...

    async def command(self, name: str, *, author: str = "Mei", channel: str = "general") -> None:
        """Use a command in the platform's native form."""
        ...

    async def press(self, message_id: str, action: Action, *, author: str = "Mei") -> None:
        """Press a button under one of the bot's messages."""
        ...

    def seen(self, channel: str = "general", thread: str | None = None) -> list[Seen]:
        """What stands in a channel (or the direct channel named after a person), from the top."""
        ...

    async def until(self, condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
        """Wait until the condition holds, looking after each change on the server; fail after `seconds`."""
        ...

    async def disconnect(self, *, resumable: bool = True) -> None:
        """Cut the bot's event connection; what is said meanwhile waits or is lost as on the platform."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
