"""Reload config.toml while the program runs."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import structlog

from bot.config.schema import DEFAULT_MODEL, NAMED_TABLES, Config, EngineSection, Key
from bot.config.section import Section
from bot.config.sources import LARGEST_FILE, LoadedConfig
from bot.errors import ConfigError
from bot.util.aio import race
from bot.util.clock import Clock
from bot.util.files import read_regular

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_POLL_SECONDS = 1.0
# What takes effect at once, beside the tables that an operator names: whole tables, and settings of others.
_AT_ONCE = ("conversation", "sampling", "limits", "access")
_SINGLE_AT_ONCE: tuple[Key, ...] = (("logs", "level"), ("logs", "levels"), ("storage", "retention_days"))


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """The watched file, and functions that load it, or a text in its place, with the environment.

    They raise ConfigError.  `content` is that of the file, or the reason for its absence, as read before the settings
    in use were loaded; None: as it is when the watch begins.
    """

    path: Path
    load: Callable[[], Config]
    load_text: Callable[[str], LoadedConfig] | None = None
    content: bytes | str | None = None


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """Result of a reload: names of settings, and sentences for the operator."""

    at: datetime
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    failure: str | None = None  # reason why the configured model could not be loaded


class ConfigWatcher:
    """Polls config.toml and applies changes; a file with mistakes is rejected as a whole.

    `failures` are the reasons by name of models that are not loaded; `reload_now` tries them again, as does
    `requested`, which may be set before the watch begins.
    """

    def __init__(
        self,
        config: Config,
        source: ConfigSource,
        clock: Clock,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        failures: Mapping[str, str] = MappingProxyType({}),
        requested: asyncio.Event | None = None,
    ) -> None:
        self._current = config
        self._source = source
        self._clock = clock
        self._now = now
        self._last_result: ReloadResult | None = None
        self._wanted = config.sections
        self._changes: dict[str, asyncio.Task[None]] = {}
        self._failures = dict(failures)
        self._reload_requested = requested or asyncio.Event()
        self._had_file = False
        self._revision = ""

    @property
    def current(self) -> Config:
        return self._current

    @property
    def last_result(self) -> ReloadResult | None:
        return self._last_result

    @property
    def source(self) -> ConfigSource:
        return self._source

    @property
    def wanted_models(self) -> Mapping[str, EngineSection]:
        """The sections of the running models as config.toml has them, by name."""
        return self._wanted

    @property
    def failures(self) -> Mapping[str, str]:
        """The reasons by name of models that are not as config.toml has them."""
        return self._failures

    def effect_of(self, config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the settings that a reload would change now, and those that need a restart."""
        after = _with_models(_with_reloadable(self._current, config), self._sections_of(config))
        return _changed_names(self._current, after), _changed_names(after, config)

    def changed_models(self, config: Config) -> dict[str, EngineSection]:
        """Return the sections of the running models that a reload would replace, by name."""
        sections = self._sections_of(config)
        return {name: section for name, section in sections.items() if section != self._wanted[name]}

    @property
    def revision(self) -> str:
        """The revision of the content that was loaded last, with mistakes or not."""
        return self._revision

    def reload_now(self) -> None:
        """Reload at once, even if the file has not changed."""
        self._reload_requested.set()

    async def watch(
        self, apply: Callable[[Config], None], change_model: Callable[[str, EngineSection], Awaitable[str | None]]
    ) -> None:
        """Reload the file whenever it changes, until cancelled.

        `apply` receives settings that take effect at once; `change_model` returns the reason if it failed.

        Raises:
            ExceptionGroup: `change_model` raised: no model is left.
        """
        content = self._source.content
        loaded = seen = await asyncio.to_thread(self._read_file) if content is None else content
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._had_file = self._had_file or isinstance(loaded, bytes)
                self._revision = revision_of(loaded)
                is_requested = await self._wait_for_poll()
                before, seen = seen, await asyncio.to_thread(self._read_file)
                # Two equal reads: an editor may still be writing the file.
                if not is_requested and (seen == loaded or seen != before):
                    continue
                loaded = seen
                config = await self._load(seen)
                if config is not None:
                    self._apply(config, apply)
                    for name, section in self._sections_of(config).items():
                        if self._needs_change(name, section, is_requested=is_requested):
                            self._wanted[name] = section
                            change = self._change_model(name, section, change_model)
                            self._changes[name] = tasks.create_task(change, name=f"change {name}")

    async def _wait_for_poll(self) -> bool:
        """Wait for the next poll; return True if a reload was requested."""
        await race(self._reload_requested.wait(), self._clock.sleep(_POLL_SECONDS))
        is_requested = self._reload_requested.is_set()
        self._reload_requested.clear()
        return is_requested

    def _read_file(self) -> bytes | str:
        return read_content(self._source.path)

    async def _load(self, seen: bytes | str) -> Config | None:
        try:
            # Without the file the defaults would apply.
            if isinstance(seen, str) and self._had_file:
                raise ConfigError(str(self._source.path), [f"the file cannot be read any more ({seen})"])
            return await asyncio.to_thread(self._source.load)
        except ConfigError as error:
            log.error("config reload rejected, keeping previous settings", place=error.place, mistakes=error.mistakes)
            self._last_result = ReloadResult(self._now(), rejected=error.mistakes, failure=self._failure())
            return None

    def _sections_of(self, config: Config) -> dict[str, EngineSection]:
        """Return the sections of the running models; tables that come, go or change their base need a restart."""
        wanted = self._wanted
        return {
            name: section
            for name, section in config.sections.items()
            if name in wanted and section.base == wanted[name].base
        }

    def _apply(self, config: Config, apply: Callable[[Config], None]) -> None:
        before, self._current = self._current, _with_reloadable(self._current, config)
        changed = _changed_names(before, self._current)
        if changed:
            apply(self._current)
        sections = self._sections_of(config)
        needs_restart = _changed_names(_with_models(self._current, sections), config)
        for name, section in sections.items():
            if section != self._wanted[name]:
                self._failures.pop(name, None)
                changed += _changed_names(before, _with_models(before, {name: section}))
        self._last_result = ReloadResult(self._now(), changed, needs_restart, failure=self._failure())
        log.info("config reloaded", changed=changed, needs_restart=needs_restart)

    def _needs_change(self, name: str, section: EngineSection, *, is_requested: bool) -> bool:
        if section != self._wanted[name]:
            return True
        is_loading = name in self._changes and not self._changes[name].done()
        has_failed = name in self._failures or section != self._current.sections.get(name)
        return is_requested and not is_loading and has_failed

    async def _change_model(
        self, name: str, section: EngineSection, change_model: Callable[[str, EngineSection], Awaitable[str | None]]
    ) -> None:
        log.info("changing the model", table=name, model=section.model, quantization=section.quantization)
        failure = await change_model(name, section)
        if section is not self._wanted[name]:
            log.info("change of the model replaced by a later edit", table=name, model=section.model)
            return
        if failure is None:
            self._failures.pop(name, None)
            self._current = _with_models(self._current, {name: section})
            log.info("model changed", table=name, model=section.model, quantization=section.quantization)
        else:
            self._failures[name] = failure
            log.error("model not changed", table=name, model=section.model, reason=failure)
        assert self._last_result is not None, "only a reload changes a model"
        self._last_result = replace(self._last_result, failure=self._failure())

    def _failure(self) -> str | None:
        return "; ".join(self._failures.values()) or None


