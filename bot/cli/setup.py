"""`bot setup`: a page in the browser that asks what `bot init` asks, and writes the files of a bot."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bot.cli.first_setup import run_commands
from bot.cli.run import run, serve
from bot.errors import AddressUnavailable

if TYPE_CHECKING:
    from bot.cli.setup_page.pages import SetupPages

# Seconds that a connection may take: a platform may be slow to answer about a token.
_CONNECTION_SECONDS = 600.0


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=".", help="Folder of config.toml; default: the current one."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="Port of the page; 0 = any free port."
)
@click.option("--no-browser", is_flag=True, help="Only show the link.")
@click.pass_context
def setup(context: click.Context, folder: Path, port: int, no_browser: bool) -> None:
    """Set the bot up in a browser on this machine: platforms, tokens, model and language.

    The link that it shows works once. Nothing is written before the last step of the page; then the page can
    start the bot in this terminal.
    """
    from bot.chat.i18n import translator
    from bot.cli.setup_page.pages import SetupPages
    from bot.util.terminal import terminal_language

    translate = translator(terminal_language() or "en")
    folder = folder.expanduser().resolve()
    if folder.exists() and not folder.is_dir():
        raise click.UsageError(f"--folder: {folder} is a file; name a folder")
    pages = SetupPages(folder)
    try:
        asyncio.run(_serve(pages, port, opens_browser=not no_browser and _has_browser()))
    except AddressUnavailable:
        raise click.ClickException(f"port {port} of 127.0.0.1 cannot be used; choose another --port") from None
    except KeyboardInterrupt:
        if not pages.outcome.written:
            click.echo("\n" + translate("Nothing was written."), err=True)
            raise
    outcome = pages.outcome
    click.echo("\n" + translate("Written:"))
    for path in outcome.written:
        click.echo(f"  {path}")
    if outcome.then is not None:
        command = run if outcome.then == "run" else serve
        context.invoke(command, path=None if folder == Path.cwd() else folder / "config.toml")
        return
    click.echo(translate("Next:"))
    for line in run_commands(folder, *outcome.names):
        click.echo(f"  {line}")


async def _serve(pages: SetupPages, port: int, *, opens_browser: bool) -> None:
    """Serve the page until it has ended.

    Raises:
        AddressUnavailable: The port is in use.
    """
    from bot.chat.i18n import translator
    from bot.config.schema import LogsSection
    from bot.observability.logging import configure_logging
    from bot.util.http_server import serve_app
    from bot.util.terminal import terminal_language

    translate = translator(terminal_language() or "en")
    configure_logging(LogsSection(level="error"))
    async with serve_app(pages.app(), "setup", "127.0.0.1", port, seconds=_CONNECTION_SECONDS) as listening:
        url = f"http://127.0.0.1:{listening}/?link={pages.link.token}"
        click.echo(translate("Open this link in a browser on this machine; it works once:"))
        click.echo(f"\n  {url}\n")
        if os.environ.get("SSH_CONNECTION"):
            forward = f"ssh -L {listening}:127.0.0.1:{listening} HOST"
            click.echo(translate("From another machine, first: {command}").format(command=forward))
        click.echo(translate("Nothing is written before its last step; Ctrl-C quits."))
        sys.stdout.flush()
        if opens_browser:
            # Some commands end only with their browser.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        await pages.ended.wait()


def _has_browser() -> bool:
    """Return whether a browser would open in a window: one in this terminal would cover the link."""
    return sys.platform == "darwin" or any(map(os.environ.get, ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")))
