"""The parts with a meter around them: each keeps its seam's contract, and counts what passes."""

from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from bot import __version__
from bot.chat.access import Access
from bot.chat.conversation import Conversations
from bot.chat.i18n import Translate
from bot.chat.intake import Intake
from bot.config.reload import ConfigWatcher
from bot.config.schema import AccessSection, ConversationSection, LimitsSection
from bot.delivery.markdown.format import Format, Rendered
from bot.delivery.messenger import Messenger
from bot.domain import (
    Answer,
    Author,
    ChannelKey,
    ChatMessage,
    ChatRequest,
    Controls,
    Delta,
    EngineEvent,
    Exchange,
    Finished,
    IncomingMessage,
    Kind,
    QueueDepth,
    ReplyEvent,
)
from bot.engine.base import Engine, EngineInfo, EngineLoad
from bot.errors import (
    ChannelGone,
    EngineBusy,
    EngineError,
    MarkupRefused,
    MessageGone,
    PlatformError,
    PromptTooLong,
    RateLimited,
    StoreError,
)
from bot.observability.health import Components
from bot.observability.metrics import PREFIX, Metrics
from bot.storage.base import History, Store
from bot.util.clock import Clock

T = TypeVar("T")

_FIRST = QueueDepth()
# Seconds between two looks at how late the event loop is.
_LOOK_SECONDS = 0.5


class MeteredEngine:
    """An Engine; counts requests by their end, and the wait for their first text."""

    def __init__(self, engine: Engine, metrics: Metrics, clock: Clock) -> None:
        self._engine = engine
        self._metrics = metrics
        self._clock = clock

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def load(self) -> EngineLoad:
        return self._engine.load

    def count_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return self._engine.count_tokens(messages)

    async def generate(self, request: ChatRequest) -> AsyncGenerator[EngineEvent, None]:
        began, has_text, outcome = self._clock.now(), False, "closed"
        try:
            async with aclosing(self._engine.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Delta) and not has_text:
                        has_text = True
                        self._metrics.first_token.observe(self._clock.now() - began)
                    if isinstance(event, Finished):
                        outcome = event.reason.value
                    yield event
        except EngineError as error:
            outcome = _kind_of(error)
            raise
        finally:
            self._metrics.requests.labels(outcome).inc()

    async def __aenter__(self) -> Self:
        await self._engine.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.__aexit__(kind, error, trace)


def _kind_of(error: EngineError) -> str:
    match error:
        case EngineBusy():
            return "busy"
        case PromptTooLong():
            return "too_long"
        case _:
            return "failed"


