"""Tells how far the library is with loading, instead of its own bars on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

from bot.engine.base import Progress


@contextmanager
def reported(progress: Progress, total: int) -> Iterator[None]:
    """Inside, a model that loads tells `progress` its share of `total` bytes."""

    def told(items: Any) -> Iterator[Any]:
        count = max(len(items), 1) if isinstance(items, Sized) else 1
        for done, item in enumerate(items):
            progress(total * min(done, count) // count, total)
            yield item

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        # The library moves this bar by going through it, a tensor of the model at a time.
        is_loading = options.get("desc") == "Loading weights"
        return told(*args) if is_loading else logging.EmptyTqdm(*args, **options)

    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
    progress(total, total)
