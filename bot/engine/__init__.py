"""Find and open the backend that config.toml names."""

import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from bot.engine import backends
from bot.engine.base import Engine, Progress, silent
from bot.engine.library import ChatModel
from bot.errors import EngineUnavailable

if TYPE_CHECKING:
    from bot.config.schema import EngineSection

__all__ = ["BACKENDS", "ChatModel", "Progress", "open_engine", "preflight"]

BACKENDS = tuple(module.name for module in pkgutil.iter_modules(backends.__path__))

# Backends whose packages are an extra of the same name.
EXTRAS = frozenset({"transformers"})


def open_engine(options: "EngineSection", progress: Progress = silent) -> Engine:
    """Create the engine that `options` describe; entering it loads the model.

    `progress` is called from the engine's thread.

    Raises:
        EngineUnavailable: Unknown backend, or one of its packages is missing.  Entering can
            raise it too, and CheckpointError.
    """
    opener: Callable[[EngineSection, Progress], Engine] = _backend(options.backend).open_engine
    return opener(options, progress)


def preflight(options: "EngineSection") -> None:
    """Check, without loading, whether an engine for `options` could run.

    Runs in a thread, while another model may still be serving.  A backend may define its own
    `preflight(options)`.

    Raises:
        EngineUnavailable: As `open_engine`, or the machine cannot run this model.
        CheckpointError: As entering.
    """
    check: Callable[[EngineSection], None] | None = getattr(_backend(options.backend), "preflight", None)
    if check is not None:
        check(options)


def _backend(name: str) -> ModuleType:
    if name not in BACKENDS:
        near = get_close_matches(name, BACKENDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use {' or '.join(BACKENDS)}"
        raise EngineUnavailable(f'engine.backend = "{name}": unknown backend; {hint}')
    try:
        return import_module(f"{backends.__name__}.{name}")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("bot."):
            raise
        wanted = f'"chatglm-bot[{name}]"' if name in EXTRAS else "chatglm-bot"
        raise EngineUnavailable(
            f'engine.backend = "{name}" needs the package {exc.name}, which is not installed: '
            f'run python -m pip install {wanted}, or set engine.backend = "echo"'
        ) from exc
