"""The command line: run · check · health · migrate · backup · export · copy · bench; errors become exit codes."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bot import __version__
from bot.errors import BotError, EngineUnavailable

if TYPE_CHECKING:
    from bot.config.schema import Config
    from bot.config.sources import LoadedConfig

# What a function needs is imported in it: `bot --help` does not wait for it, and Ctrl-C
# while it is imported is handled like any other.

with_config = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, readable=False),  # what cannot be read is told as other mistakes are
    help="The settings; if not given, ./config.toml where there is one, else the defaults.",
)


AT_LEAST_1 = click.IntRange(min=1)


@click.group()
@click.version_option(__version__, prog_name="bot")
def cli() -> None:
    """A chat bot that serves one ChatGLM-6B to Discord, Telegram and Slack."""


@cli.command()
@with_config
def run(path: Path | None) -> None:
    """Serve the platforms in config.toml; this terminal if there are none."""
    from bot.util.shutdown import exit_on_sigterm

    exit_on_sigterm()  # before the imports that follow: they take seconds
    from bot.app import serve
    from bot.config.reload import ConfigSource

    loaded = _load(path)
    with _discreet(loaded), _loading_bar() as progress:
        source = ConfigSource(path or Path("config.toml"), lambda: _quiet(_load(path)))
        asyncio.run(serve(_quiet(loaded), progress, source=source))


@cli.command()
@with_config
@click.option("--online", is_flag=True, help="Also ask each platform whether its bot can work there.")
def check(path: Path | None, online: bool) -> None:
    """Print the settings in force against the defaults, or every mistake in them."""
    from bot.config.report import report

    loaded = _load(path)
    for line in report(loaded):
        click.echo(line)
    if online:
        with _discreet(loaded) as redact:
            is_well = asyncio.run(_inspect(loaded.config, redact))
        sys.exit(0 if is_well else 1)


@cli.command()
@with_config
def health(path: Path | None) -> None:
    """Ask the bot that runs with these settings whether it is ready; exit code 0 is yes."""
    from bot.observability.http import query_readiness

    is_ready, said = query_readiness(_load(path).config.operations)
    click.echo(said)
    if not is_ready:
        sys.exit(1)


@cli.command()
@with_config
def migrate(path: Path | None) -> None:
    """Bring the database up to date without starting the bot."""
    from bot.storage.instance_lock import InstanceLock
    from bot.storage.migrate import current_revision, head_revision, upgrade

    loaded = _load(path)
    url = loaded.config.storage.url.get_secret_value()
    with _discreet(loaded):
        if current_revision(url) != head_revision():
            with InstanceLock(url):  # an older bot that still runs would find tables that it does not know
                upgrade(url)
    click.echo("The database is up to date.")


@cli.command()
@with_config
@click.argument("file", type=click.Path(path_type=Path))
def backup(path: Path | None, file: Path) -> None:
    """Copy the SQLite database into FILE, a new one; the bot may run meanwhile."""
    from bot.storage.backup import back_up

    loaded = _load(path)
    with _discreet(loaded):
        size = back_up(loaded.config.storage.url.get_secret_value(), file)
    click.echo(f"{file} holds the database, {size / 1e6:.1f} MB, and was looked through.")


@cli.command()
@with_config
@click.argument("channel", required=False)
def export(path: Path | None, channel: str | None) -> None:
    """Print what was said in CHANNEL as JSON; without it, list the channels and their number of exchanges.

    CHANNEL is written as it is listed: discord:1234, slack:C01 (threads included), slack:C01:1718.2 (one thread).
    """
    from bot.storage.export import count_exchanges, export_channel

    loaded = _load(path)
    url = loaded.config.storage.url.get_secret_value()
    with _discreet(loaded):
        if channel is None:
            for key, count in count_exchanges(url).items():
                click.echo(f"{count:>8}  {key}")
        else:
            for line in export_channel(url, channel):
                click.echo(line, nl=False)


@cli.command()
@with_config
@click.option(
    "--to",
    "target",
    required=True,
    envvar="BOT_COPY_TO",
    help="postgresql://… or sqlite+aiosqlite:///…, as storage.url; one with a password goes into BOT_COPY_TO.",
)
def copy(path: Path | None, target: str) -> None:
    """Copy all that is kept into another database, which must be empty; no bot may run on either."""
    from bot.storage.connections import locate
    from bot.storage.copy import copy_database

    loaded = _load(path)
    with _discreet(loaded, target):
        count = copy_database(loaded.config.storage.url.get_secret_value(), target)
        click.echo(f"{locate(target).name} holds all {count} exchanges. Name it in storage.url, and start the bot.")


@cli.command()
@click.option("--model", help='"demo", a folder, or a hub name; if not given, demo.')
@click.option(
    "--random", "sizes", help="Made-up weights instead: hidden=1024,layers=8,heads=16,inner=4096,vocab=32768."
)
@click.option("--quantization", type=click.Choice(["none", "int8", "int4"]), default="none", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@click.option("--device", default="auto", show_default=True, help="auto, cuda, cuda:1, mps or cpu.")
@click.option("--batch", type=AT_LEAST_1, default=1, show_default=True, help="Sequences that the network runs at once.")
@click.option("--prompt", type=click.IntRange(min=3), default=128, show_default=True, help="Tokens of each prompt.")
@click.option("--tokens", type=AT_LEAST_1, default=64, show_default=True, help="New tokens of each answer.")
@click.option("--clients", type=AT_LEAST_1, default=8, show_default=True, help="Who ask the whole engine at once.")
@click.option(
    "--question", type=click.IntRange(min=3), default=24, show_default=True, help="Tokens of what each client asks."
)
@click.option("--repeat", type=AT_LEAST_1, default=5, show_default=True, help="Measurements of each figure.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of the processor; if not given, as when serving.")
@click.option(
    "--suite",
    type=click.Choice(["cpu", "cuda"]),
    help="All that such a device should reach, each beside its goal; of the other options only --repeat and --json count.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(model: str | None, sizes: str | None, suite: str | None, as_json: bool, **chosen: Any) -> None:
    """Measure how fast a model runs on this machine."""
    from benchmarks.options import options_of

    options = options_of(model=model, random=sizes, suite=suite, **chosen)
    # After the options: torch takes seconds.
    try:
        from benchmarks.measure import measure
        from benchmarks.report import show, watching
        from benchmarks.suite import PLANS, measure_suite
        from benchmarks.suite_report import show_suite
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("bot."):
            raise
        raise EngineUnavailable(
            f"bench needs the package {exc.name}, which is not installed: python -m pip install chatglm-bot brings it"
        ) from exc

    if suite is not None:
        with watching() as watch:
            table = measure_suite(PLANS[suite], options.repeat, watch)
        show_suite(table, as_json=as_json)
        return
    with watching() as watch:
        figures = measure(options, watch)
    show(figures, as_json=as_json)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done; 1 something cannot be used, and its message says what; 2 mistakes
    in the settings or on the command line, a token that a platform refuses among them: no
    restart cures those; 130 interrupted.
    """
    try:
        cli(standalone_mode=False)
    except BotError as error:
        click.echo(f"bot: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        # Not by sys.exit: all is closed, and taking the interpreter down takes seconds on a busy machine.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(130)
    except BrokenPipeError:
        # Who read our output has enough of it.  Python would try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


async def _inspect(config: Config, redact: Callable[[str], str]) -> bool:
    """Print what each platform says of its bot; tell whether all is well."""
    from bot.adapters import inspect

    is_well = True
    for name, settings in config.enabled_adapters.items():
        if not settings.tokens:
            continue  # nobody to ask: the console
        click.echo(f"\n{name}:")
        async for finding in inspect(name, settings):
            click.echo(f"  {'ok ' if finding.is_ok else '!! '} {redact(finding.text)}")
            is_well = is_well and finding.is_ok
    return is_well


def _load(path: Path | None) -> LoadedConfig:
    from bot.adapters import SETTINGS
    from bot.config.sources import load_with_origins
    from bot.engine import BACKENDS

    return load_with_origins(path, SETTINGS, BACKENDS)


def _quiet(loaded: LoadedConfig) -> Config:
    """Nobody wants log lines between the lines of a chat, unless they asked for them."""
    config = loaded.config
    if "console" in config.enabled_adapters and sys.stderr.isatty() and ("logs", "level") not in loaded.origins:
        return config.model_copy(update={"logs": config.logs.model_copy(update={"level": "warning"})})
    return config


@contextmanager
def _discreet(loaded: LoadedConfig, *urls: str) -> Iterator[Callable[[str], str]]:
    """Set the logs up, and blot secrets, those of `urls` too, out of them and of what goes wrong inside.

    Libraries put addresses into their errors, and with them tokens and passwords.
    """
    from bot.config.schema import foreign_secrets, passwords
    from bot.observability.logging import Redaction, configure_logging

    named = [word for url in urls for word in passwords(url)]
    secrets = (*loaded.config.secrets, *named, *foreign_secrets(os.environ))
    redact = Redaction(secrets)
    configure_logging(_quiet(loaded).logs, secrets)
    # For a fault of ours: what no `except` here knows ends as a traceback.
    sys.excepthook = lambda kind, error, trace: click.echo(redact("".join(traceback.format_exception(error))), err=True)
    try:
        yield redact
    except BotError as error:
        click.echo(f"bot: {redact(str(error))}", err=True)
        sys.exit(error.exit_code)


@contextmanager
def _loading_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while the model loads; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("Loading the model"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        loading = bar.add_task("", total=None, visible=False)

        def report(done: int, total: int) -> None:
            bar.update(loading, completed=done, total=total, visible=done < total)
            if done >= total:
                bar.stop()

        yield report


if __name__ == "__main__":
    main()
