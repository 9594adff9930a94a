"""The terminal: the smallest adapter, and an example for new ones."""

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
from bot.chat.i18n import finish_note, thinking, waiting
from bot.chat.intake import Intake
from bot.chat.worker import Worker
from bot.config.schema import AdapterSection
from bot.domain import ChannelKey, Delta, Exchange, Finished, IncomingMessage, Notice, Queued, Thought
from bot.errors import PlatformUnavailable, StoreError
from bot.util.aio import race
from bot.util.clock import Clock, MonotonicClock
from bot.util.retry import Backoff
from bot.util.text import clean

CHANNEL = ChannelKey("console", "terminal")
LEAVE = frozenset({"stop", "exit", "quit"})

# Seconds between attempts to store a question: the first delay and the longest.
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 10.0


def open_adapter(settings: AdapterSection, clock: Clock) -> "ConsoleAdapter":
    for stream in (sys.stdin, sys.stdout):
        # Bytes that are not UTF-8 must not end the chat.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # sys.stdin is None if the shell closed it (<&-), which is the end of the input.
    return ConsoleAdapter(sys.stdin or io.StringIO(), sys.stdout, clock)


class ConsoleAdapter:
    """A chat with one person: reads lines and prints answers, one at a time.

    On a terminal with line editing and a spinner; in a pipe plain, for scripts.
    """

    def __init__(self, source: TextIO, target: TextIO, clock: Clock | None = None) -> None:
        self._source = source
        self._clock = clock or MonotonicClock()
        # highlight would colour numbers in answers; soft_wrap lets the terminal break lines.
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
        """Retry until the message is stored; None if Ctrl-C gives it up before."""
        translate, told, wait = intake.settings.translator_for(message), "", Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        given_up = asyncio.Event()
        # In a pipe a question cannot be asked again, so Ctrl-C ends the program there.
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
                    if str(error) != told:  # the reader is the operator, who can act on it
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
        """Print the reply as it grows: the model's text, then the bot's notices."""
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
                        case Thought():
                            if spinner is not None:
                                spinner.update(thinking(event, translate))
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
            raise  # the reader of the pipe has closed it
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
            # A daemon: nothing can wake a thread that waits for a line.
            threading.Thread(target=_read, args=(self._source, loop, read), daemon=True).start()
            while line := await read.get():
                yield line


def _read(source: TextIO, loop: asyncio.AbstractEventLoop, read: "asyncio.Queue[str]") -> None:
    """Pass each line to the event loop, and an empty one at the end."""
    while True:
        line = source.readline()
        if loop.is_closed():
            return
        loop.call_soon_threadsafe(read.put_nowait, line)
        if not line:
            return


@contextmanager
def _on_interrupt(stop: Callable[[], object]) -> Iterator[None]:
    """Let Ctrl-C call `stop`; a second one cancels the chat."""
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
    """Return "zh" if the terminal is set to Chinese; else the script of each message decides.

    An English terminal says nothing: most servers are set to it.
    """
    named = next((value for name in ("LC_ALL", "LC_MESSAGES", "LANG") if (value := os.environ.get(name))), "")
    return "zh" if named.lower().startswith("zh") else None
