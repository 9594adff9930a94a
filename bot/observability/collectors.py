"""Metrics that are read from the running components when Prometheus asks."""

from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from bot import __version__
from bot.domain import EngineInfo, EngineLoad
from bot.observability.health import Components
from bot.observability.metrics import PREFIX, Metrics
from bot.util.clock import Clock

# Seconds between two measurements of the event loop's lateness.
_INTERVAL = 0.5


class ComponentsCollector:
    """Whether this bot serves, connection state of the platforms, and the engine's load."""

    def __init__(self, components: Components) -> None:
        self._components = components

    def collect(self) -> Iterator[Metric]:
        serving = _gauge("serving", "0 while other bots serve all platforms, and this one is ready to take over.")
        serving.add_metric((), self._components.is_serving)
        yield serving
        connected = _gauge("platform_connected", "1 while the platform is connected.", ("platform",))
        for name, adapter in self._components.adapters.items():
            connected.add_metric([name], adapter.is_connected)
        yield connected
        engine = self._components.engine
        if engine is not None:
            models = [
                (each.info, each.load)
                for each in self._components.models()
                if each.info and each.load and not each.base
            ]
            yield from _engine_metrics(models or [(engine.info, engine.load)])


def _engine_metrics(models: Sequence[tuple[EngineInfo, EngineLoad]]) -> Iterator[Metric]:
    """Describe each model, and add up their loads."""
    names = ("version", "model", "backend", "quantization", "dtype", "device")
    about = _gauge("engine_info", "Version and model, as labels; always 1.", names)
    for info, _ in models:
        about.add_metric([__version__, info.model, info.backend, info.quantization, info.dtype, info.device], 1)
    yield about
    loads = [load for _, load in models]
    for name, help, value in (
        ("requests_running", "Requests in the batch.", sum(load.running for load in loads)),
        ("requests_waiting", "Requests in the queue.", sum(load.waiting for load in loads)),
        ("slots", "Capacity of the cache in requests.", sum(load.slots for load in loads)),
        (
            "progress_age_seconds",
            "Seconds since the last step ended, while there is work.",
            max(load.since_progress for load in loads),
        ),
        (
            "device_memory_bytes",
            "Memory that torch holds on the devices; 0 on a CPU.",
            max(load.device_bytes for load in loads),  # each counts those of the process
        ),
    ):
        gauge = _gauge(name, help)
        gauge.add_metric((), value)
        yield gauge
    yield CounterMetricFamily(f"{PREFIX}_tokens", "Generated tokens.", sum(load.tokens for load in loads))
    yield CounterMetricFamily(
        f"{PREFIX}_steps",
        "Decoding steps; tokens per step is the batch size, or more with drafts.",
        sum(load.steps for load in loads),
    )
    yield SummaryMetricFamily(
        f"{PREFIX}_queue_wait_seconds",
        "From a request to its prefill.",
        sum(load.started for load in loads),
        sum(load.waited for load in loads),
    )


def _gauge(name: str, help: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", help, labels=labels)


async def measure_loop_lateness(metrics: Metrics, clock: Clock) -> None:
    """Observe how late the event loop wakes a sleeping task, until cancelled."""
    while True:
        due = clock.now() + _INTERVAL
        await clock.sleep(_INTERVAL)
        metrics.loop_lateness.observe(max(clock.now() - due, 0.0))
