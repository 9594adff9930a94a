"""The composition root: opens the store, the engine and the adapters, runs them, and closes them in reverse."""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

import structlog
from starlette.types import ASGIApp

from bot.adapters import SETTINGS, import_adapter, open_adapter
from bot.adapters.base import Adapter
from bot.adapters.supervisor import SupervisedAdapter, serve_platforms
from bot.adapters.web.adapter import WebAdapter
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.sign_in.opening import Entrance, sign_in_page
from bot.chat.access import Access
from bot.chat.intake import Intake
from bot.chat.settings import ChatSettings
from bot.chat.sign_in import SignIn
from bot.cluster import alone, follow_others, keep_lock, platform_turn
from bot.config.edit import ConfigEditor
from bot.config.reload import ConfigSource, ConfigWatcher
from bot.config.schema import Config, EngineSection
from bot.domain import ModelStatus
from bot.engine import Progress, open_engine, preflight
from bot.engine.base import Engine
from bot.engine.embeddings import open_embedder
from bot.engine.embeddings import preflight as check_embeddings
from bot.engine.router import ModelRouter
from bot.errors import BotError, EngineUnavailable, StoreDamaged, StoreLost
from bot.observability.collectors import ComponentsCollector, measure_loop_lateness
from bot.observability.health import Components, Health
from bot.observability.http import create_app, serve_operations
from bot.observability.logging import set_levels
from bot.observability.metrics import Metrics
from bot.server.app import own_limits, serve_apis
from bot.server.generation import Backend
from bot.storage.backup_folder import BackupFolder
from bot.storage.bots import SharedBots
from bot.storage.connections import locate
from bot.storage.master_key import MasterKeys
from bot.storage.retention import Retention
from bot.storage.sql import SqlStore
from bot.storage.usage_export import report_usage
from bot.util.clock import Clock, MonotonicClock
from bot.util.garbage import collect_when_idle, freeze_survivors
from bot.util.http_server import check_address
from bot.util.shutdown import ShutdownDeadline
from bot.util.terminal import reads_terminal

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between two looks at the files of the database.
_FILES_INTERVAL = 2.0

# Seconds between two checks that the engine still runs.
_ENGINE_INTERVAL = 1.0


