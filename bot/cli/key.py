"""`bot key`: make a key for a client of the HTTP APIs."""

from __future__ import annotations

import hashlib
import re
import secrets

import click


@click.command()
@click.argument("name")
def key(name: str) -> None:
    """Create a key of the HTTP APIs for the client NAME; it is printed once and not stored."""
    name = name.lower()
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
        raise click.BadParameter(f"{name!r} is not letters and digits, with single _ between them", param_hint="NAME")
    secret = f"bot-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode()).hexdigest()
    click.echo(f"Key for the client, shown only now: {secret}")
    click.echo(f"For the bot, in its environment:    BOT_SERVER__KEYS__{name.upper()}=sha256:{digest}")
    click.echo(f"or in a file of its secrets folder: server__keys__{name}, with sha256:… as its text")
