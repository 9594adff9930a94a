"""Counters and histograms for Prometheus.

Labels have few values, all known in advance: never a text, a channel or a person.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from bot.errors import (
    ChannelGone,
    EngineBusy,
    EngineError,
    MarkupRefused,
    MessageGone,
    PicturesRefused,
    PlatformError,
    PromptTooLong,
    RateLimited,
    StoreError,
)
from bot.util.clock import Clock

PREFIX = "chatglm_bot"

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """All counters and histograms, on their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.first_token = self._histogram(
            "first_token_seconds",
            "Time to first token: from a request to the first text of its answer, queueing included.",
            (),
            _LONG,
        )
        self.requests = self._counter(
            "requests",
            "Model requests by outcome: stop, length, closed, busy, too_long, pictures, failed.",
            ("outcome",),
        )
        self.exchanges = self._counter(
            "exchanges",
            "Messages to the bot by outcome: stop, length, cancelled, error, refused (by a limit), broken_off.",
            ("platform", "kind", "outcome"),
        )
        self.votes = self._counter(
            "votes",
            "Votes on answers by what was pressed: up, down, taken_back; persona - is none, * one that was written in the "
            "chat.",
            ("model", "persona", "vote"),
        )
        self.refusals = self._counter("refusals", "Messages refused by a limit.", ("kind",))
        self.reply_changes = self._counter(
            "reply_changes", "Updates of streaming replies; several are merged into one edit.", ("platform",)
        )
        self.calls = self._counter(
            "platform_calls",
            "Calls to a platform: ok, wait (it asked to), markup, gone, unavailable.",
            ("platform", "verb", "outcome"),
        )
        self.call_seconds = self._histogram(
            "platform_call_seconds", "Duration of platform calls.", ("platform", "verb"), _SHORT
        )
        self.store_seconds = self._histogram(
            "store_seconds", "Duration of store calls, queueing included.", ("method",), _SHORT
        )
        self.store_errors = self._counter("store_errors", "Failed store calls.", ("method",))
        self.api_requests = self._counter(
            "api_requests",
            "Requests of the HTTP APIs by path and status; 499: the client has gone.",
            ("path", "status"),
        )
        self.api_seconds = self._histogram(
            "api_request_seconds", "Duration of API requests, streams to their end.", ("path",), _LONG
        )
        self.embedded_texts = self._counter("embedded_texts", "Texts that became vectors.", ())
        self.embedded_tokens = self._counter("embedded_tokens", "Tokens of these texts.", ())
        self.loop_lateness = self._histogram(
            "loop_lateness_seconds", "How much later than due the event loop wakes a sleep.", (), _SHORT
        )

    @contextmanager
    def store_call(self, method: str, clock: Clock) -> Iterator[None]:
        """Measure one call of the store, the wait for its turn included."""
        began = clock.now()
        try:
            yield
        except StoreError:
            self.store_errors.labels(method).inc()
            raise
        finally:
            self.store_seconds.labels(method).observe(clock.now() - began)

    @contextmanager
    def platform_call(self, platform: str, verb: str, clock: Clock) -> Iterator[None]:
        """Measure one call to a platform and count it by its outcome; cut_off means cancelled."""
        began, outcome = clock.now(), "cut_off"
        try:
            yield
            outcome = "ok"
        except PlatformError as error:
            outcome = _platform_outcome(error)
            raise
        finally:
            self.calls.labels(platform, verb, outcome).inc()
            self.call_seconds.labels(platform, verb).observe(clock.now() - began)

    def _counter(self, name: str, help: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, help, labels, namespace=PREFIX, registry=self.registry)

    def _histogram(self, name: str, help: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help, labels, namespace=PREFIX, registry=self.registry, buckets=buckets)


def engine_outcome(error: EngineError) -> str:
    """Return the `outcome` label of a request that ended with `error`."""
    match error:
        case EngineBusy():
            return "busy"
        case PromptTooLong():
            return "too_long"
        case PicturesRefused():
            return "pictures"
        case _:
            return "failed"


def _platform_outcome(error: PlatformError) -> str:
    match error:
        case RateLimited():
            return "wait"
        case MarkupRefused():
            return "markup"
        case MessageGone() | ChannelGone():
            return "gone"
        case _:
            return "unavailable"
