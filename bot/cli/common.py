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
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

    from bot.config.schema import Config
    from bot.config.sources import LoadedConfig
    from bot.observability.logging import Redaction

with_config = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, readable=False),  # unreadable files are reported like other mistakes
    envvar="BOT_CONFIG",
    help="Configuration file; default: the one that BOT_CONFIG names, else ./config.toml if it exists.",
)

_REDRAW_SECONDS = 0.1
_CHAT_LOG = Path("data/terminal.log")


def load(path: Path | None, text: str | None = None) -> LoadedConfig:
    """Load the settings for all platforms and backends; a `text` is checked as if config.toml had it.

    Raises:
        ConfigError: There are mistakes.
    """
    from bot.adapters import SETTINGS
    from bot.config.sources import load_config
    from bot.engine import BACKENDS

    return load_config(path, SETTINGS, BACKENDS, text=text)


def check_export(config: Config) -> None:
    """Check that answers may be exported with their votes.

    Raises:
        UsageError: The operator has not switched it on.
    """
    if not config.feedback.export:
        raise click.UsageError(
            "feedback.export is off: switch it on in config.toml, and ask people to agree with /settings share_answers true"
        )


def quiet_on_terminal(loaded: LoadedConfig) -> Config:
    """Return the settings, with log level warning if a chat on this terminal would be interrupted by log lines."""
    config = loaded.config
    if "console" in config.enabled_adapters and sys.stderr.isatty() and ("logs", "level") not in loaded.origins:
        return config.model_copy(update={"logs": config.logs.model_copy(update={"level": "warning"})})
    return config


def is_terminal_chat(config: Config) -> bool:
    """Return whether a person chats with the bot on this terminal."""
    from bot.util.terminal import reads_terminal

    return "console" in config.enabled_adapters and reads_terminal() and sys.stderr.isatty()


def open_log(config: Config) -> TextIO | None:
    """Open the file that gets the log lines of a chat on this terminal; None for standard error."""
    if not is_terminal_chat(config):
        return None
    try:
        _CHAT_LOG.parent.mkdir(exist_ok=True)
        return os.fdopen(os.open(_CHAT_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8")
    except OSError:  # a folder that is not writable
        return None


@contextmanager
def redacted(
    loaded: LoadedConfig, *urls: str, config: Config | None = None, log: TextIO | None = None
) -> Iterator[Redaction]:
    """Configure logging and remove secrets, including passwords in `urls`, from logs, errors and tracebacks.

    Errors of libraries often quote addresses with tokens and passwords.  `config` are the settings in use, if not
    all of `loaded`; `log` gets the log lines instead of standard error.
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
    configure_logging((config or quiet_on_terminal(loaded)).logs, redact, log)
    sys.excepthook = lambda kind, error, trace: click.echo(redact("".join(traceback.format_exception(error))), err=True)
    try:
        yield redact
    except BotError as error:
        click.echo(f"bot: {redact(str(error))}", err=True)
        sys.exit(error.exit_code)


@contextmanager
def progress_bar(
    *columns: ProgressColumn, console: Console | None = None, as_lines: bool = False, at_once: str = ""
) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows phase, amount done and total on standard error.

    On a terminal that is a bar; elsewhere nothing, or with `as_lines` one line per phase.  The bar is
    drawn only by that function, since a timer thread would disturb measurements; with `at_once` by such a
    thread, with these words from now on.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = console or Console(stderr=True)
    shown, drawn = "", 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), *columns)
    if at_once:
        columns = (SpinnerColumn(), *columns)
    bar = Progress(
        *columns, console=console, transient=True, auto_refresh=bool(at_once), disable=not console.is_terminal
    )
    task = bar.add_task(at_once, total=None)
    if at_once:
        bar.start()

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