class MeteredStore:
    """A Store; measures each call."""

    def __init__(self, store: Store, metrics: Metrics, clock: Clock) -> None:
        self._store = store
        self._metrics = metrics
        self._clock = clock

    async def enqueue(self, message: IncomingMessage, kind: Kind) -> Exchange | None:
        return await self._timed("enqueue", self._store.enqueue(message, kind))

    async def record_part(self, exchange: int, part: int, message_id: str) -> None:
        await self._timed("record_part", self._store.record_part(exchange, part, message_id))

    async def record_answer(self, exchange: int, answer: Answer) -> bool:
        return await self._timed("record_answer", self._store.record_answer(exchange, answer))

    async def complete(self, exchange: int) -> None:
        await self._timed("complete", self._store.complete(exchange))

    async def fail(self, exchange: int, why: str) -> None:
        await self._timed("fail", self._store.fail(exchange, why))

    async def requeue(self, exchange: int, text: str | None = None) -> Exchange | None:
        return await self._timed("requeue", self._store.requeue(exchange, text))

    async def history(self, before: Exchange, limit: int) -> History:
        return await self._timed("history", self._store.history(before, limit))

    async def find(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        return await self._timed("find", self._store.find(channel, message_id))

    async def find_by_reply(self, channel: ChannelKey, message_id: str) -> Exchange | None:
        return await self._timed("find_by_reply", self._store.find_by_reply(channel, message_id))

    async def has_history(self, channel: ChannelKey) -> bool:
        return await self._timed("has_history", self._store.has_history(channel))

    async def latest(self, channel: ChannelKey, author: Author | None = None) -> Exchange | None:
        return await self._timed("latest", self._store.latest(channel, author))

    async def clear(self, channel: ChannelKey, before: Exchange | None = None) -> int:
        return await self._timed("clear", self._store.clear(channel, before))

    async def forget(self, author: Author, before: Exchange | None = None) -> int:
        return await self._timed("forget", self._store.forget(author, before))

    async def erase(self, exchange: int) -> None:
        await self._timed("erase", self._store.erase(exchange))

    async def expire(self, before: datetime) -> int:
        return await self._timed("expire", self._store.expire(before))

    async def rename_channel(self, channel: ChannelKey, to: str) -> int:
        return await self._timed("rename_channel", self._store.rename_channel(channel, to))

    async def owed(self, platform: str) -> list[Exchange]:
        return await self._timed("owed", self._store.owed(platform))

    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        return await self._timed("last_message_ids", self._store.last_message_ids(platform))

    async def check(self) -> None:
        await self._timed("check", self._store.check())

    async def __aenter__(self) -> Self:
        await self._store.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._store.__aexit__(kind, error, trace)

    async def _timed(self, method: str, call: Awaitable[T]) -> T:
        began = self._clock.now()
        try:
            return await call
        except StoreError:
            self._metrics.store_errors.labels(method).inc()
            raise
        finally:
            self._metrics.store_seconds.labels(method).observe(self._clock.now() - began)


class MeteredMessenger:
    """A Messenger; counts calls by what the platform answered."""

    def __init__(self, messenger: Messenger, metrics: Metrics, clock: Clock) -> None:
        self._messenger = messenger
        self._metrics = metrics
        self._clock = clock

    @property
    def format(self) -> Format:
        return self._messenger.format

    def edit_interval(self, channel: ChannelKey) -> float:
        return self._messenger.edit_interval(channel)

    async def send(
        self, channel: ChannelKey, text: Rendered, *, reply_to: str | None, controls: Controls, nonce: str
    ) -> str:
        call = self._messenger.send(channel, text, reply_to=reply_to, controls=controls, nonce=nonce)
        return await self._counted(channel.platform, "send", call)

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        call = self._messenger.edit(channel, message_id, text, controls=controls)
        await self._counted(channel.platform, "edit", call)

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        await self._counted(channel.platform, "delete", self._messenger.delete(channel, message_id))

    async def _counted(self, platform: str, verb: str, call: Awaitable[T]) -> T:
        began, outcome = self._clock.now(), "cut_off"
        try:
            done = await call
            outcome = "ok"
            return done
        except PlatformError as error:
            outcome = _answer_of(error)
            raise
        finally:
            self._metrics.calls.labels(platform, verb, outcome).inc()
            self._metrics.call_seconds.labels(platform, verb).observe(self._clock.now() - began)


def _answer_of(error: PlatformError) -> str:
    match error:
        case RateLimited():
            return "wait"
        case MarkupRefused():
            return "markup"
        case MessageGone() | ChannelGone():
            return "gone"
        case _:
            return "unavailable"


class MeteredAccess(Access):
    """The same rules; counts whom they turn away."""

    def __init__(self, access: AccessSection, limits: LimitsSection, clock: Clock, metrics: Metrics) -> None:
        super().__init__(access, limits, clock)
        self._refusals = metrics.refusals

    def refusal(self, message: IncomingMessage, translate: Translate, standing: QueueDepth = _FIRST) -> str | None:
        why = super().refusal(message, translate, standing)
        if why is not None:
            self._refusals.labels("question").inc()
        return why

    def command_refusal(self, message: IncomingMessage, translate: Translate) -> str | None:
        why = super().command_refusal(message, translate)
        if why is not None:
            self._refusals.labels("command").inc()
        return why


class MeteredIntake(Intake):
    """The same front door; counts the replies that leave by it."""

    def __init__(
        self,
        access: Access,
        conversations: Conversations,
        engine: Engine,
        store: Store,
        settings: ConversationSection,
        metrics: Metrics,
        clock: Clock,
        live: ConfigWatcher | None = None,
    ) -> None:
        super().__init__(access, conversations, engine, store, settings, clock=clock, live=live)
        self._metrics = metrics

    async def handle(self, exchange: Exchange) -> AsyncGenerator[ReplyEvent, None]:
        platform, outcome = exchange.message.channel.platform, "broken_off"
        changes = self._metrics.reply_changes.labels(platform)
        try:
            async with aclosing(super().handle(exchange)) as events:
                async for event in events:
                    changes.inc()
                    if isinstance(event, Finished):
                        outcome = event.reason.value
                    yield event
        finally:
            self._metrics.exchanges.labels(platform, exchange.kind.value, outcome).inc()


class PartsCollector:
    """What the parts themselves know, read when Prometheus asks."""

    def __init__(self, parts: Components) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        connected = _gauge("platform_connected", "1 where what is said on a platform reaches the bot.", ("platform",))
        for name, adapter in self._parts.adapters.items():
            connected.add_metric([name], adapter.is_connected)
        yield connected
        if self._parts.engine is not None:
            yield from _engine_figures(self._parts.engine.info, self._parts.engine.load)


def _engine_figures(info: EngineInfo, load: EngineLoad) -> Iterator[Metric]:
    names = ("version", "model", "backend", "quantization", "dtype", "device")
    about = _gauge("engine_info", "What runs; always 1.", names)
    about.add_metric([__version__, info.model, info.backend, info.quantization, info.dtype, info.device], 1)
    yield about
    for name, help, value in (
        ("requests_running", "Requests in the batch.", load.running),
        ("requests_waiting", "Requests in the queue.", load.waiting),
        ("slots", "Requests that fit the cache at once.", load.slots),
        ("progress_age_seconds", "Since the last step ended, while there is work.", load.since_progress),
        ("device_memory_bytes", "Memory that torch holds on the devices; 0 on a CPU.", load.device_bytes),
    ):
        gauge = _gauge(name, help)
        gauge.add_metric((), value)
        yield gauge
    yield CounterMetricFamily(f"{PREFIX}_tokens", "Tokens that the model made.", load.tokens)
    yield CounterMetricFamily(f"{PREFIX}_steps", "Steps; tokens by steps are the rows of a batch.", load.steps)
    yield SummaryMetricFamily(
        f"{PREFIX}_queue_wait_seconds", "From a request to its prefill.", load.started, load.waited
    )


def _gauge(name: str, help: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", help, labels=labels)


async def watch_the_loop(metrics: Metrics, clock: Clock) -> None:
    """Measure, until cancelled, how late the event loop wakes who sleeps."""
    while True:
        due = clock.now() + _LOOK_SECONDS
        await clock.sleep(_LOOK_SECONDS)
        metrics.loop_lateness.observe(max(clock.now() - due, 0.0))
