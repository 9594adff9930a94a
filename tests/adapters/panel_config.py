"""A panel whose models are scripted and follow a real config.toml."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bot.adapters import SETTINGS
from bot.config.edit import ConfigEditor
from bot.config.reload import ConfigSource, ConfigWatcher
from bot.config.schema import EngineSection
from bot.config.sources import LoadedConfig, load_config
from bot.domain import EngineInfo
from bot.engine import BACKENDS
from bot.engine.base import Engine, Memory, Progress
from bot.engine.router import ModelRouter
from bot.errors import CheckpointError, EngineMisconfigured
from bot.util.clock import MonotonicClock
from tests.adapters.test_panel import Served, panel_of
from tests.harness.fakes import ScriptedEngine


class Model(ScriptedEngine):
    """A scripted model that describes itself as its section does."""

    def __init__(self, section: EngineSection) -> None:
        super().__init__(model=section.model)
        self.section = section

    @property
    def info(self) -> EngineInfo:
        return replace(
            super().info, backend="chatglm", quantization=self.section.quantization, dtype="bfloat16", device="cpu"
        )


@dataclass
class Models:
    """Opens scripted models; those named "slow" are 40 % read until `go_on`, "missing" and "damaged" cannot be had."""

    mebibytes: int = 16
    go_on: threading.Event = field(default_factory=threading.Event)

    def open(self, section: EngineSection, progress: Progress) -> Engine:
        if section.model == "damaged":
            raise CheckpointError('engine.model = "damaged": a tensor has a wrong size')
        if section.model == "slow":
            progress(40, 100)
            self.go_on.wait()
        return Model(section)

    def check(self, section: EngineSection, taken: Memory) -> Memory:
        if section.model == "missing":
            raise EngineMisconfigured('engine.model = "missing": no such folder')
        return {"cpu": self.mebibytes // (4 if section.quantization == "int4" else 1) << 20}


@dataclass
class Configured:
    """The panel, its file, and its models."""

    served: Served
    path: Path
    models: Models
    editor: ConfigEditor

    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


@asynccontextmanager
async def configured(
    folder: Path,
    text: str = '[engine]\nmodel = "first"  # ours\n',
    environ: dict[str, str] | None = None,
    mebibytes: int = 16,
) -> AsyncIterator[Configured]:
    """Serve a panel whose bot follows config.toml in `folder`."""
    path, models, clock = folder / "config.toml", Models(mebibytes), MonotonicClock()
    path.write_text(text, encoding="utf-8")

    def load(text: str | None = None) -> LoadedConfig:
        return load_config(path, SETTINGS, BACKENDS, environ or {}, text)

    config = load().config
    watcher = ConfigWatcher(config, ConfigSource(path, lambda: load().config, load), clock)
    async with ModelRouter(config.sections, models.open, clock, check=models.check) as router:
        editor = ConfigEditor(watcher, SETTINGS, router.check)
        async with panel_of(folder, ScriptedEngine(), editor) as served:
            served.components.engine, served.components.models = router, router.statuses
            watching = asyncio.create_task(watcher.watch(served.harness.settings.reconfigure, router.change))
            try:
                yield Configured(served, path, models, editor)
            finally:
                models.go_on.set()
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)


def has(part: str, *words: str) -> Callable[[object], bool]:
    """Return a condition: a part of the panel has all of these words."""
    return lambda panel: all(word in panel.shown.get(part, "") for word in words)  # type: ignore[attr-defined]
