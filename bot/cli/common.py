"""Shared by the commands: --config, loading, redacted errors, progress."""

# Imports that take long are inside the functions: `bot --help` does without them, and
# Ctrl-C during an import is handled like any other.

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

    from bot.config.schema import Config
    from bot.config.sources import LoadedConfig

with_config = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, readable=False),  # unreadable files are reported like other mistakes
    help="Configuration file; default: ./config.toml if it exists.",
)

_REDRAW_SECONDS = 0.1


def load(path: Path | None) -> LoadedConfig:
    """Load the settings for all platforms and backends.

    Raises:
        ConfigError: There are mistakes.
    """
    from bot.adapters import SETTINGS
    from bot.config.sources import load_config
    from bot.engine import BACKENDS

    return load_config(path, SETTINGS, BACKENDS)


def quiet_on_terminal(loaded: LoadedConfig) -> Config:
    """Return the settings, with log level warning if a chat on this terminal would be interrupted by log lines."""
    config = loaded.config
    if "console" in config.enabled_adapters and sys.stderr.isatty() and ("logs", "level") not in loaded.origins:
        return config.model_copy(update={"logs": config.logs.model_copy(update={"level": "warning"})})
    return config


@contextmanager
def redacted(loaded: LoadedConfig, *urls: str) -> Iterator[Callable[[str], str]]:
    """Configure logging and remove secrets, including passwords in `urls`, from logs, errors and tracebacks.

    Errors of libraries often quote addresses with tokens and passwords.
    """
    from bot.config.secrets import environment_secrets, passwords
    from bot.errors import BotError
    from bot.observability.logging import Redaction, configure_logging

    secrets = (
        *loaded.config.secrets,
        *(word for url in urls for word in passwords(url)),
        *environment_secrets(os.environ),
    )
    redact = Redaction(secrets)
    configure_logging(quiet_on_terminal(loaded).logs, secrets)
    sys.excepthook = lambda kind, error, trace: click.echo(redact("".join(traceback.format_exception(error))), err=True)
    try:
        yield redact
    except BotError as error:
        click.echo(f"bot: {redact(str(error))}", err=True)
        sys.exit(error.exit_code)


@contextmanager
def progress_bar(
    *columns: ProgressColumn, console: Console | None = None, as_lines: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows phase, amount done and total on standard error.

    On a terminal that is a bar; elsewhere nothing, or with `as_lines` one line per phase.  The bar is
    drawn only by that function: a timer thread would disturb measurements.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = console or Console(stderr=True)
    shown, drawn = "", 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), *columns)
    bar = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    task = bar.add_task("", total=None)

    def show(phase: str, done: int, total: int) -> None:
        nonlocal shown, drawn
        is_new, now = phase != shown, time.monotonic()
        shown = phase
        if not console.is_terminal:
            if as_lines and is_new:
                console.print(f"{phase} …")
        elif done >= total:
            bar.stop()  # gives the cursor back
        elif is_new or now - drawn > _REDRAW_SECONDS:
            drawn = now
            bar.start()
            bar.update(task, description=phase, completed=done, total=total, refresh=True)

    try:
        yield show
    finally:
        bar.stop()
