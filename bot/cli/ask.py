"""`bot ask`: one answer on standard output."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bot.cli.common import load, progress_bar, redacted, with_config

if TYPE_CHECKING:
    from bot.config.schema import Config
    from bot.engine import Progress


@click.command()
@with_config
@click.option(
    "--model", default="engine", metavar="NAME", help="A model of [models.NAME]; by default that of [engine]."
)
@click.argument("question", nargs=-1)
def ask(path: Path | None, model: str, question: tuple[str, ...]) -> None:
    """Answer QUESTION and exit; text on standard input comes after it.

    Nothing is stored, and the conversation has this one question.
    """
    from rich.progress import DownloadColumn

    text = "\n\n".join(each for each in (_written(question), _piped()) if each)
    if not text:
        raise click.UsageError("there is no question: write it behind the command, or pipe it in")
    loaded = load(path)
    if model not in loaded.config.sections:
        raise click.UsageError(f"--model {model}: config.toml has only {', '.join(loaded.config.sections)}")
    with redacted(loaded), progress_bar(DownloadColumn()) as show:
        asyncio.run(_answer(loaded.config, model, text, partial(show, "Loading the model")))


def _written(question: tuple[str, ...]) -> str:
    text = " ".join(question)
    if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):  # an undecodable byte
        raise click.UsageError("the question is not text in UTF-8")
    return text


def _piped() -> str:
    """Return the text on standard input, which may be closed or a terminal.

    Raises:
        UsageError: It is something else than text.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise click.UsageError(
            "standard input is not text in UTF-8: convert it first, as with iconv or pdftotext"
        ) from None


async def _answer(config: Config, model: str, question: str, progress: Progress) -> None:
    from bot.chat.settings import ChatSettings
    from bot.domain import ChatMessage, ChatRequest, Delta
    from bot.engine import open_engine, preflight
    from bot.engine.router import ModelRouter
    from bot.engine.shared import base_of
    from bot.util.clock import MonotonicClock
    from bot.util.text import clean

    # Its fallback would have to be loaded beside it.
    sections = {
        name: config.sections[name].model_copy(update={"fallback": ""})
        for name in (base_of(config.sections, model), model)
    }
    system = config.conversation.system_prompt
    opening = [ChatMessage("system", system)] if system else []
    messages = (*opening, ChatMessage("user", question))
    request = ChatRequest(messages, ChatSettings.of(config).params, model=model)
    models = ModelRouter(sections, open_engine, MonotonicClock(), check=preflight, progress=progress)
    held = ""  # of a line's end that comes in two pieces
    async with models as engine, aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, Delta):
                text = held + event.text
                held = "\r" if text.endswith("\r") else ""
                click.echo(clean(text.removesuffix("\r")), nl=False)  # a terminal obeys control characters
    click.echo()
