"""The servers of a remote engine: which one takes the next request, and which one rests."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bot.util.clock import Clock
from bot.util.recent import RecentDict
from bot.util.retry import Backoff

# Seconds that a server which failed gets no request: the first pause and the longest.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


@dataclass(eq=False, slots=True)
class Endpoint:
    """One server; `refused` has the optional parameters that it rejects."""

    url: str
    slots: int
    running: int = 0
    paused_until: float = 0.0
    failures: int = 0
    refused: set[str] = field(default_factory=set)
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_PAUSE, _LONGEST_PAUSE))

    @property
    def host(self) -> str:
        """Name and port of the server, without a password that its address may hold."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def free(self) -> int:
        """Slots for further requests; after a failure, one request at a time tries the server."""
        return max((1 if self.failures else self.slots) - self.running, 0)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Use one of its slots."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def fail(self, now: float, seconds: float = 0.0) -> None:
        """Pause it, at least for the `seconds` that it asked for."""
        self.failures += 1
        self.paused_until = now + max(self.backoff.after_failure(), seconds)

    def succeed(self) -> None:
        self.failures = 0
        self.backoff.succeeded()


class Endpoints:
    """All servers of an engine.

    A channel stays with its server while that one is well, because servers keep the
    prefix of a conversation in their caches; other requests go to the least loaded.
    """

    def __init__(self, urls: Sequence[str], slots: int, clock: Clock) -> None:
        self.all = tuple(Endpoint(url, slots) for url in urls)
        self._clock = clock
        self._of_channel: RecentDict[str, Endpoint] = RecentDict()

    @property
    def slots(self) -> int:
        """Requests that the servers which are well run at once; at least one."""
        return max(sum(each.slots for each in self.all if not each.failures), 1)

    def choose(self, channel: str) -> Endpoint | None:
        """Return the server for a request of this channel; None if each is paused or full."""
        now = self._clock.now()
        ready = [each for each in self.all if each.free and each.paused_until <= now]
        if not ready:
            return None
        last = self._of_channel.get(channel)
        chosen = last if last in ready else max(ready, key=lambda each: (not each.failures, each.free))
        self._of_channel[channel] = chosen
        return chosen

    def wait(self) -> float:
        """Return the seconds until a paused server is tried again; 0 if none is paused."""
        now = self._clock.now()
        return max(min((each.paused_until for each in self.all if each.free), default=now) - now, 0.0)
