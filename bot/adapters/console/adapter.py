"""The terminal: the smallest adapter, and an example for new ones."""

import asyncio
import io
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TextIO, assert_never
from uuid import uuid4

from bot import __version__
from bot.adapters.console.keyboard import Keyboard
from bot.adapters.console.screen import Screen
from bot.adapters.console.settings import ConsoleSection
from bot.chat.access import OPERATOR
from bot.chat.commands import parse
from bot.chat.i18n import demo_note, finish_note, thinking, waiting
from bot.chat.intake import Intake
from bot.chat.worker import Worker
from bot.config.schema import AdapterSection
from bot.domain import ChannelKey, Delta, Exchange, Finished, IncomingMessage, Notice, Queued, Thought
from bot.errors import StoreDamaged, StoreError
from bot.util.aio import race
from bot.util.clock import Clock, MonotonicClock
from bot.util.retry import Backoff
from bot.util.terminal import terminal_language

CHANNEL = ChannelKey("console", "terminal")
LEAVE = frozenset({"exit", "quit"})
# A script may also end with "stop": its answers come one at a time, so there is none to stop.
LEAVE_PIPE = LEAVE | {"stop"}

# Seconds between attempts to store a question: the first delay and the longest.
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 10.0


def open_adapter(settings: AdapterSection, clock: Clock) -> "ConsoleAdapter":
    assert isinstance(settings, ConsoleSection)
    for stream in (sys.stdin, sys.stdout):
        # Bytes that are not UTF-8 must not end the chat.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # sys.stdin is None if the shell closed it (<&-), which is the end of the input.
    history = Path(settings.history) if settings.history else None
    return ConsoleAdapter(sys.stdin or io.StringIO(), sys.stdout, clock, history)


class ConsoleAdapter:
    """A chat with one person: reads questions and prints answers, one at a time.

    On a terminal with line editing and Markdown; in a pipe plain, for scripts.
    """

    def __init__(self, source: TextIO, target: TextIO, clock: Clock | None = None, history: Path | None = None) -> None:
        self._source = source
        self._clock = clock or MonotonicClock()
        self._screen = Screen(target, is_plain=not source.isatty())
        self._history = history
        self._keyboard: Keyboard | None = None

    @property
    def is_connected(self) -> bool:
        return True

    async def run(self, intake: Intake) -> None:
        if self._source.isatty():
            await self._chat(intake)
        else:
            await self._serve_pipe(intake)

    async def _serve_pipe(self, intake: Intake) -> None:
        await self._answer_owed(intake)
        async with aclosing(_lines(self._source)) as lines:
            async for line in lines:
                if line.strip().lower() in LEAVE_PIPE:
                    return
                await self._ask(intake, line.rstrip("\n"))

    async def _chat(self, intake: Intake) -> None:
        translate = intake.settings.translator_for(_message(""))
        ascii_only = self._screen.mark.isascii()
        self._keyboard = keyboard = Keyboard(self._history, translate, ascii_only=ascii_only)
        self._screen.say(f"chatglm-bot {__version__}")
        if note := demo_note(intake.engine.info.model, translate):
            self._screen.say(note)
        self._screen.say(
            translate(
                "/help lists the commands. Alt-Enter begins a new line. stop or Ctrl-C stops an answer, exit leaves."
            )
        )
        await self._answer_owed(intake)
        while True:
            self._screen.say("")
            try:
                question = await keyboard.question()
            except (EOFError, KeyboardInterrupt):
                return
            if question.strip().lower() in LEAVE:
                return
            await self._ask(intake, question)
            if _deletes(question):
                keyboard.forget()

    async def _answer_owed(self, intake: Intake) -> None:
        for exchange in await intake.recover(CHANNEL.platform):
            self._screen.say(f"> {exchange.message.text}")
            await self._answer(intake, exchange)

    async def _ask(self, intake: Intake, question: str) -> None:
        accepted = await self._accepted(intake, _message(question))
        if accepted is not None:
            await self._answer(intake, accepted)

    async def _accepted(self, intake: Intake, message: IncomingMessage) -> Exchange | None:
        """Retry until the message is stored; None if Ctrl-C gives it up before."""
        translate, told, wait = intake.settings.translator_for(message), "", Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        given_up = asyncio.Event()
        # In a pipe a question cannot be asked again, so Ctrl-C ends the program there.
        with self._on_stop(given_up.set) if self._keyboard is not None else nullcontext():
            while not given_up.is_set():
                try:
                    return await intake.accept(message)
                except StoreDamaged:
                    raise  # it would be queued for ever
                except StoreError as error:
                    if not told:
                        self._screen.say(
                            translate("I can't save messages right now. Yours is queued and will be answered.")
                        )
                    if str(error) != told:  # the reader is the operator, who can act on it
                        told = str(error)
                        self._screen.say(told)
                await race(self._clock.sleep(wait.after_failure()), given_up.wait())
        return None

    async def _answer(self, intake: Intake, exchange: Exchange) -> None:
        task = intake.exchanges.start(exchange, partial(self._show, intake))
        if task is not None:
            with self._on_stop(lambda: intake.exchanges.stop(exchange)):
                await task

    async def _show(self, intake: Intake, worker: Worker) -> None:
        """Print the reply as it grows: the model's text, then the bot's notices."""
        exchange = worker.exchange
        translate = intake.settings.translator_for(exchange.message)
        notices: list[str] = []
        has_text = False
        with self._screen.reply() as reply:
            async with intake.answers.stream(exchange) as stream:
                async for event in stream:
                    match event:
                        case Queued():
                            reply.wait(waiting(event, translate))
                        case Thought():
                            reply.wait(thinking(event, translate))
                        case Delta():
                            has_text = True
                            reply.add(event.text)
                        case Notice():
                            notices.append(event.text)
                        case Finished(reason):
                            if note := finish_note(reason, translate):
                                notices.append(note)
                        case _:
                            assert_never(event)
        for notice in notices:
            self._screen.notice(notice, below_answer=has_text)
        await intake.exchanges.complete(exchange)

    @contextmanager
    def _on_stop(self, stop: Callable[[], object]) -> Iterator[None]:
        """Let Ctrl-C, or on a terminal the line "stop", call `stop`; a second Ctrl-C cancels the chat."""
        with _on_interrupt(stop) as interrupt:
            typing = nullcontext() if self._keyboard is None else self._keyboard.during_answer(stop, interrupt)
            with typing:
                yield


async def _lines(source: TextIO) -> AsyncGenerator[str, None]:
    loop = asyncio.get_running_loop()
    read: asyncio.Queue[str] = asyncio.Queue()
    # A daemon: nothing can wake a thread that waits for a line.
    threading.Thread(target=_read, args=(source, loop, read), daemon=True).start()
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
def _on_interrupt(stop: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Let Ctrl-C call `stop`; a second one cancels the chat.  Yield the handler."""
    loop, chat = asyncio.get_running_loop(), asyncio.current_task()
    assert chat is not None
    is_stopped = False

    def interrupted() -> None:
        nonlocal is_stopped
        if is_stopped:
            chat.cancel()
        is_stopped = True
        stop()

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield interrupted
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _message(text: str) -> IncomingMessage:
    return IncomingMessage(
        id=uuid4().hex,
        channel=CHANNEL,
        author=OPERATOR,
        text=text,
        sent_at=datetime.now(UTC),
        is_direct=True,
        locale=terminal_language(),
    )


def _deletes(question: str) -> bool:
    """Return whether this deletes what was said, of which the history of inputs has a copy."""
    called = parse(question)
    return called is not None and called[0].name in ("clear", "forget")
