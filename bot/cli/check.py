"""`bot check`: validate the configuration."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bot.cli.common import load, redacted, with_config

if TYPE_CHECKING:
    from bot.config.schema import Config


@click.command()
@with_config
@click.option("--online", is_flag=True, help="Also check tokens and permissions with each platform.")
def check(path: Path | None, online: bool) -> None:
    """Validate the configuration and show what differs from the defaults."""
    from bot.config.report import report

    loaded = load(path)
    for line in report(loaded):
        click.echo(line)
    if online:
        with redacted(loaded) as redact:
            is_ok = asyncio.run(_check_online(loaded.config, redact))
        sys.exit(0 if is_ok else 1)


async def _check_online(config: Config, redact: Callable[[str], str]) -> bool:
    from bot.adapters import inspect

    is_ok = True
    for name, settings in config.enabled_adapters.items():
        if not settings.tokens:
            continue  # the console has no platform to ask
        click.echo(f"\n{name}:")
        async for finding in inspect(name, settings):
            click.echo(f"  {'ok ' if finding.is_ok else '!! '} {redact(finding.text)}")
            is_ok = is_ok and finding.is_ok
    return is_ok