async def run(config: Config, progress: Progress, source: ConfigSource | None = None) -> None:
    """Serve until every adapter has ended or the process is told to stop; reload `source` when it changes.

    Raises:
        BotError: A component cannot start, an adapter cannot go on, or the engine is down for good.
    """
    clock, components, metrics = MonotonicClock(), Components(), Metrics()
    operations = config.operations
    health = Health(
        components, operations.stalled_seconds, clock, requires_all_platforms=operations.require_all_platforms
    )
    url = config.storage.url.get_secret_value()
    wants_reload = asyncio.Event()
    async with (
        _on_sighup(config, source, wants_reload),
        alone(config, components, clock, _operations(config, components, health, metrics, clock)) as lock,
        SqlStore(url, clock, metrics, master=MasterKeys.of(config.storage)) as store,
    ):
        components.store = store
        if config.server.enabled:
            # Before the chat model, whose loading may take minutes.
            check_address("server", config.server.host, config.server.port)
            await asyncio.to_thread(check_embeddings, config.embeddings)
        opener = partial(_open_engine, adapters=list(config.enabled_adapters))
        async with ModelRouter(config.sections, opener, clock, check=preflight, progress=progress) as engine:
            components.engine, components.models = engine, engine.statuses
            settings = ChatSettings.of(config)
            access = Access(config.access, config.limits, clock, own_limits(config.server), settings.rules)
            failures = {status.name: status.fault for status in engine.statuses() if status.fault is not None}
            watcher = None
            if source is not None:
                watcher = ConfigWatcher(config, source, clock, failures=failures, requested=wants_reload)
            links = SignIn(clock, sign_in_page(config.server))
            intake = Intake(
                access,
                engine,
                store,
                settings,
                clock=clock,
                metrics=metrics,
                watcher=watcher,
                components=components,
                model=engine.serving,
                sign_in=links,
            )

            def turn_of(platform: str) -> AbstractAsyncContextManager[None] | None:
                return platform_turn(platform, url, clock, intake) if config.cluster.is_shared else None

            platforms = [
                SupervisedAdapter(
                    name,
                    partial(open_adapter, name, each, clock),
                    clock,
                    is_final=not each.tokens,
                    ends_all=not each.tokens and reads_terminal(),  # the end of a pipe leaves the page alone
                    turn=turn_of(name) if each.tokens else None,
                )
                for name, each in config.enabled_adapters.items()
            ]
            sources = PanelSources(
                components,
                health,
                clock,
                partial(report_usage, url),
                lambda: None if watcher is None else watcher.last_result,
                _editor(watcher, engine),
                BackupFolder(url),
                config.server.show_texts,
            )
            entrance = Entrance(config.server, config.oidc, access, links, clock)
            web = _open_web(config, clock, sources, entrance)
            if web is not None:
                open_web = partial(_itself, web)
                platforms.append(SupervisedAdapter("web", open_web, clock, is_final=False, turn=turn_of("web")))
            components.adapters = {each.name: each for each in platforms}
            backend = Backend(
                engine,
                settings,
                access,
                config.engine.max_waiting,
                metrics,
                models=engine.statuses,
                aliases=config.server.aliases,
            )
            await intake.choices.load()  # /pause holds for the HTTP APIs too
            progress(1, 1)  # a bar that is still shown makes room for the platforms
            async with (
                Retention(store, config.storage.retention_days, clock) as retention,
                _apis(config, backend, clock, None if web is None else web.pages),
            ):
                log.info(
                    "ready", adapters=list(components.adapters), model=engine.info.model, device=engine.info.device
                )
                if list(config.enabled_adapters) == ["console"]:
                    log.info(
                        "no platform has a token: answering on standard input",
                        next="BOT_DISCORD__TOKEN=… bot check --online",
                    )

                def reconfigure(config: Config) -> None:
                    settings.reconfigure(config)
                    access.reconfigure(config.access, config.limits)
                    retention.reconfigure(config.storage.retention_days)

                background = [
                    _watch_files(store, clock),
                    _check_models(engine.statuses, clock),
                    collect_when_idle(lambda: intake.exchanges.is_idle, clock),
                    freeze_survivors(clock),
                ]
                if not config.cluster.enabled:  # else HolderWatch checks the lock
                    background.append(keep_lock(lock, clock))
                if config.cluster.is_shared:
                    bots = SharedBots(url, components.adapters)
                    background.append(follow_others(bots, intake.choices, components, clock))
                if watcher is not None:
                    background.append(_reload_config(watcher, config, reconfigure, engine))
                requires_all = operations.require_all_platforms
                serving = serve_platforms(platforms, intake, requires_all=requires_all) if platforms else _forever()
                await _run_platforms(serving, components, background)


