"""The one place where the parts are put together: store, engine, then adapters."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType

import structlog

from bot.adapters import open_adapter
from bot.adapters.base import Adapter
from bot.chat.access import Access
from bot.chat.conversation import Conversations
from bot.chat.intake import Intake
from bot.config.reload import ConfigSource, ConfigWatcher
from bot.config.schema import Config
from bot.domain import SamplingParams
from bot.engine import Progress, open_engine, preflight
from bot.engine.base import Engine
from bot.engine.hot_swap import HotSwapEngine
from bot.errors import BotError, EngineUnavailable, StoreError, StoreInUse
from bot.observability.collectors import ComponentsCollector, measure_loop_lateness
from bot.observability.health import Components, Health
from bot.observability.http import create_app, serve_operations
from bot.observability.logging import set_levels
from bot.observability.metrics import Metrics
from bot.storage.instance_lock import InstanceLock
from bot.storage.retention import Retention
from bot.storage.sql import SqlStore
from bot.util.clock import Clock, MonotonicClock
from bot.util.shutdown import ShutdownDeadline

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between two looks at whether the database is still ours alone.
_CLAIM_LASTS = 15.0

# Seconds between two looks at whether the model still answers.
_ENGINE_LOOK = 1.0


async def run(config: Config, progress: Progress, source: ConfigSource | None = None) -> None:
    """Serve until every adapter has ended or the process is told to stop; follow `source` meanwhile.

    Raises:
        BotError: A part cannot start, or an adapter cannot go on, or there is no model any more that runs.
    """
    clock, parts, metrics = MonotonicClock(), Components(), Metrics()
    url = config.storage.url.get_secret_value()
    async with (
        _claimed(url) as claim,
        _operations(config, parts, metrics, clock),
        SqlStore(url, clock, metrics) as store,
    ):
        parts.store = store
        switch = HotSwapEngine(config.engine, open_engine, clock, check=preflight, progress=progress)
        async with switch as engine:
            parts.engine = engine
            conversations = Conversations(
                engine,
                store,
                config.conversation,
                _params(config),
                answer_seconds=config.limits.answer_seconds,
                clock=clock,
                metrics=metrics,
            )
            access = Access(config.access, config.limits, clock)
            live = None if source is None else ConfigWatcher(config, source, clock)
            intake = Intake(
                access, conversations, engine, store, config.conversation, clock=clock, live=live, metrics=metrics
            )
            adapters = {name: open_adapter(name, each, clock) for name, each in config.enabled_adapters.items()}
            parts.adapters = adapters
            log.info("ready", adapters=list(adapters), model=engine.info.model, device=engine.info.device)
            async with Retention(store, config.storage.retention_days, clock) as retention:

                def take(config: Config) -> None:
                    conversations.reconfigure(
                        config.conversation, _params(config), answer_seconds=config.limits.answer_seconds
                    )
                    intake.reconfigure(config.conversation)
                    access.reconfigure(config.access, config.limits)
                    retention.reconfigure(config.storage.retention_days)

                beside = [_keep(claim, clock), _end_without(engine, clock)]
                if live is not None:
                    beside.append(_followed(live, config, take, switch))
                await _run(adapters.values(), intake, parts, beside)


def _params(config: Config) -> SamplingParams:
    return SamplingParams(
        config.sampling.temperature,
        config.sampling.top_k,
        config.sampling.top_p,
        config.limits.max_answer_tokens or None,
    )


async def _followed(live: ConfigWatcher, config: Config, take: Callable[[Config], None], switch: HotSwapEngine) -> None:
    """Let what changes in the settings take effect, also when SIGHUP asks for it."""
    logs = config.logs

    def take_all(config: Config) -> None:
        nonlocal logs
        if config.logs != logs:
            set_levels(config.logs, logs)
            logs = config.logs
        take(config)

    with _on_hangup(config, live.reload_now):
        await live.watch(take_all, switch.change)


@contextmanager
def _on_hangup(config: Config, look: Callable[[], None]) -> Iterator[None]:
    """Let SIGHUP call `look`; where the bot talks on a terminal, that sends it when it is closed, and it ends the bot."""
    if "console" in config.enabled_adapters:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, look)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _run(
    adapters: Iterable[Adapter], intake: Intake, parts: Components, beside: Iterable[Coroutine[None, None, None]]
) -> None:
    """Serve all platforms until each has ended, or one cannot go on; what is `beside` runs as long."""
    try:
        async with asyncio.TaskGroup() as tasks:
            helping = [tasks.create_task(work) for work in beside]
            running = [tasks.create_task(adapter.run(intake)) for adapter in adapters]
            try:
                if running:
                    await asyncio.wait(running)
            finally:
                parts.is_stopping = True
                for task in helping:
                    task.cancel()
    except ExceptionGroup as failures:
        expected, unexpected = failures.split(BotError)
        if expected is None or unexpected is not None:
            raise
        # A wrong token, say: one sentence is enough, the others were cancelled for it.
        first: Exception = expected
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None


@asynccontextmanager
async def _claimed(url: str) -> AsyncIterator[InstanceLock]:
    """Be the only bot on this database; in threads, for it may take seconds."""
    claim = await asyncio.to_thread(InstanceLock, url)
    await asyncio.to_thread(claim.__enter__)
    try:
        yield claim
    finally:
        await asyncio.to_thread(claim.__exit__, None, None, None)


async def _keep(claim: InstanceLock, clock: Clock) -> None:
    """Look after the claim: a server that is started anew forgets it."""
    while True:
        await clock.sleep(_CLAIM_LASTS)
        try:
            await asyncio.to_thread(claim.renew)
        except StoreInUse:
            raise
        except StoreError as error:
            log.warning("nobody keeps other bots off the database just now", error=str(error))


async def _end_without(engine: Engine, clock: Clock) -> None:
    """End the program once the engine is down: what starts it again starts the engine with it.

    The engine alone is not started again: what its worker died of, a broken device or a fault of
    ours, would still be in the process.

    Raises:
        EngineUnavailable: It is.
    """
    while (load := engine.load).down is None or load.is_changing:
        await clock.sleep(_ENGINE_LOOK)
    raise EngineUnavailable(f"the model answers no more, and has to be started again: {load.down}")


@asynccontextmanager
async def _operations(config: Config, parts: Components, metrics: Metrics, clock: Clock) -> AsyncIterator[None]:
    """Tell who asks how the parts are, from before the first is opened until after the last is closed."""
    if not config.serves_operations:
        yield
        return
    metrics.registry.register(ComponentsCollector(parts))
    health = Health(parts, config.operations.stalled_seconds, clock)
    async with serve_operations(config.operations, create_app(health, metrics.registry)):
        watching = asyncio.create_task(measure_loop_lateness(metrics, clock))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def serve(
    config: Config, progress: Progress, deadline: ShutdownDeadline | None = None, source: ConfigSource | None = None
) -> None:
    """`run`, ended by SIGTERM or Ctrl-C as `deadline` has it: what is not answered by then stays owed."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    deadline = deadline or ShutdownDeadline()
    is_terminated = False

    # Not by way of the event loop: its time runs from the signal on, however busy the loop is.
    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal is_terminated
        is_terminated = True
        deadline.start()
        loop.call_soon_threadsafe(task.cancel)

    before = signal.signal(signal.SIGTERM, terminate)
    running = asyncio.create_task(run(config, progress, source))
    try:
        await asyncio.wait([running])
    except asyncio.CancelledError:
        if not is_terminated:
            deadline.start(128 + signal.SIGINT)
        log.info("stopping")
        running.cancel()
        await asyncio.wait([running])
        if not running.cancelled():
            running.result()
        if not is_terminated:  # Ctrl-C, which whoever runs the event loop hears of
            raise
        log.info("stopped")
        progress(1, 1)  # a bar that still stands has hidden the cursor of its terminal
        # All is closed.  Taking the interpreter down as well took 2.8 s on a busy machine.
        deadline.exit(0)
    else:
        signal.signal(signal.SIGTERM, before)
        running.result()
