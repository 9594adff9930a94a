"""`bot migrate`, `backup`, `export` and `copy`: maintain the database."""

from __future__ import annotations

from pathlib import Path

import click

from bot.cli.common import load, redacted, with_config


@click.command()
@with_config
def migrate(path: Path | None) -> None:
    """Migrate the database to the newest schema without starting the bot."""
    from bot.storage.instance_lock import InstanceLock
    from bot.storage.migrate import current_revision, head_revision, upgrade

    loaded = load(path)
    url = loaded.config.storage.url.get_secret_value()
    with redacted(loaded):
        if current_revision(url) != head_revision():
            with InstanceLock(url):  # an older bot that is still running does not know the new schema
                upgrade(url)
    click.echo("The database is up to date.")


@click.command()
@with_config
@click.argument("file", type=click.Path(path_type=Path))
def backup(path: Path | None, file: Path) -> None:
    """Back up the SQLite database to FILE, which must not exist; the bot may keep running."""
    from bot.storage.backup import back_up

    loaded = load(path)
    with redacted(loaded):
        size = back_up(loaded.config.storage.url.get_secret_value(), file)
    click.echo(f"Backup written to {file} ({size / 1e6:.1f} MB), integrity check passed.")


@click.command()
@with_config
@click.argument("channel", required=False)
def export(path: Path | None, channel: str | None) -> None:
    """Print the conversation in CHANNEL as JSON lines; without CHANNEL, list all channels and their exchanges.

    Write CHANNEL as listed: discord:1234, slack:C01 (with threads), slack:C01:1718.2 (one thread).
    """
    from bot.storage.export import count_exchanges, export_channel

    loaded = load(path)
    url = loaded.config.storage.url.get_secret_value()
    with redacted(loaded):
        if channel is None:
            for key, count in count_exchanges(url).items():
                click.echo(f"{count:>8}  {key}")
        else:
            for line in export_channel(url, channel):
                click.echo(line, nl=False)


@click.command()
@with_config
@click.option(
    "--to",
    "target",
    required=True,
    envvar="BOT_COPY_TO",
    help="Target, as in storage.url: postgresql://… or sqlite+aiosqlite:///…; put one with a password into BOT_COPY_TO.",
)
def copy(path: Path | None, target: str) -> None:
    """Copy all data to another, empty database; stop every bot that uses either first."""
    from bot.storage.connections import locate
    from bot.storage.copy import copy_database

    loaded = load(path)
    with redacted(loaded, target):
        count = copy_database(loaded.config.storage.url.get_secret_value(), target)
        click.echo(f"Copied {count} exchanges to {locate(target).name}. Set storage.url to it and start the bot.")
