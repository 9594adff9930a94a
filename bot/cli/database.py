"""`bot migrate`, `backup`, `export`, `usage`, `feedback` and `copy`: maintain the database."""

from __future__ import annotations

from pathlib import Path

import click

from bot.cli.common import check_export, load, redacted, with_config


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
@click.option("--plain", is_flag=True, help="Print all exchanges of all channels, one JSON object per line.")
def export(path: Path | None, channel: str | None, plain: bool) -> None:
    """Print the conversation in CHANNEL as JSON lines; without CHANNEL, list all channels and their exchanges.

    Write CHANNEL as listed: discord:1234, slack:C01 (with threads), slack:C01:1718.2 (one thread).
    """
    from bot.storage.export import count_exchanges, export_all, export_channel
    from bot.storage.master_key import MasterKeys

    loaded = load(path)
    url = loaded.config.storage.url.get_secret_value()
    if plain and channel is not None:
        raise click.UsageError("--plain exports all channels: leave CHANNEL out, or --plain")
    with redacted(loaded):
        if plain:
            for line in export_all(url, MasterKeys.of(loaded.config.storage)):
                click.echo(line, nl=False)
        elif channel is None:
            for key, count in count_exchanges(url).items():
                click.echo(f"{count:>8}  {key}")
        else:
            for line in export_channel(url, channel, MasterKeys.of(loaded.config.storage)):
                click.echo(line, nl=False)


@click.command()
@with_config
@click.option("--csv", "is_csv", is_flag=True, help="As comma-separated values.")
def usage(path: Path | None, is_csv: bool) -> None:
    """Print what people, channels, servers and platforms have used, by day (UTC); the bot may keep running."""
    from bot.storage.master_key import MasterKeys
    from bot.storage.usage_export import aligned, csv_lines, export_usage

    loaded = load(path)
    storage = loaded.config.storage
    with redacted(loaded):
        rows = export_usage(storage.url.get_secret_value(), MasterKeys.of(storage))
        for line in csv_lines(rows) if is_csv else aligned(rows):
            click.echo(line)


@click.command()
@with_config
@click.option("--csv", "is_csv", is_flag=True, help="As comma-separated values.")
@click.option(
    "--jsonl", "is_jsonl", is_flag=True, help="Print questions, answers and votes instead, of people who agreed."
)
def feedback(path: Path | None, is_csv: bool, is_jsonl: bool) -> None:
    """Print how many votes the answers got, by model and persona; the bot may keep running.

    People agree to --jsonl with /settings share_answers true, where feedback.export is on.
    """
    from bot.storage.master_key import MasterKeys
    from bot.storage.usage_export import aligned, csv_lines
    from bot.storage.votes_export import WORDS, json_lines, rated_answers, vote_sums

    loaded = load(path)
    storage = loaded.config.storage
    url = storage.url.get_secret_value()
    if is_csv and is_jsonl:
        raise click.UsageError("--csv prints sums and --jsonl answers: leave one out")
    if is_jsonl:
        check_export(loaded.config)
    with redacted(loaded):
        if is_jsonl:
            lines = json_lines(rated_answers(url, MasterKeys.of(storage)))
        else:
            lines = csv_lines(vote_sums(url)) if is_csv else aligned(vote_sums(url), WORDS)
        for line in lines:
            click.echo(line)


@click.command()
@with_config
@click.pass_context
@click.option(
    "--to",
    "target",
    required=True,
    envvar="BOT_COPY_TO",
    help="Target, as in storage.url: postgresql://… or sqlite+aiosqlite:///…; put one with a password into BOT_COPY_TO.",
)
def copy(context: click.Context, path: Path | None, target: str) -> None:
    """Copy all data to another, empty database; stop every bot that uses either first."""
    from bot.storage.connections import locate
    from bot.storage.copy import copy_database
    from bot.storage.master_key import MasterKeys

    loaded = load(path)
    with redacted(loaded, target):
        storage = loaded.config.storage
        is_variable = context.get_parameter_source("target") is click.core.ParameterSource.ENVIRONMENT
        count = copy_database(
            storage.url.get_secret_value(),
            target,
            master=MasterKeys.of(storage),
            target_setting="BOT_COPY_TO" if is_variable else "--to",
        )
        click.echo(f"Copied {count} exchanges to {locate(target).name}. Set storage.url to it and start the bot.")
