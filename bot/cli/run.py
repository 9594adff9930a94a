"""`bot run`: serve the platforms.  `bot serve`: only the HTTP APIs."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bot.cli.common import load, progress_bar, quiet_on_terminal, redacted, with_config

if TYPE_CHECKING:
    from bot.config.schema import Config
    from bot.config.sources import LoadedConfig


@click.command()
@with_config
def run(path: Path | None) -> None:
    """Serve the configured platforms, or this terminal if no platform is configured."""
    _serve(path, quiet_on_terminal)


@click.command()
@with_config
def serve(path: Path | None) -> None:
    """Serve the HTTP APIs, without a platform."""
    _serve(path, _apis_only)


def _serve(path: Path | None, choose: Callable[[LoadedConfig], Config]) -> None:
    from bot.util.shutdown import exit_on_sigterm

    exit_on_sigterm()  # before the imports below, which take seconds
    _raise_file_limit()
    from rich.progress import DownloadColumn

    from bot.app import serve
    from bot.config.reload import ConfigSource

    loaded = load(path)
    with redacted(loaded), progress_bar(DownloadColumn()) as show:
        source = ConfigSource(path or Path("config.toml"), lambda: choose(load(path)))
        asyncio.run(serve(choose(loaded), partial(show, "Loading the model"), source=source))


def _apis_only(loaded: LoadedConfig) -> Config:
    config = loaded.config
    server = config.server.model_copy(update={"enabled": True})
    return config.model_copy(update={"adapters": {}, "server": server})


def _raise_file_limit() -> None:
    """Allow as many open files as the system grants; shells start programs with 1024, for those that use select()."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # macOS names no number and refuses infinity
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
