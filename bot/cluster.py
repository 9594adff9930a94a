"""Several bots on one database: which of them serves it, or each platform."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import structlog

from bot.adapters import import_adapter
from bot.chat.intake import Intake
from bot.chat.settings import Choices
from bot.config.schema import Config
from bot.engine import import_backend
from bot.errors import StoreError, StoreInUse
from bot.observability.health import Components, Readiness
from bot.storage.bots import SharedBots
from bot.storage.instance_lock import InstanceLock
from bot.storage.standby import GRACE, LEASE, in_turn
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between two renewals of the lock on the database.
_LOCK_INTERVAL = 15.0

# Seconds between two looks at the other bots, and for settings that they have changed.
_OTHERS_INTERVAL = 5.0


@asynccontextmanager
async def alone(
    config: Config, components: Components, clock: Clock, operations: AbstractAsyncContextManager[None]
) -> AsyncIterator[InstanceLock]:
    """Hold the lock on the database and serve health checks; these also while another bot is waited for."""
    url = config.storage.url.get_secret_value()
    if config.cluster.enabled:
        async with operations:
            # The next one that serves begins seconds earlier.
            await asyncio.to_thread(_import_parts, config)
            async with _in_turn(url, components, clock, is_shared=config.cluster.is_shared) as lock:
                yield lock
    else:
        async with _locked(url) as lock, operations:
            yield lock


def _import_parts(config: Config) -> None:
    for section in config.sections.values():
        import_backend(section)
    for name in config.enabled_adapters:
        import_adapter(name)


@asynccontextmanager
async def _in_turn(url: str, components: Components, clock: Clock, *, is_shared: bool) -> AsyncIterator[InstanceLock]:
    """Hold the lock on the database once no other bot has it for itself; if it is lost, the process ends at once."""

    def report(fault: str | None) -> None:
        components.standby = Readiness("standby", fault)

    report(None)
    log.info("standing by until no other bot serves the database")
    lock = await asyncio.to_thread(partial(InstanceLock, url, lease=LEASE, is_shared=is_shared))
    # Where it is shared, each platform's turn has the time of grace.
    async with in_turn(lock, clock, report, grace=0.0 if is_shared else GRACE):
        components.standby = None
        log.info("sharing the database" if is_shared else "serving the database")
        yield lock


@asynccontextmanager
async def platform_turn(platform: str, url: str, clock: Clock, intake: Intake) -> AsyncIterator[None]:
    """Hold the lock on a platform once no other bot serves it; if it is lost, the process ends at once."""
    log.info("standing by until no other bot serves the platform", platform=platform)
    lock = await asyncio.to_thread(partial(InstanceLock, url, lease=LEASE, platform=platform))
    # While the database is away, the lock on it is lost too, which ends the process.
    async with in_turn(lock, clock, report=lambda fault: None):
        intake.forget_before()
        log.info("serving the platform", platform=platform)
        yield


@asynccontextmanager
async def _locked(url: str) -> AsyncIterator[InstanceLock]:
    """Hold the lock on the database; in threads, since acquiring it may take seconds."""
    lock = await asyncio.to_thread(InstanceLock, url)
    await asyncio.to_thread(lock.__enter__)
    try:
        yield lock
    finally:
        await asyncio.to_thread(lock.__exit__, None, None, None)


async def follow_others(bots: SharedBots, choices: Choices, components: Components, clock: Clock) -> None:
    """Read which bots serve which platforms, and settings that were changed where another bot serves."""
    try:
        while True:
            try:
                components.bots = await asyncio.to_thread(bots.read)
                await choices.follow()
            except StoreError as error:
                log.warning("the other bots and their settings cannot be read now", error=str(error))
            await clock.sleep(_OTHERS_INTERVAL)
    finally:
        await asyncio.to_thread(bots.close)


async def keep_lock(lock: InstanceLock, clock: Clock) -> None:
    """Renew the lock: a database server that restarts forgets it."""
    while True:
        await clock.sleep(_LOCK_INTERVAL)
        try:
            await asyncio.to_thread(lock.renew)
        except StoreInUse:
            raise
        except StoreError as error:
            log.warning("the lock on the database cannot be renewed now", error=str(error))
