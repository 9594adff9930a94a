"""`bot check`: validate the configuration, and check what the start needs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bot.cli.common import load, redacted, with_config

if TYPE_CHECKING:
    from bot.config.schema import Config
    from bot.errors import BotError


@click.command()
@with_config
@click.option("--online", is_flag=True, help="Also check tokens and permissions with each platform.")
def check(path: Path | None, online: bool) -> None:
    """Validate the configuration, show what differs from the defaults, and check what `bot run` needs.

    Models are not loaded, but their files, memory and devices are checked, and the database and ports.
    """
    from bot.config.report import report

    loaded = load(path)
    for line in report(loaded):
        click.echo(line)
    with redacted(loaded) as redact:
        code = _preflight(loaded.config, redact)
        if online and not asyncio.run(_check_online(loaded.config, redact)):
            code = code or 1
    sys.exit(code)


def _preflight(config: Config, redact: Callable[[str], str]) -> int:
    """Check what the start needs; return the exit code with which it would fail, 2 before 1."""
    from bot.errors import StoreError
    from bot.storage.instance_lock import is_in_use

    url = config.storage.url.get_secret_value()
    try:
        is_running = is_in_use(url)
    except StoreError:
        is_running = False  # `_checks` reports why
    codes = {0}
    click.echo("\nNeeded by the start:")
    for what, error in _checks(config, url):
        if error is None:
            click.echo(f"  ok {what}")
        elif is_running and error.exit_code == 1:
            click.echo(f"  -- {what}: {redact(str(error))}  [a bot runs on this database, and may be the reason]")
        else:
            codes.add(error.exit_code)
            click.echo(f"  !! {what}: {redact(str(error))}")
    return max(codes)


def _checks(config: Config, url: str) -> Iterator[tuple[str, BotError | None]]:
    """Yield what was checked, and the error if there is one."""
    from bot.adapters.slack.settings import SlackSection
    from bot.engine import embeddings, preflight
    from bot.engine.router import check_models
    from bot.errors import BotError
    from bot.storage.migrate import check_database
    from bot.util.http_server import check_address

    for name, failure in check_models(config.sections, preflight):
        yield f"model {name}", failure
    servers: list[tuple[str, str, int]] = []
    if config.serves_operations:
        servers.append(("operations", config.operations.host, config.operations.port))
    if config.server.enabled:
        servers.append(("server", config.server.host, config.server.port))
    for name, settings in config.enabled_adapters.items():
        if isinstance(settings, SlackSection) and settings.mode == "http":
            servers.append((f"adapters.{name}", settings.host, settings.port))
    checks: list[tuple[str, Callable[[], None]]] = [("database", partial(check_database, url))]
    if config.embeddings.model:
        checks.append(("embeddings", partial(embeddings.preflight, config.embeddings)))
    checks += [(f"port of [{section}]", partial(check_address, section, host, port)) for section, host, port in servers]
    for what, check in checks:
        try:
            check()
        except BotError as error:
            yield what, error
        else:
            yield what, None


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
