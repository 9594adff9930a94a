"""Finds the backend that config.toml names, and opens its engine."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from bot.engine import backends
from bot.engine.base import Engine, Progress, silent
from bot.errors import EngineUnavailable

if TYPE_CHECKING:
    from bot.config.schema import EngineSection

__all__ = ["BACKENDS", "Progress", "open_engine", "preflight"]

BACKENDS = tuple(module.name for module in pkgutil.iter_modules(backends.__path__))

# Backends whose packages are installed only on request, under this name.
EXTRAS = frozenset({"transformers"})


def open_engine(options: EngineSection, progress: Progress = silent) -> Engine:
    """Make the engine that `options` describe; entering it loads the model.

    `progress` is called while it loads, from the engine's own thread.

    Raises:
        EngineUnavailable: There is no such backend, or a package that it needs is missing.
            Entering raises it too, and CheckpointError, for what is found wrong then.
    """
    opener: Callable[[EngineSection, Progress], Engine] = _backend(options.backend).open_engine
    return opener(options, progress)


def preflight(options: EngineSection) -> None:
    """Find out what can be found out without loading: whether `open_engine` and entering could work.

    Called in a thread while another model still answers, and still has its memory.  A
    backend has a `preflight(options)` of its own where it knows of something to look at.

    Raises:
        EngineUnavailable: As `open_engine`, or the machine is not fit for this model.
        CheckpointError: As entering.
    """
    look: Callable[[EngineSection], None] | None = getattr(_backend(options.backend), "preflight", None)
    if look is not None:
        look(options)


def _backend(name: str) -> ModuleType:
    if name not in BACKENDS:
        near = get_close_matches(name, BACKENDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use {' or '.join(BACKENDS)}"
        raise EngineUnavailable(f'engine.backend = "{name}": there is no such backend; {hint}')
    try:
        return import_module(f"{backends.__name__}.{name}")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("bot."):
            raise
        wanted = f'"chatglm-bot[{name}]"' if name in EXTRAS else "chatglm-bot"
        raise EngineUnavailable(
            f'engine.backend = "{name}" needs the package {exc.name}, which is not installed: '
            f'python -m pip install {wanted} brings it, or set engine.backend = "echo"'
        ) from exc
