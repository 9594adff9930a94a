"""Find and open the backend that config.toml names."""

import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, NoReturn

from bot.engine import backends
from bot.engine.base import Engine, Memory, Progress, silent
from bot.engine.library import ChatModel
from bot.engine.shared import SharedSection
from bot.errors import EngineMisconfigured, EngineUnavailable
from bot.util.garbage import without_collection

if TYPE_CHECKING:
    from bot.config.schema import EngineSection

__all__ = ["BACKENDS", "ChatModel", "Progress", "find_backend", "import_backend", "open_engine", "preflight"]

# Values of engine.backend.
BACKENDS = ("auto", *(module.name for module in pkgutil.iter_modules(backends.__path__)))

# Backends whose packages are an extra of the same name.
EXTRAS = frozenset({"transformers"})


def open_engine(options: "EngineSection", progress: Progress = silent) -> Engine:
    """Create the engine that `options` describe; entering it loads the model.

    `progress` is called from the engine's thread.

    Raises:
        EngineMisconfigured: Unknown backend.
        EngineUnavailable: One of the backend's packages is missing.  Entering can raise it too.
        CheckpointError: With backend "auto", the model's config.json cannot be read.  Entering
            can raise it too.
    """
    opener: Callable[[EngineSection, Progress], Engine] = _backend(options).open_engine
    return opener(options, progress)


def import_backend(options: "EngineSection") -> None:
    """Import the backend and its packages, which takes seconds; `open_engine` does so too.

    Raises:
        As `open_engine`.
    """
    _backend(options)


def preflight(options: "EngineSection", taken: Memory = MappingProxyType({})) -> Memory:
    """Check, without loading, whether an engine for `options` could run; return the bytes that it needs, if known.

    Runs in a thread, while another model may still be serving; other models of this process
    need the bytes `taken`.  A backend may define its own `preflight(options, taken)`.

    Raises:
        EngineUnavailable: As `open_engine`, or the machine cannot run this model.
        CheckpointError: As entering.
    """
    check: Callable[[EngineSection, Memory], Memory] | None = getattr(_backend(options), "preflight", None)
    return {} if check is None else check(options, taken)


def find_backend(options: "EngineSection") -> str:
    """Return the backend that `options` name; "auto" is decided by the settings and the model's config.json.

    Raises:
        As `backend_of`.
    """
    if options.backend != "auto":
        return options.backend
    if options.urls:
        return "remote"
    if options.model == "demo":
        return "chatglm"
    # Not for remote, whose process may lack the packages of local models.
    try:
        from bot.engine.model_folder import backend_of
    except ModuleNotFoundError as exc:
        _refuse_missing(options, "auto", exc)

    return backend_of(options.model, options.revision)


def _backend(options: "EngineSection") -> ModuleType:
    name = find_backend(options)
    if name not in BACKENDS:
        near = get_close_matches(name, BACKENDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use {' or '.join(BACKENDS)}"
        raise EngineMisconfigured(f'engine.backend = "{name}": unknown backend; {hint}')
    if options.urls and name != "remote":
        raise EngineMisconfigured(
            f'engine.urls only works with engine.backend = "remote", but it is "{name}": set it to "remote", or remove '
            "engine.urls"
        )
    if isinstance(options, SharedSection) and name != "chatglm":
        table = next(iter(options.prefixes))
        raise EngineMisconfigured(
            f'models.{table}.base only works with a ChatGLM-6B (backend "chatglm"), but "{options.model}" is served by '
            f'"{name}": remove it, and give models.{table} a model of its own'
        )
    try:
        with without_collection():
            return import_module(f"{backends.__name__}.{name}")
    except ModuleNotFoundError as exc:
        _refuse_missing(options, name, exc)


def _refuse_missing(options: "EngineSection", backend: str, error: ModuleNotFoundError) -> NoReturn:
    """Name the package that a backend misses; a missing module of our own is a bug."""
    if error.name is None or error.name.startswith("bot."):
        raise error
    wanted = f'"chatglm-bot[{backend}]"' if backend in EXTRAS else "chatglm-bot"
    is_set = options.backend == backend != "auto"
    place = f'engine.backend = "{backend}"' if is_set else f'engine.model = "{options.model}"'
    raise EngineUnavailable(
        f"{place} needs the package {error.name}, which is not installed: "
        f'run python -m pip install {wanted}, or set engine.backend = "remote" or "echo"'
    ) from error
