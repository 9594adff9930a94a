"""Loading progress from transformers, instead of its progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging

from bot.engine.base import Progress


@contextmanager
def report_progress(progress: Progress, total: int) -> Iterator[None]:
    """Report models that load inside to `progress`, scaled to `total` bytes."""

    def counted(items: Any) -> Iterator[Any]:
        count = max(len(items), 1) if isinstance(items, Sized) else 1
        for done, item in enumerate(items):
            progress(total * min(done, count) // count, total)
            yield item

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        # The library iterates over this bar, one tensor of the model per step.
        is_loading = options.get("desc") == "Loading weights"
        return counted(*args) if is_loading else logging.EmptyTqdm(*args, **options)

    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
    progress(total, total)
