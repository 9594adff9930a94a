"""An in-memory platform, as strict as the strictest real one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from bot.delivery.markdown.format import Format, MarkdownFormat, Rendered
from bot.domain import ChannelKey, Controls
from bot.errors import MessageGone, PlatformError, RateLimited
from bot.util.clock import Clock

Verb = Literal["send", "edit", "delete"]


@dataclass(frozen=True, slots=True)
class MessengerCall:
    """A call of the messenger; `error` is what it raised."""

    at: float
    verb: Verb
    channel: ChannelKey
    message_id: str | None
    text: str
    controls: Controls
    error: PlatformError | None = None


@dataclass(slots=True)
class ShownMessage:
    """A message in a channel."""

    channel: ChannelKey
    text: str
    controls: Controls
    reply_to: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of a call; with `happens` the work is done nevertheless."""

    error: BaseException
    happens: bool = False


# Gets the number of the call (0, 1, …) and its verb; None lets it through.
FailureScript = Callable[[int, Verb], Failure | None]


@dataclass
class FakeMessenger:
    """Records messages and calls.

    `violations` are calls that a caller must not make: a text over the limit or empty, a call
    before Retry-After is over, an edit that changes nothing.
    """

    clock: Clock
    format: Format = field(default_factory=lambda: MarkdownFormat(2000))
    interval: float = 1.0
    knows_nonces: bool = True
    script: FailureScript = lambda number, verb: None
    seconds_per_call: float = 0.0
    messages: dict[str, ShownMessage] = field(default_factory=dict)
    calls: list[MessengerCall] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids = count(1)
        self._nonces: dict[str, str] = {}
        self._not_before: dict[str, float] = {}

    def edit_interval(self, channel: ChannelKey) -> float:
        return self.interval

    def texts(self, channel: ChannelKey) -> list[str]:
        """Return the texts of a channel in order."""
        return [message.text for message in self.messages.values() if message.channel == channel]

    async def send(
        self,
        channel: ChannelKey,
        text: Rendered,
        *,
        reply_to: str | None,
        controls: Controls,
        nonce: str,
        may_exist: bool = False,
        continues: str | None = None,
    ) -> str:
        message_id = self._nonces.get(nonce) if self.knows_nonces or may_exist else None

        def do() -> None:
            nonlocal message_id
            if message_id is None:
                message_id = f"m{next(self._ids)}"
                self._nonces[nonce] = message_id
                self.messages[message_id] = ShownMessage(channel, text.text, controls, reply_to)

        await self._call("send", channel, message_id, text, controls, do)
        assert message_id is not None
        return message_id

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        def do() -> None:
            message = self._message(message_id)
            message.text, message.controls = text.text, controls

        await self._call("edit", channel, message_id, text, controls, do)

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        def do() -> None:
            self._message(message_id)
            del self.messages[message_id]

        await self._call("delete", channel, message_id, None, frozenset(), do)

    def _message(self, message_id: str) -> ShownMessage:
        if message_id not in self.messages:
            raise MessageGone(f"there is no message {message_id}")
        return self.messages[message_id]

    async def _call(
        self,
        verb: Verb,
        channel: ChannelKey,
        message_id: str | None,
        text: Rendered | None,
        controls: Controls,
        do: Callable[[], None],
    ) -> None:
        began = self.clock.now()
        number = len(self.calls)
        words = text.text if text is not None else ""
        self.calls.append(MessengerCall(began, verb, channel, message_id, words, controls))
        self._check(self.calls[number], text)
        await self.clock.sleep(self.seconds_per_call)
        failure = self.script(number, verb)
        error: BaseException | None = failure.error if failure else None
        if failure is None or failure.happens:
            try:
                do()
            except MessageGone as gone:
                error = gone
        if isinstance(error, RateLimited):
            self._not_before[channel.channel] = self.clock.now() + error.seconds
        if error is not None:
            if isinstance(error, PlatformError):
                self.calls[number] = MessengerCall(began, verb, channel, message_id, words, controls, error)
            raise error

    def _check(self, call: MessengerCall, text: Rendered | None) -> None:
        if call.at < self._not_before.get(call.channel.channel, call.at):
            self.violations.append(f"{call.verb} at {call.at:g}, before Retry-After")
        if text is None:
            return
        if self.format.measure(text) > self.format.limit:
            self.violations.append(f"{call.verb} of a text over the limit")
        if not call.text.strip():
            self.violations.append(f"{call.verb} of an empty text")
        shown = self.messages.get(call.message_id or "")
        if call.verb == "edit" and shown and (shown.text, shown.controls) == (call.text, call.controls):
            self.violations.append(f"edit of {call.message_id} that changes nothing")
