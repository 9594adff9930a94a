"""`bot init`: ask for platforms, tokens and model, check them, and write the files of a bot."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bot.cli.first_setup import PLATFORMS, load, model_settings, notes, redacted, run_commands
from bot.cli.interview import SERVICES, InitOptions, Interview, check_platform
from bot.errors import LoginRefused, PlatformError

if TYPE_CHECKING:
    from bot.config.setup import Setup


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default=".", help="Folder of config.toml; default: the current one."
)
@click.option("--yes", is_flag=True, help="Ask nothing: use the options, and tokens from BOT_DISCORD__TOKEN and so on.")
@click.option("--platform", "platforms", multiple=True, type=click.Choice(PLATFORMS), help="May be given repeatedly.")
@click.option("--model", help='"demo", a folder, a Hugging Face name, or a model of --server.')
@click.option("--server", "url", help="Model server, such as http://localhost:11434/v1.")
@click.option("--quantization", type=click.Choice(["none", "int8", "int4"]), help="Quantization of a local model.")
@click.option("--language", type=click.Choice(["auto", "en", "zh"]), help="Language of the bot's own messages.")
@click.option("--service", type=click.Choice(SERVICES), help="Also write a systemd unit or a compose file.")
@click.option("--offline", is_flag=True, help="Do not check tokens with their platforms.")
@click.option("--overwrite", is_flag=True, help="Replace a config.toml that has settings.")
def init(folder: Path, yes: bool, overwrite: bool, **options: Any) -> None:
    """Write config.toml and secret files for a new bot: ask for platforms, tokens and model, and check them.

    Nothing is written before the last question is answered.
    """
    from bot.util.terminal import reads_terminal, terminal_language

    if not yes and not reads_terminal():
        raise click.UsageError("bot init asks on a terminal; in a script use --yes with options")
    from bot.adapters import SETTINGS
    from bot.chat.i18n import translator
    from bot.config.services import CHECKOUT
    from bot.config.setup import files_of, sets_nothing, write

    choices = InitOptions(**options)
    translate = translator(terminal_language() or "en")
    folder = folder.expanduser().resolve()
    config, has_checkout = folder / "config.toml", (CHECKOUT / "Dockerfile").is_file()
    if choices.service == "compose" and not has_checkout:
        raise click.UsageError("--service compose builds the image from a checkout of the repository, and this is none")
    if folder.exists() and not folder.is_dir():
        raise click.UsageError(f"--folder: {folder} is a file; name a folder")
    has_settings = not overwrite and not sets_nothing(config)
    if yes and has_settings:
        raise click.UsageError(f"{config} has settings: name another --folder, or add --overwrite")
    interview = None if yes else Interview(translate, choices)
    try:
        if interview is not None and has_settings:
            interview.confirm(translate("{file} has settings. Replace it?").format(file=config))
        setup = _from_options(choices) if interview is None else interview.setup()
        service = choices.service
        if service is None:
            service = "none" if interview is None else interview.service(setup, has_checkout=has_checkout)
        if service in ("user", "system") and not setup.has_platform:
            raise click.UsageError(
                f"--service {service} needs a platform: without one the bot chats in a terminal, and a service has none"
            )
        texts = files_of(setup, folder, SETTINGS, os.environ)
        private = [path for path in texts if path != config]
        texts |= _service_files(service, folder, setup, private)
        if interview is not None:
            interview.show_files(texts, private, notes(setup, folder, translate))
    except click.Abort:
        click.echo("\n" + translate("Nothing was written."), err=True)
        raise
    try:
        if service == "compose":
            (folder / "data").mkdir(parents=True, exist_ok=True)
        write(texts, private)
    except OSError as error:
        raise click.ClickException(f"{error.filename or folder} cannot be written: {error.strerror}") from error
    click.echo("\n" + translate("Written:"))
    for path in texts:
        click.echo(f"  {path}")
    click.echo(translate("Next:"))
    for command in _next_commands(folder, service):
        click.echo(f"  {command}")


def _from_options(choices: InitOptions) -> Setup:
    """Take the tokens from the environment, and check everything.

    Raises:
        BotError: A token or setting is wrong.
    """
    from bot.adapters import SETTINGS
    from bot.config.schema import variable
    from bot.config.setup import Setup
    from bot.engine import preflight

    keys = [("adapters", name, token) for name in PLATFORMS for token in SETTINGS[name].tokens]
    given = {key: value for key in keys if (value := os.environ.get(variable(key)))}
    platforms = choices.platforms or tuple(dict.fromkeys(name for _, name, _ in given))
    wanted = [key for key in keys if key[1] in platforms]
    if missing := [variable(key) for key in wanted if key not in given]:
        raise click.UsageError(f"--yes takes tokens from the environment: set {' and '.join(missing)}")
    settings = model_settings(choices.model or "demo", choices.url or "", choices.quantization or "none")
    if choices.language not in (None, "auto"):
        settings["conversation", "language"] = choices.language
    setup = Setup(settings, {key: given[key] for key in wanted})
    preflight(load(setup).engine)
    for name in () if choices.offline else platforms:
        try:
            check_platform(setup, name)
        except LoginRefused as error:
            raise LoginRefused(redacted(error, given.values())) from None
        except PlatformError as error:
            reason = redacted(error, given.values())
            click.echo(f"bot: {name} could not be reached, its token is kept without a check: {reason}", err=True)
    return setup


def _service_files(service: str, folder: Path, setup: Setup, secrets: Iterable[Path]) -> dict[Path, str]:
    from bot.config.services import compose_file, systemd_unit

    home = next((path.parent for path in secrets), None)
    match service:
        case "user" | "system":
            user = getpass.getuser() if service == "system" else None
            return {folder / "chatglm-bot.service": systemd_unit(folder, home, sys.executable, user)}
        case "compose":
            model = Path(str(setup.settings.get(("engine", "model"), "")))
            urls = str(setup.settings.get(("engine", "urls"), ""))
            text = compose_file(folder, home, model if model.is_absolute() else None, urls)
            return {folder / "chatglm-bot.compose.yaml": text}
        case _:
            return {}


def _next_commands(folder: Path, service: str) -> list[str]:
    unit, compose = (shlex.quote(str(folder / name)) for name in ("chatglm-bot.service", "chatglm-bot.compose.yaml"))
    match service:
        case "user":
            return [f"systemctl --user enable --now {unit}", "loginctl enable-linger"]
        case "system":
            return [f"sudo systemctl enable --now {unit}"]
        case "compose":
            return [f"docker compose -f {compose} up -d --build"]
        case _:
            return run_commands(folder, "check --online", "run")
