"""The settings in force while the program runs: config.toml is looked at, and what changed there takes effect."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from bot.config.schema import Config, EngineSection, Section
from bot.errors import ConfigError
from bot.util.aio import race
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between two looks; what has changed is taken when two find the same, for an editor
# may be in the middle of writing.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Source:
    """config.toml, and what reads it again together with all that outranks it; that raises ConfigError."""

    path: Path
    load: Callable[[], Config]


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """What came of reading the settings again: their names, and sentences for an operator."""

    at: datetime
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    failure: str | None = None  # why the model that is named there does not run


class ConfigWatcher:
    """Follows config.toml; a file with a mistake in it changes nothing."""

    def __init__(
        self, config: Config, source: Source, clock: Clock, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._in_force = config
        self._source = source
        self._clock = clock
        self._now = now
        self._last: ReloadResult | None = None
        self._wanted = config.engine
        self._change_under_way: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()
        self._had_file = False

    @property
    def in_force(self) -> Config:
        return self._in_force

    @property
    def last(self) -> ReloadResult | None:
        """The last time they were read again."""
        return self._last

    def reload_now(self) -> None:
        """Read all again, changed or not: somebody asks for it."""
        self._asked.set()

    async def follow(
        self, take: Callable[[Config], None], change_model: Callable[[EngineSection], Awaitable[str | None]]
    ) -> None:
        """Follow the file until cancelled.

        `take` lets a part of the settings take effect; `change_model` returns why it did
        not.  What that raises comes out of here in an ExceptionGroup: no model is left.
        """
        known = seen = await asyncio.to_thread(self._content)
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._had_file = self._had_file or known is not None
                is_asked = await self._pause()
                before, seen = seen, await asyncio.to_thread(self._content)
                if not is_asked and (seen == known or seen != before):
                    continue
                known = seen
                config = await self._reread(is_gone=seen is None)
                if config is not None:
                    self._let_in(config, take)
                    if self._is_new_model(config.engine, is_asked=is_asked):
                        self._wanted = config.engine
                        change = self._change(config.engine, change_model)
                        self._change_under_way = tasks.create_task(change, name="new model")

    async def _pause(self) -> bool:
        """Wait until it is time to look again; whether somebody asked for it."""
        await race(self._asked.wait(), self._clock.sleep(_LOOK_SECONDS))
        is_asked = self._asked.is_set()
        self._asked.clear()
        return is_asked

    def _content(self) -> bytes | None:
        # Not its time or its inode: where a link is changed to another file, or a file put in
        # its place, what counts is what stands there.
        try:
            return self._source.path.read_bytes()
        except OSError:
            return None

    async def _reread(self, *, is_gone: bool) -> Config | None:
        try:
            if is_gone and self._had_file:
                raise ConfigError(str(self._source.path), ["it cannot be read any more"])
            return await asyncio.to_thread(self._source.load)
        except ConfigError as error:
            log.error("settings refused; those in force stay", place=error.place, mistakes=error.mistakes)
            failure = self._last.failure if self._last is not None else None
            self._last = ReloadResult(self._now(), refused=error.mistakes, failure=failure)
            return None

    def _let_in(self, config: Config, take: Callable[[Config], None]) -> None:
        before, self._in_force = self._in_force, _with_what_can_change(self._in_force, config)
        changed = _differing(before, self._in_force)
        if changed:
            take(self._in_force)
        needs_restart = _differing(self._in_force.model_copy(update={"engine": config.engine}), config)
        is_same_model = config.engine == self._wanted
        failure = self._last.failure if self._last is not None and is_same_model else None
        if not is_same_model:
            changed += tuple(name for name in _differing(before, config) if name.startswith("engine."))
        self._last = ReloadResult(self._now(), changed, needs_restart, failure=failure)
        log.info("settings read again", changed=changed, needs_restart=needs_restart)

    def _is_new_model(self, engine: EngineSection, *, is_asked: bool) -> bool:
        if engine != self._wanted:
            return True
        is_under_way = self._change_under_way is not None and not self._change_under_way.done()
        return is_asked and not is_under_way and engine != self._in_force.engine

    async def _change(
        self, engine: EngineSection, change_model: Callable[[EngineSection], Awaitable[str | None]]
    ) -> None:
        log.info("changing the model", model=engine.model, quantization=engine.quantization)
        failure = await change_model(engine)
        if engine is not self._wanted:
            return  # a newer one came
        if failure is None:
            self._in_force = self._in_force.model_copy(update={"engine": engine})
            log.info("model changed", model=engine.model, quantization=engine.quantization)
        else:
            log.error("model not changed", model=engine.model, quantization=engine.quantization, why=failure)
        assert self._last is not None, "a model is changed because the settings were read again"
        self._last = replace(self._last, failure=failure)


def _with_what_can_change(config: Config, new: Config) -> Config:
    """These settings with what takes effect at once of the new ones; another model takes longer."""
    return config.model_copy(
        update={
            "conversation": new.conversation,
            "sampling": new.sampling,
            "limits": new.limits,
            "access": new.access,
            "logs": config.logs.model_copy(update={"level": new.logs.level, "levels": new.logs.levels}),
            "storage": config.storage.model_copy(update={"retention_days": new.storage.retention_days}),
        }
    )


def _differing(one: Config, other: Config) -> tuple[str, ...]:
    """The names of the settings that are not the same."""
    ours, theirs = _named(one), _named(other)
    return tuple(name for name, value in theirs.items() if ours.get(name) != value)


def _named(config: Config) -> dict[str, object]:
    tables = {name: section for name, section in config if isinstance(section, Section)}
    tables |= {f"adapters.{name}": section for name, section in config.adapters.items()}
    return {f"{table}.{name}": value for table, section in tables.items() for name, value in section}
