"""`bot health`: readiness of a running bot, for container health checks."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bot.cli.common import load, with_config


@click.command()
@with_config
def health(path: Path | None) -> None:
    """Check whether the running bot is ready; exit with 0 if it is."""
    from bot.observability.probe import query_readiness

    # `bot.__main__` answers without loading the settings; what it leaves to this command is explained here.
    operations = load(path).config.operations
    is_ready, answer = query_readiness(operations.host, operations.port)
    click.echo(answer)
    sys.exit(0 if is_ready else 1)
