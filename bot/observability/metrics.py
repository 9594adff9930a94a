"""What Prometheus reads of this program: the figures' names, and what each counts.

A label has few values, all known beforehand: no text, no channel and no person is one.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

PREFIX = "chatglm_bot"

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """All counters and histograms, on a registry of their own; whoever measures is given them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.first_token = self._histogram(
            "first_token_seconds", "From a request to the first text of its answer, waiting included.", (), _LONG
        )
        self.requests = self._counter(
            "requests",
            "Calls of the model by how they ended: stop, length, closed, busy, too_long, failed.",
            ("outcome",),
        )
        self.exchanges = self._counter(
            "exchanges",
            "Messages to the bot by how their reply ended: stop, length, cancelled, error (refused ones too), broken_off.",
            ("platform", "kind", "outcome"),
        )
        self.refusals = self._counter("refusals", "Messages that a limit turned away with a sentence.", ("kind",))
        self.reply_changes = self._counter(
            "reply_changes", "Changes of replies that grow; those beyond the edits were merged.", ("platform",)
        )
        self.calls = self._counter(
            "platform_calls",
            "Calls to a platform: ok, wait (it asked to), markup, gone, unavailable.",
            ("platform", "verb", "outcome"),
        )
        self.call_seconds = self._histogram(
            "platform_call_seconds", "How long calls to a platform take.", ("platform", "verb"), _SHORT
        )
        self.store_seconds = self._histogram(
            "store_seconds", "How long the database takes, its queue included.", ("method",), _SHORT
        )
        self.store_errors = self._counter("store_errors", "Calls of the database that failed.", ("method",))
        self.loop_lateness = self._histogram(
            "loop_lateness_seconds", "How late the event loop wakes who sleeps.", (), _SHORT
        )

    def _counter(self, name: str, help: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, help, labels, namespace=PREFIX, registry=self.registry)

    def _histogram(self, name: str, help: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, help, labels, namespace=PREFIX, registry=self.registry, buckets=buckets)
