"""The servers of a remote engine: which one takes the next request, and which one rests."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import httpx

from bot.config.schema import EngineSection
from bot.errors import EngineMisconfigured
from bot.util.clock import Clock
from bot.util.recent import RecentDict
from bot.util.retry import Backoff

Server = Literal["vllm", "sglang", "llama-server", "other"]

# Seconds that a server which failed gets no request: the first pause and the longest.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


@dataclass(eq=False, slots=True)
class Endpoint:
    """One server; `refused` has the optional parameters that it rejects.

    After a failure it rests.  One that cannot be connected to, or does not answer in time, rests until
    its list of models can be read again; then, as after any pause, one request at a time tries it.
    """

    url: str
    slots: int
    server: Server = "other"
    running: int = 0
    paused_until: float = 0.0
    failures: int = 0
    why: str = ""  # of the last failure
    is_listed: bool = False  # its list of models was read
    accepts_key: bool = False  # as a list or an answer has shown
    is_unreachable: bool = False
    is_silent: bool = False  # its last failure was a time limit
    is_loading: bool = False
    is_misconfigured: bool = False  # its operator has to change something
    counts_from: float = -math.inf  # when it may be asked to count tokens
    begins_thinking: bool = False  # its model's template has the opening tag
    context_length: int | None = None
    most_pictures: int = 0  # that it takes with a prompt
    models: tuple[str, ...] = ()  # of its list
    refused: set[str] = field(default_factory=set)
    backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_PAUSE, _LONGEST_PAUSE))

    @property
    def host(self) -> str:
        """Name and port of the server, without a password that its address may hold."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    def has(self, model: str) -> bool:
        """Return whether its list has the model; Ollama's names end in a tag, which may be left out."""
        return model in self.models or f"{model}:latest" in self.models

    @property
    def has_version(self) -> bool:
        """Whether the address ends in /v1, say."""
        return re.search(r"/v\d\w*/?$", self.url) is not None

    @property
    def base(self) -> str:
        """The address without its /v1, where servers have their own calls."""
        return self.url.rstrip("/").removesuffix("/v1")

    @contextmanager
    def request(self) -> Iterator[None]:
        """Use one of its slots."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def fail(
        self,
        now: float,
        why: str,
        seconds: float = 0.0,
        *,
        is_unreachable: bool = False,
        is_silent: bool = False,
        is_loading: bool = False,
        is_misconfigured: bool = False,
    ) -> None:
        """Pause it, at least for the `seconds` that it asked for."""
        self.failures += 1
        self.why, self.is_silent = why, is_silent
        self.is_unreachable, self.is_loading, self.is_misconfigured = is_unreachable, is_loading, is_misconfigured
        if is_loading:
            self.backoff.succeeded()  # it is asked once a second
        # Many answers that break together are one failure.
        pause = self.paused_until - now if self.paused_until > now else self.backoff.after_failure()
        self.paused_until = now + max(pause, seconds)

    def succeed(self) -> None:
        self.failures = 0
        self.is_unreachable = self.is_loading = self.is_misconfigured = False
        self.backoff.succeeded()

    def capacity(self, now: float) -> int:
        """Return how many requests it may run at once."""
        if not self.is_listed or self.is_unreachable or self.paused_until > now:
            return 0
        return 1 if self.failures else self.slots


class Endpoints:
    """All servers of an engine.

    A channel stays with its server while that one is well, because servers keep the
    prefix of a conversation in their caches; other requests go to the least loaded.
    """

    def __init__(self, urls: Sequence[str], slots: int, clock: Clock, most_pictures: int = 0) -> None:
        self.all = tuple(Endpoint(url, slots, most_pictures=most_pictures) for url in urls)
        self._clock = clock
        self._of_channel: RecentDict[str, Endpoint] = RecentDict()

    @property
    def slots(self) -> int:
        """Requests that the servers run at once now; 0 while each of them rests."""
        now = self._clock.now()
        return sum(each.capacity(now) for each in self.all)

    @property
    def fault(self) -> str | None:
        """Return the reason while no server is known to answer."""
        now = self._clock.now()
        if any(each.capacity(now) for each in self.all):
            return None
        return reasons(self.all)

    @property
    def context_length(self) -> int | None:
        """Tokens of the smallest context of those that are known."""
        return min((each.context_length for each in self.all if each.context_length), default=None)

    @property
    def most_pictures(self) -> int:
        """Return how many pictures a prompt may have on one of them."""
        return max((each.most_pictures for each in self.all), default=0)

    def has_free(self, among: Sequence[Endpoint]) -> bool:
        """Return whether one of these takes another request now."""
        now = self._clock.now()
        return any(each.capacity(now) > each.running for each in among)

    def choose(self, channel: str, among: Sequence[Endpoint] | None = None) -> Endpoint | None:
        """Return the server for a request of this channel; None if each rests or is full."""
        now = self._clock.now()
        free = {each: each.capacity(now) - each.running for each in (self.all if among is None else among)}
        ready = [each for each in free if free[each] > 0]
        if not ready:
            return None
        last = self._of_channel.get(channel)
        # One that has rested gets the next request, whatever its channel: else it would never be tried.
        rested = next((each for each in ready if each.failures), None)
        chosen = rested or (last if last in ready else max(ready, key=lambda each: free[each]))
        self._of_channel[channel] = chosen
        return chosen

    def next_end(self) -> float:
        """Return the time at which the next pause ends, a long time from now if none does."""
        now = self._clock.now()
        return min((each.paused_until for each in self.all if each.paused_until > now), default=now + _LONGEST_PAUSE)


def has_well(among: Iterable[Endpoint]) -> bool:
    return any(each.is_listed and not each.failures for each in among)


def is_loading(among: Collection[Endpoint]) -> bool:
    return not has_well(among) and any(each.is_loading for each in among)


def mistake(among: Collection[Endpoint]) -> str | None:
    """Return what the operator has to change, if none of these servers can be used before that."""
    return reasons(among) if all(each.is_misconfigured for each in among) else None


def reasons(among: Iterable[Endpoint]) -> str:
    """Return the last failure of each server."""
    return "; ".join(f"{each.host}: {each.why}" for each in among)


def require_urls(options: EngineSection) -> None:
    """Check the addresses of the servers.

    Raises:
        EngineMisconfigured: There is none, or one is no address of a server.
    """
    if not options.urls:
        raise EngineMisconfigured(
            'engine.backend = "remote" needs the address of a server: set engine.urls, '
            'as in urls = ["http://localhost:11434/v1"]'
        )
    for url in options.urls:
        try:
            is_known = httpx.URL(url).scheme in {"http", "https"}
        except httpx.InvalidURL:
            is_known = False
        if not is_known:
            raise EngineMisconfigured(
                f"engine.urls: {Endpoint(url, 1).host or url!r} is no http:// or https:// address"
            )
