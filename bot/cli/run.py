"""`bot run`: serve the platforms."""

from __future__ import annotations

import asyncio
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
    from rich.progress import DownloadColumn

    from bot.app import serve
    from bot.config.reload import ConfigSource

    loaded = load(path)
    with redacted(loaded), progress_bar(DownloadColumn()) as show:
        source = ConfigSource(path or Path("config.toml"), lambda: quiet_on_terminal(load(path)))
        asyncio.run(serve(quiet_on_terminal(loaded), partial(show, "Loading the model"), source=source))
