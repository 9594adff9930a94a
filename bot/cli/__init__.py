"""The command line: one module per group of commands, and exit codes for errors."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

import click

from bot import __version__
from bot.cli.ask import ask
from bot.cli.bench import bench
from bot.cli.check import check
from bot.cli.database import backup, copy, export, feedback, migrate, usage
from bot.cli.health import health
from bot.cli.init import init
from bot.cli.key import key
from bot.cli.run import run, serve
from bot.cli.setup import setup
from bot.cli.tune import tune
from bot.errors import BotError

__all__ = ["cli", "main"]


@click.group()
@click.version_option(__version__, prog_name="bot")
def cli() -> None:
    """Run ChatGLM-6B as a chat bot for Discord, Telegram and Slack."""


for command in (
    *(init, setup, run, serve, ask, check, health, migrate, backup, export, usage, feedback, copy, bench, key),
    tune,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line.

    Exit codes: 0 success; 1 something cannot be used, the message names it; 2 wrong settings
    or options, including a token that a platform rejects: a restart does not help; 130 interrupted.
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
        # Everything is closed already; sys.exit would spend seconds on finalising the interpreter.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(130)
    except BrokenPipeError:
        # The reader closed the pipe.
        _drop_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop_output()
        click.echo(f"bot: the output is not complete: {error.strerror}", err=True)
        sys.exit(1)


def _drop_output() -> None:
    """Send the rest of standard output nowhere: Python would fail again when it flushes it on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
