"""A terminal: the smallest adapter, and the model for a new one."""

import asyncio
import io
import os
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import TextIO, assert_never
from uuid import uuid4

from prompt_toolkit import PromptSession
from rich.console import Console
from rich.status import Status

from bot.chat.access import OPERATOR
from bot.chat.exchanges import Worker
from bot.chat.i18n import finish_note, waiting
from bot.chat.intake import Intake
from bot.config.schema import AdapterSection
from bot.domain import ChannelKey, Delta, Exchange, Finished, IncomingMessage, Notice, Queued
from bot.errors import PlatformUnavailable, StoreError
from bot.util.aio import race
from bot.util.clock import Clock, MonotonicClock
from bot.util.retry import Backoff
from bot.util.text import clean

CHANNEL = ChannelKey("console", "terminal")
LEAVE = frozenset({"stop", "exit", "quit"})

# Seconds between two tries to write a question down: the first, and the longest.
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 10.0


def open_adapter(settings: AdapterSection, clock: Clock) -> "ConsoleAdapter":
    for stream in (sys.stdin, sys.stdout):
        # What is not UTF-8 shall not end the chat.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Python has none where the shell closed it (<&-): that is the end of the input.
    return ConsoleAdapter(sys.stdin or io.StringIO(), sys.stdout, clock)


class ConsoleAdapter:
    """One person's chat: lines in, answers out, one after the other.

    On a terminal with line editing and a sign of life while the model thinks; else
    plain, so that it can be scripted.
    """

    def __init__(self, source: TextIO, target: TextIO, clock: Clock | None = None) -> None:
        self._source = source
        self._clock = clock or MonotonicClock()
        # highlight would colour numbers in the answers; soft_wrap leaves lines to the terminal.
        self._screen = Console(file=target, highlight=False, soft_wrap=True)

    @property
    def is_connected(self) -> bool:
        return True

    async def run(self, intake: Intake) -> None:
        for exchange in await intake.recover(CHANNEL.platform):
            self._print(f"> {exchange.message.text}", style="dim")
            await self._answer(intake, exchange)
        if self._source.isatty():
            self._print("/help lists the commands; Ctrl-C stops an answer; stop leaves.", style="dim")
        async with aclosing(self._lines()) as lines:
            async for line in lines:
                if line.strip().lower() in LEAVE:
                    return
                accepted = await self._accepted(intake, _message(line))
                if accepted is not None:
                    await self._answer(intake, accepted)

    async def _accepted(self, intake: Intake, message: IncomingMessage) -> Exchange | None:
        """Keep it as soon as the database takes it; None if Ctrl-C gives it up before."""
        translate, told, wait = intake.settings.translator_for(message), "", Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        given_up = asyncio.Event()
        # In a pipe nobody can ask again: there Ctrl-C ends the program.
        with _on_interrupt(given_up.set) if self._source.isatty() else nullcontext():
            while not given_up.is_set():
                try:
                    return await intake.accept(message)
                except StoreError as error:
                    if not told:
                        self._print(
                            translate("I can't save messages right now. Yours is queued and will be answered."),
                            style="dim",
                        )
                    if str(error) != told:  # the operator, who sits here, can do something about it
                        told = str(error)
                        self._print(told, style="dim")
                await race(self._clock.sleep(wait.after_failure()), given_up.wait())
        return None

    async def _answer(self, intake: Intake, exchange: Exchange) -> None:
        task = intake.exchanges.start(exchange, partial(self._show, intake))
        if task is not None:
            with _on_interrupt(lambda: intake.exchanges.stop(exchange)):
                await task

    async def _show(self, intake: Intake, worker: Worker) -> None:
        """Print the reply as it grows: the model's text, then the bot's own words below it."""
        exchange = worker.exchange
        translate = intake.settings.translator_for(exchange.message)
        notices: list[str] = []
        is_line_open = False
        with self._spinner() as spinner:
            async with intake.answers.stream(exchange) as stream:
                async for event in stream:
                    match event:
                        case Queued():
                            if spinner is not None:
                                spinner.update(waiting(event, translate))
                        case Delta():
                            if spinner is not None:
                                spinner.stop()
                            self._print(event.text, end="")
                            is_line_open = not event.text.endswith("\n")
                        case Notice():
                            notices.append(event.text)
                        case Finished(reason):
                            if note := finish_note(reason, translate):
                                notices.append(note)
                        case _:
                            assert_never(event)
        if is_line_open:
            self._print("")
        for notice in notices:
            self._print(notice, style="dim")
        await intake.exchanges.complete(exchange)

    def _print(self, text: str, *, end: str = "\n", style: str | None = None) -> None:
        try:
            self._screen.print(clean(text), end=end, style=style, markup=False)
        except BrokenPipeError:
            raise  # whoever read has seen enough
        except OSError as error:
            raise PlatformUnavailable(f"standard output cannot be written to: {error.strerror}") from error

    def _spinner(self) -> AbstractContextManager[Status | None]:
        if self._screen.is_terminal:
            return Status("…", console=self._screen)
        return nullcontext()

    async def _lines(self) -> AsyncGenerator[str, None]:
        if self._source.isatty():
            session: PromptSession[str] = PromptSession()
            while True:
                try:
                    yield await session.prompt_async("> ")
                except EOFError:
                    return
                except KeyboardInterrupt:
                    if not session.default_buffer.text:
                        return
        else:
            loop = asyncio.get_running_loop()
            read: asyncio.Queue[str] = asyncio.Queue()
            # A daemon, for nothing can wake a thread that waits for a line.
            threading.Thread(target=_read, args=(self._source, loop, read), daemon=True).start()
            while line := await read.get():
                yield line


def _read(source: TextIO, loop: asyncio.AbstractEventLoop, read: "asyncio.Queue[str]") -> None:
    """Hand each line to the event loop, at the end an empty one."""
    while True:
        line = source.readline()
        if loop.is_closed():
            return
        loop.call_soon_threadsafe(read.put_nowait, line)
        if not line:
            return


@contextmanager
def _on_interrupt(stop: Callable[[], object]) -> Iterator[None]:
    """Let Ctrl-C end the answer and not the program; another one, where that takes its time, leaves."""
    loop, chat = asyncio.get_running_loop(), asyncio.current_task()
    assert chat is not None

    def interrupted() -> None:
        loop.add_signal_handler(signal.SIGINT, chat.cancel)
        stop()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _message(line: str) -> IncomingMessage:
    return IncomingMessage(
        id=uuid4().hex,
        channel=CHANNEL,
        author=OPERATOR,
        text=line.rstrip("\n"),
        sent_at=datetime.now(UTC),
        is_direct=True,
        locale=_locale(),
    )


def _locale() -> str | None:
    """Chinese, where the terminal is set to it; else each message shows its language by its script.

    English is no answer: most servers are set to it, whoever sits there.
    """
    named = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "")
    return "zh" if named.lower().startswith("zh") else None
