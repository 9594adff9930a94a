"""Checks and values that `bot init` and `bot setup` share: tokens, models, the memory of this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bot.errors import BotError, CheckpointError, EngineError

if TYPE_CHECKING:
    from bot.adapters.base import Finding
    from bot.chat.i18n import Translate
    from bot.config.schema import Config, Key
    from bot.config.setup import Setup
    from bot.engine.sizes import Machine

PLATFORMS = ("discord", "telegram", "slack")
TITLES: Mapping[str, str] = {"discord": "Discord", "telegram": "Telegram", "slack": "Slack"}
# Seconds for the list of models of a server that was typed, maybe on another machine.
SERVER_CALL = 10.0


def load(setup: Setup) -> Config:
    """Load what would be written.

    Raises:
        ConfigError: Lists all mistakes.
    """
    from bot.adapters import SETTINGS
    from bot.config.setup import check
    from bot.engine import BACKENDS

    return check(setup, SETTINGS, BACKENDS, os.environ).config


async def platform_findings(setup: Setup, name: str) -> AsyncIterator[Finding]:
    """Ask a platform about its bot; findings and log lines have no secrets.

    Raises:
        ConfigError, LoginRefused: A token is wrong.
        PlatformError: The platform cannot be reached.
    """
    from bot.adapters import findings
    from bot.config.schema import LogsSection
    from bot.observability.logging import Redaction, configure_logging

    config = load(setup)
    redact = Redaction(config.secrets)
    configure_logging(LogsSection(level="error"), redact)
    async for finding in findings(name, config.adapters[name]):
        values = {name: redact(value) for name, value in finding.values.items()}
        yield replace(finding, text=redact(finding.text), values=values)


def redacted(error: BotError, secrets: Collection[str]) -> str:
    from bot.observability.logging import Redaction

    return Redaction(secrets)(str(error))


def notes(setup: Setup, folder: Path, translate: Translate) -> list[str]:
    """Return a sentence for each variable that outranks what is written, and each further platform that runs."""
    from bot.adapters import SETTINGS
    from bot.config.setup import also_enabled, outranking

    note = translate(
        "{variable} is set in the environment and outranks these files: unset it before you start the bot."
    )
    sentences = [note.format(variable=name) for name in outranking(setup, os.environ)]
    note = translate("{platform} will run too, because its token is there: {place}")
    found = also_enabled(setup, folder, SETTINGS, os.environ)
    return sentences + [note.format(platform=TITLES[name], place=place) for name, place in found.items()]


def model_settings(model: str, url: str = "", quantization: str = "none", batch: int = 0) -> dict[Key, object]:
    """Return the settings of a model that differ from the defaults; a folder gets its full path."""
    settings: dict[Key, object] = {("engine", "urls"): [url]} if url else {}
    if model not in ("", "demo"):
        is_folder = not url and Path(model).expanduser().is_dir()
        settings["engine", "model"] = str(Path(model).expanduser().resolve()) if is_folder else model
    if quantization != "none":
        settings["engine", "quantization"] = quantization
    if batch:
        settings["engine", "max_batch_size"] = batch
    return settings


def measure() -> Machine | None:
    """Return what a local model could use; None without the packages of local models."""
    try:
        from bot.engine.sizes import measure_machine
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("bot."):
            raise
        return None
    return measure_machine(_default_batch())


def fitting_quantization(folder: str, kinds: Collection[str]) -> str:
    """Return the first quantization with which the model in a folder fits into this machine.

    Raises:
        EngineError: None does; it says why the first does not.
    """
    from bot.config.schema import EngineSection
    from bot.engine import preflight

    failure: EngineError | None = None
    for kind in kinds:
        try:
            preflight(EngineSection.model_validate({"model": folder, "quantization": kind}))
        except EngineError as error:
            failure = failure or error
            if isinstance(error, CheckpointError):
                break
        else:
            return kind
    assert failure is not None, "there are kinds"
    raise failure


def hub_settings(name: str, quantization: str | None, machine: Machine) -> dict[Key, object] | None:
    """Return the settings of a model that is not downloaded yet; None if it does not fit into this machine.

    The size of any other model than ChatGLM-6B is known after its download.
    """
    if "chatglm-6b" not in name.lower():
        return model_settings(name, "", quantization or "none")
    kind = quantization or max(machine.batches, key=lambda each: machine.batches[each])
    batch = dict(machine.batches).get(kind, 0)  # type: ignore[call-overload]  # a value of --quantization
    if not batch:
        return None
    return model_settings(name, "", kind, batch if batch < _default_batch() else 0)


def program() -> str:
    """Return how a shell starts this program: a virtual environment that is not active is not in PATH."""
    return "bot" if shutil.which("bot") else shlex.quote(str(Path(sys.executable).with_name("bot")))


def run_commands(folder: Path, *names: str) -> list[str]:
    """Return the commands `bot NAME` for the config.toml in `folder`."""
    config = "" if folder == Path.cwd() else f" --config {shlex.quote(str(folder / 'config.toml'))}"
    return [f"{program()} {name}{config}" for name in names]


def _default_batch() -> int:
    from bot.config.schema import EngineSection

    return EngineSection().max_batch_size