def read_content(path: Path) -> bytes | str:
    """Return the content of config.toml, or the reason for its absence."""
    # The content, not mtime or inode: Kubernetes swaps symbolic links.
    try:
        return read_regular(path, LARGEST_FILE)
    except OSError as error:
        return error.strerror or type(error).__name__


def revision_of(content: bytes | str) -> str:
    """Return what tells a content from others; a file that cannot be read is as an empty one."""
    return hashlib.sha256(content if isinstance(content, bytes) else b"").hexdigest()


def _with_models(config: Config, sections: Mapping[str, EngineSection]) -> Config:
    """Return `config` with these sections of models, by name."""
    models = {name: section for name, section in sections.items() if name != DEFAULT_MODEL}
    engine = sections.get(DEFAULT_MODEL, config.engine)
    return config.model_copy(update={"engine": engine, "models": {**config.models, **models}})


def _with_reloadable(config: Config, new: Config) -> Config:
    """Return `config` with the settings of `new` that take effect at once; models are changed separately."""
    update = {name: getattr(new, name) for name in (*_AT_ONCE, *NAMED_TABLES)}
    for table, setting in _SINGLE_AT_ONCE:
        section: Section = update.get(table) or getattr(config, table)
        update[table] = section.model_copy(update={setting: getattr(getattr(new, table), setting)})
    return config.model_copy(update=update)


def needs_restart(key: Key) -> bool:
    """Return whether a change of this setting waits for a restart; a model's own is replaced while the bot runs.

    >>> needs_restart(("server", "port")), needs_restart(("limits", "answer_seconds"))
    (True, False)
    """
    at_once = ("engine", "models", *_AT_ONCE, *NAMED_TABLES)
    return key[0] not in at_once and key not in _SINGLE_AT_ONCE


def _changed_names(old: Config, new: Config) -> tuple[str, ...]:
    before = _by_name(old)
    after = _by_name(new)
    return tuple(name for name in {**after, **before} if before.get(name) != after.get(name))


def _by_name(config: Config) -> dict[str, object]:
    tables = {name: section for name, section in config if isinstance(section, Section)}
    tables |= {f"models.{name}": section for name, section in config.models.items()}
    for table in NAMED_TABLES:
        tables |= {f"{table}.{name}": section for name, section in getattr(config, table).items()}
    tables |= {f"adapters.{name}": section for name, section in config.adapters.items()}
    return {f"{table}.{name}": value for table, section in tables.items() for name, value in section}
