"""`bot run`: serve the platforms.  `bot serve`: only the HTTP APIs."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bot.cli.common import (
    is_terminal_chat,
    load,
    open_log,
    progress_bar,
    quiet_on_terminal,
    redacted,
    with_config,
)
from bot.cli.first_setup import program

if TYPE_CHECKING:
    from bot.config.schema import Config
    from bot.config.sources import LoadedConfig

# Of the default settings; missing before the first start.
_DATA = Path("data")


@click.command()
@with_config
def run(path: Path | None) -> None:
    """Serve the configured platforms, or this terminal if no platform is configured."""
    _serve(path, quiet_on_terminal)


@click.command()
@with_config
def serve(path: Path | None) -> None:
    """Serve the HTTP APIs and the chat page, without a platform."""
    _serve(path, _apis_only)


def _serve(path: Path | None, choose: Callable[[LoadedConfig], Config]) -> None:
    from bot.util.shutdown import exit_on_sigterm

    exit_on_sigterm()  # before the imports below, which take seconds
    _raise_file_limit()
    from bot.chat.i18n import translator
    from bot.util.terminal import terminal_language

    translate = translator(terminal_language() or "en")
    loading = translate("Loading …")
    if sys.stderr.isatty():
        sys.stderr.write(f"{loading}\r")  # the next line is written over it
        sys.stderr.flush()
    from bot.util.garbage import without_collection

    with without_collection():
        from bot.app import serve
        from bot.config.reload import ConfigSource, read_content

    file = path or Path("config.toml")
    content = read_content(file)  # before it is loaded: whatever changes it later is a reload
    loaded = load(path)
    config = choose(loaded)
    if is_terminal_chat(config) and not loaded.origins and not _DATA.exists():
        offer = translate("To set up Discord, Telegram or Slack in the browser: {command}")
        click.echo(offer.format(command=f"{program()} setup"), err=True)
    # A hub's downloads draw bars of their own.
    is_local = config.engine.model == "demo" or Path(config.engine.model).is_dir()
    at_once = loading if is_terminal_chat(config) and is_local else ""
    with redacted(loaded, config=config, log=open_log(config)) as redact, progress_bar(at_once=at_once) as show:

        def load_again() -> Config:
            changed = load(path)
            redact.add(changed.config.secrets)  # a key that was replaced in its secret file
            return choose(changed)

        source = ConfigSource(file, load_again, partial(_draft, path, choose), content)
        asyncio.run(serve(config, partial(show, loading), source=source))


def _draft(path: Path | None, choose: Callable[[LoadedConfig], Config], text: str) -> LoadedConfig:
    """Load a text as if config.toml had it."""
    loaded = load(path, text)
    return replace(loaded, config=choose(loaded))


def _apis_only(loaded: LoadedConfig) -> Config:
    config = loaded.config
    server = config.server.model_copy(update={"enabled": True})
    return config.model_copy(update={"adapters": {}, "server": server})


def _raise_file_limit() -> None:
    """Allow as many open files as the system grants; shells start programs with 1024, for those that use select()."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # macOS names no number and refuses infinity
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
