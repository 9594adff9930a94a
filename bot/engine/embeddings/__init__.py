"""Embeddings: texts to vectors, by a second model beside the chat model.

The encoder, numpy and torch are imported only where a model is configured.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import structlog

from bot.engine.embeddings.base import Embedder, Embeddings, Encoder
from bot.errors import EngineUnavailable

if TYPE_CHECKING:
    from bot.config.http import EmbeddingsSection

__all__ = ["Embedder", "Embeddings", "open_embedder", "preflight"]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@asynccontextmanager
async def open_embedder(options: "EmbeddingsSection") -> AsyncIterator[Embedder | None]:
    """Load the model of `[embeddings]` inside the block; yield None if it names none.

    Raises:
        CheckpointError: Its folder cannot be used.
        EngineUnavailable: A package, the device or memory is missing.
    """
    if not options.model:
        yield None
        return

    from bot.engine.embeddings.queue import QueuedEmbedder

    def load() -> Encoder:
        load_encoder: Callable[[EmbeddingsSection], Encoder] = _encoder().load_encoder
        return load_encoder(options)

    embedder = QueuedEmbedder(load, normalize=options.normalize, max_waiting=options.max_waiting)
    async with embedder:
        log.info("embeddings ready", model=embedder.name, dimensions=embedder.dimensions, device=options.device)
        yield embedder


def preflight(options: "EmbeddingsSection") -> None:
    """Check the model of `[embeddings]`, if it names one, without loading it.

    Raises:
        As `open_embedder`.
    """
    if options.model:
        _encoder().check_encoder(options)


def _encoder() -> ModuleType:
    try:
        return import_module(f"{__name__}.encoder")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("bot."):
            raise
        raise EngineUnavailable(
            f"embeddings.model needs the package {exc.name}, which is not installed: run "
            'python -m pip install "chatglm-bot[transformers]", or set it to ""'
        ) from exc
