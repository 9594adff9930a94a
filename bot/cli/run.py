"""`bot run`: serve the platforms."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from functools import partial
from pathlib import Path

import click

from bot.cli.common import load, progress_bar, quiet_on_terminal, redacted, with_config


@click.command()
@with_config
def run(path: Path | None) -> None:
    """Serve the configured platforms, or this terminal if no platform is configured."""
    from bot.util.shutdown import exit_on_sigterm

    exit_on_sigterm()  # before the imports below, which take seconds
    _raise_file_limit()
    from rich.progress import DownloadColumn

    from bot.app import serve
    from bot.config.reload import ConfigSource

    loaded = load(path)
    with redacted(loaded), progress_bar(DownloadColumn()) as show:
        source = ConfigSource(path or Path("config.toml"), lambda: quiet_on_terminal(load(path)))
        asyncio.run(serve(quiet_on_terminal(loaded), partial(show, "Loading the model"), source=source))


def _raise_file_limit() -> None:
    """Allow as many open files as the system grants; shells start programs with 1024, for those that use select()."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # macOS names no number and refuses infinity
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
