"""Shows the figures: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from benchmarks.figures import Figures, Memory, Served, Spread

_REFRESH_SECONDS = 0.1


class Row(NamedTuple):
    name: str
    figure: str
    remark: str


@contextmanager
def watching(console: Console | None = None) -> Iterator[Callable[[str, int, int], None]]:
    """Show on standard error what is under way: as a bar, or a line each where that is no terminal.

    It is drawn only when told something, which happens between two measurements.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        shown, drawn = "", 0.0

        def watch(what: str, done: int, total: int) -> None:
            nonlocal shown, drawn
            is_new, now = what != shown, time.monotonic()
            shown = what
            if not console.is_terminal:
                if is_new:
                    console.print(f"{what} …")
            elif is_new or now - drawn > _REFRESH_SECONDS:
                drawn = now
                bar.update(task, description=what, completed=done, total=total, refresh=True)

        yield watch


def show(figures: Figures, *, as_json: bool) -> None:
    """Print them on standard output."""
    console = Console()
    if as_json:
        click.echo(json.dumps(figures.as_json(), indent=2))
    elif console.is_terminal:
        console.print(table(figures))
    else:
        for line in plain(figures):
            click.echo(line)


def title(figures: Figures) -> str:
    machine, options = figures.machine, figures.options
    return (
        f"{options.model_name} · {_quantized(figures.quantization)} · {figures.dtype} on {machine.device} ({machine.device_name}), "
        f"{_count(machine.threads, 'thread')} · torch {machine.torch}, Python {machine.python}"
    )


def plain(figures: Figures) -> Iterator[str]:
    """Yield the lines of a table whose columns stand below each other."""
    rows = list(_rows(figures))
    names, values = (max(map(len, column)) for column in list(zip(*rows, strict=True))[:2])
    yield title(figures)
    for name, figure, remark in rows:
        yield f"{name:<{names}}  {figure:>{values}}  {remark}".rstrip()


def table(figures: Figures) -> Table:
    drawn = Table("figure", title=title(figures), title_justify="left", caption_justify="left")
    drawn.add_column("median", justify="right", style="bold")
    drawn.add_column("lowest to highest, and how")
    for row in _rows(figures):
        drawn.add_row(*row)
    return drawn


def _rows(figures: Figures) -> Iterator[Row]:
    options, network = figures.options, figures.network
    decode = network.decode_tokens_per_second
    yield Row("loading", f"{figures.load_seconds:.2f} s", "weights are made up" if options.random else "")
    yield _memory(figures.memory)
    yield Row(
        "first token",
        _milliseconds(network.first_token_seconds.median),
        f"{_range(network.first_token_seconds, 1e3)}; a prompt of {options.prompt} tokens",
    )
    yield _rate("prefill", network.prefill_tokens_per_second, "one prompt")
    yield _rate(f"decode, batch {options.batch}", decode, f"{_count(options.tokens, 'step')}")
    yield Row("  per sequence", f"{_number(figures.tokens_per_second_per_sequence)} tok/s", "")
    yield Row("weights of a step", f"{network.weight_bytes_per_step / 1e6:,.1f} MB", "")
    yield Row(
        "memory bandwidth",
        f"{network.bandwidth_bytes_per_second / 1e9:,.1f} GB/s",
        "the best read (sum) or copy of a large buffer, all threads",
    )
    yield Row(
        "  share for weights",
        f"{figures.bandwidth_share:.0%}",
        "decode reads them once a step" if figures.bandwidth_share <= 1 else "more than all: they come from a cache",
    )
    yield _served(figures.one_client)
    yield _served(figures.many_clients)
    yield Row(
        f"{figures.many_clients.clients} clients / 1 client", f"{figures.clients_ratio:.2f}", "of tok/s in the same run"
    )


def _memory(memory: Memory) -> Row:
    known = {"resident": memory.resident, "anonymous": memory.anonymous, "on the device": memory.device}
    shown = [f"{held / 1e6:,.0f} MB {what}" for what, held in known.items() if held is not None]
    first, _, remark = "; ".join(shown).partition("; ")
    figure, _, what = first.partition(" MB ")
    return Row("peak memory", f"{figure} MB" if figure else "not known", "; ".join(filter(None, [what, remark])))


def _served(served: Served) -> Row:
    first = served.first_text_seconds
    row = _rate(f"engine, {_count(served.clients, 'client')}", served.tokens_per_second, "")
    return row._replace(remark=f"{row.remark}; first text after {_milliseconds(first.median)}")


def _rate(name: str, spread: Spread, remark: str) -> Row:
    return Row(name, f"{_number(spread.median)} tok/s", "; ".join(filter(None, [_range(spread), remark])))


def _range(spread: Spread, scale: float = 1) -> str:
    return f"{_number(spread.low * scale)} to {_number(spread.high * scale)}"


def _milliseconds(seconds: float) -> str:
    return f"{_number(seconds * 1e3)} ms"


def _number(value: float) -> str:
    """Three digits or more, whatever the size.

    >>> _number(12345.6), _number(45.67), _number(1.234)
    ('12,346', '45.7', '1.23')
    """
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _quantized(quantization: str) -> str:
    return "not quantized" if quantization == "none" else quantization


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
