"""The path of one warm message: files of bot/ it runs through, store calls, nested async generators.

python -m tests.project.warm_path [--backend echo|chatglm] [--checkout FOLDER]

Traced from the adapter's event to the end of the reply, in all threads, in the whole program on a platform in memory.
"""

import argparse
import asyncio
import inspect
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy import Engine, event

from benchmarks.in_memory import log_to_memory, running_bot, use_checkout


@dataclass
class Trace:
    """Code of bot/ that ran while `is_on`."""

    folder: str
    is_on: bool = False
    files: set[str] = field(default_factory=set)
    generators: set[str] = field(default_factory=set)
    deepest: list[str] = field(default_factory=list)  # outermost first
    store_calls: Counter[str] = field(default_factory=Counter)
    statements: int = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Record a call or the resumption of a coroutine; as a trace function, for every thread."""
        if not self.is_on or not self._is_ours(frame):
            return
        self.files.add(frame.f_code.co_filename.removeprefix(self.folder))
        if self._is_generator(frame):
            self.generators.add(frame.f_code.co_qualname)
            nested, caller = [frame.f_code.co_qualname], frame.f_back
            while caller is not None:
                if self._is_generator(caller):
                    nested.append(caller.f_code.co_qualname)
                caller = caller.f_back
            if len(nested) > len(self.deepest):
                self.deepest = nested[::-1]

    def _is_generator(self, frame: FrameType) -> bool:
        """Return whether it is an async generator of bot/; a context manager, stepped by contextlib, is none."""
        stepped_by = frame.f_back.f_code.co_qualname if frame.f_back else ""
        is_generator = bool(frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR)
        return is_generator and self._is_ours(frame) and not stepped_by.startswith("_AsyncGeneratorContextManager.")

    def _is_ours(self, frame: FrameType) -> bool:
        return frame.f_code.co_filename.startswith(self.folder)

    @contextmanager
    def counted_store_calls(self, store: type) -> Iterator[None]:
        """Wrap the public coroutine methods of a store's class."""
        methods = inspect.getmembers(store, inspect.iscoroutinefunction)
        public = {name: method for name, method in methods if not name.startswith("_")}
        for name, method in public.items():
            setattr(store, name, self._counted(name, method))
        try:
            yield
        finally:
            for name, method in public.items():
                setattr(store, name, method)

    def _counted(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **kwargs: Any) -> Any:
            self.store_calls[name] += self.is_on
            return await method(*args, **kwargs)

        return counted

    @contextmanager
    def counted_statements(self) -> Iterator[None]:
        """Count the SQL statements of every engine."""

        def executed(*_: object) -> None:
            self.statements += self.is_on

        event.listen(Engine, "before_cursor_execute", executed)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", executed)


async def traced(backend: str) -> Trace:
    """Answer two mentions to warm everything up, and trace a third."""
    bot, store = import_module("bot"), import_module("bot.storage.sql").SqlStore
    trace = Trace(f"{Path(bot.__path__[0])}/")
    before = sys.gettrace(), threading.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        with trace.counted_store_calls(store), trace.counted_statements():
            async with running_bot(backend) as platform:
                for is_traced in (False, False, True):
                    trace.is_on = is_traced
                    await platform.mention(0, "hello, how are you?")
                    await platform.idle()
                trace.is_on = False
    finally:
        sys.settrace(before[0])
        threading.settrace(before[1])
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description="Print what one warm message runs through.")
    parser.add_argument("--backend", choices=["echo", "chatglm"], default="echo")
    parser.add_argument("--checkout", type=Path, help="trace bot/ of this folder instead")
    options = parser.parse_args()
    if options.checkout:
        use_checkout(options.checkout)
    log_to_memory()
    trace = asyncio.run(traced(options.backend))
    calls = ", ".join(f"{name} {count}" for name, count in trace.store_calls.items())
    for name, number, what in (
        ("files of bot/", len(trace.files), ""),
        ("store calls", trace.store_calls.total(), calls),
        ("SQL statements", trace.statements, ""),
        ("nested async generators", len(trace.deepest), " > ".join(trace.deepest)),
        ("async generators in all", len(trace.generators), ", ".join(sorted(trace.generators))),
    ):
        print(f"{name:<24} {number:>4}  {what}".rstrip())
    print("\n".join(sorted(trace.files)))


if __name__ == "__main__":
    main()
