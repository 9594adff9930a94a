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
@click.option(
    "--online",
    is_flag=True,
    help="Also check tokens and permissions with each platform, and ask model servers for their models.",
)
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
        if online and not asyncio.run(_check_servers(loaded.config, redact)):
            code = code or 1
    sys.exit(code)


def _preflight(config: Config, redact: Callable[[str], str]) -> int:
    """Check what the start needs; return the exit code with which it would fail, 2 before 1."""
    from bot.errors import StoreDamaged, StoreError
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
        elif is_running and error.exit_code == 1 and not isinstance(error, StoreDamaged):
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
    from bot.storage.export import check_keys
    from bot.storage.master_key import MasterKeys
    from bot.storage.migrate import CHECK_SECONDS, check_database, check_pages
    from bot.util.http_server import check_address

    for name, failure in check_models(config.sections, preflight):
        shared = [
            f"{each} ({found.ptuning or 'no prefix'})" for each, found in config.models.items() if found.base == name
        ]
        yield f"model {name}" + (f", shared with {', '.join(shared)}" if shared else ""), failure
    servers: list[tuple[str, str, int]] = []
    if config.serves_operations:
        servers.append(("operations", config.operations.host, config.operations.port))
    if config.server.enabled:
        servers.append(("server", config.server.host, config.server.port))
    for name, settings in config.enabled_adapters.items():
        if isinstance(settings, SlackSection) and settings.mode == "http":
            servers.append((f"adapters.{name}", settings.host, settings.port))

    def check_store() -> str:
        check_database(url)
        check_keys(url, MasterKeys.of(config.storage))
        is_whole = check_pages(url)
        return "" if is_whole else f" (pages: not all were checked in {CHECK_SECONDS:g} s; `bot backup` checks them)"

    checks: list[tuple[str, Callable[[], str | None]]] = [("database", check_store)]
    if config.embeddings.model:
        checks.append(("embeddings", partial(embeddings.preflight, config.embeddings)))
    checks += [(f"port of [{section}]", partial(check_address, section, host, port)) for section, host, port in servers]
    for what, check in checks:
        try:
            remark = check()
        except BotError as error:
            yield what, error
        else:
            yield what + (remark or ""), None


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


async def _check_servers(config: Config, redact: Callable[[str], str]) -> bool:
    """Ask the servers of each remote model for their models, as the start does."""
    from bot.engine import open_engine
    from bot.engine.router import ModelRouter
    from bot.errors import EngineError
    from bot.util.clock import MonotonicClock

    is_ok = True
    for name, section in config.sections.items():
        if not section.urls:
            continue
        click.echo(f"\nmodel {name}:")
        alone = section.model_copy(update={"fallback": ""})
        try:
            async with ModelRouter({name: alone}, open_engine, MonotonicClock()) as models:
                [status] = models.statuses()
        except EngineError as error:
            fault: str | None = str(error)
        else:
            fault = None if status.load is None else status.load.fault
            if fault is None and status.info is not None:
                click.echo(f"  ok  {status.info.model} at {status.info.device}, context {status.info.context_length}")
        if fault is not None:
            click.echo(f"  !!  {redact(fault)}")
            is_ok = False
    return is_ok