async def serve(
    config: Config, progress: Progress, deadline: ShutdownDeadline | None = None, source: ConfigSource | None = None
) -> None:
    """Run until SIGTERM or Ctrl-C, then stop within `deadline`; unanswered questions stay owed."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    deadline = deadline or ShutdownDeadline()
    is_terminated = False

    # A handler of the event loop would not run before a busy loop gets to it; the deadline starts at the signal.
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
        if not is_terminated:  # Ctrl-C, which the caller handles
            raise
        log.info("stopped")
        progress(1, 1)  # a progress bar that is still shown has hidden the terminal's cursor
        # Everything is closed; finalising the interpreter took 2.8 s more on a busy machine.
        deadline.exit(0)
    else:
        signal.signal(signal.SIGTERM, before)
        running.result()


def _open_engine(section: EngineSection, progress: Progress, *, adapters: Iterable[str]) -> Engine:
    engine = open_engine(section, progress)
    if gc.get_freeze_count() == 0:
        # Half a million objects of imported libraries, which a collection would visit for 0.3 s while all else waits.
        for name in adapters:
            import_adapter(name)
        gc.freeze()
    return engine


async def _run_platforms(
    serving: Coroutine[None, None, None], components: Components, background: Iterable[Coroutine[None, None, None]]
) -> None:
    """Serve until all platforms have ended or none can go on; `background` runs meanwhile."""
    try:
        async with asyncio.TaskGroup() as tasks:
            helpers = [tasks.create_task(work) for work in background]
            try:
                await asyncio.wait([tasks.create_task(serving)])
            finally:
                components.is_stopping = True
                for task in helpers:
                    task.cancel()
    except ExceptionGroup as failures:
        expected, unexpected = failures.split(BotError)
        if expected is None or unexpected is not None:
            raise
        # The last token refused, say: one sentence is enough, the others were cancelled because of it.
        first: Exception = expected
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None


async def _reload_config(
    watcher: ConfigWatcher, config: Config, reconfigure: Callable[[Config], None], engine: ModelRouter
) -> None:
    logs = config.logs

    def apply(config: Config) -> None:
        nonlocal logs
        if config.logs != logs:
            set_levels(config.logs, logs)
            logs = config.logs
        reconfigure(config)

    await watcher.watch(apply, engine.change)


@asynccontextmanager
async def _on_sighup(config: Config, source: ConfigSource | None, wants_reload: asyncio.Event) -> AsyncIterator[None]:
    """Let SIGHUP ask for a reload, also one that comes before the watch begins.

    But a terminal that is closed sends it too, and then it ends the console.
    """
    if source is None or "console" in config.enabled_adapters:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, wants_reload.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _watch_files(store: SqlStore, clock: Clock) -> None:
    """End the program once the database's files are gone or damaged: SQLite would go on with deleted files.

    Raises:
        StoreLost: They were deleted or replaced.
        StoreDamaged: No message can be stored.
    """
    while True:
        await clock.sleep(_FILES_INTERVAL)
        try:
            await asyncio.to_thread(store.check_files)
        except (StoreLost, StoreDamaged) as error:
            log.error("the database is lost", error=str(error))
            raise


async def _check_models(statuses: Callable[[], Sequence[ModelStatus]], clock: Clock) -> None:
    """End the program once a model is down: its supervisor starts both again.

    The engine is not restarted by itself: the cause, a broken device or a bug, would still be in the process.

    Raises:
        EngineUnavailable: A model is down.
    """
    while True:
        for status in statuses():
            load = status.load
            if load is not None and load.down is not None and not load.is_changing:
                raise EngineUnavailable(f"the model has stopped responding; the bot must be restarted: {load.down}")
        await clock.sleep(_ENGINE_INTERVAL)


def _open_web(config: Config, clock: Clock, sources: PanelSources, entrance: Entrance) -> WebAdapter | None:
    """Open the chat page and the operator's panel, if they are served; the secret of its sessions is beside the database."""
    if not (config.server.enabled and config.server.serves_web):
        return None
    database = locate(config.storage.url.get_secret_value()).path
    folder = Path("data") if database is None else database.parent
    return WebAdapter(folder, clock, sources if config.server.panel else None, entrance)


def _editor(watcher: ConfigWatcher | None, engine: ModelRouter) -> ConfigEditor | None:
    if watcher is None or watcher.source.load_text is None:
        return None
    return ConfigEditor(watcher, SETTINGS, engine.check)


def _itself(adapter: WebAdapter) -> Adapter:
    """Return the adapter: its pages are routes of the HTTP server already, so it is not opened again."""
    return adapter


async def _forever() -> None:
    """Wait until cancelled: without a platform, only the HTTP APIs serve."""
    await asyncio.Event().wait()


@asynccontextmanager
async def _apis(config: Config, backend: Backend, clock: Clock, pages: ASGIApp | None) -> AsyncIterator[None]:
    """Serve the HTTP APIs, and the pages of the web chat beside them, if they are enabled."""
    if not config.server.enabled:
        yield
        return
    async with (
        open_embedder(config.embeddings) as embedder,
        serve_apis(config.server, replace(backend, embedder=embedder), clock, pages),
    ):
        yield


@asynccontextmanager
async def _operations(
    config: Config, components: Components, health: Health, metrics: Metrics, clock: Clock
) -> AsyncIterator[None]:
    """Serve health checks and metrics, from before the first component opens until the last has closed."""
    if not config.serves_operations:
        yield
        return
    metrics.registry.register(ComponentsCollector(components))
    async with serve_operations(config.operations, create_app(health, metrics.registry)):
        measuring = asyncio.create_task(measure_loop_lateness(metrics, clock))
        try:
            yield
        finally:
            measuring.cancel()
            await asyncio.gather(measuring, return_exceptions=True)
