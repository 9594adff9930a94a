"""Threads that are opened for answers, where `answer = "thread"` asks for it."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from bot.chat.intake import Intake
from bot.chat.worker import Worker
from bot.delivery.pacer import Pacer
from bot.domain import ChannelKey, IncomingMessage, Kind
from bot.errors import PlatformUnavailable, RateLimited, StoreError, ThreadRefused
from bot.util.aio import finish_before_cancel
from bot.util.retry import Backoff, log_retry, retry

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Opens a thread for the answer to a question and returns its conversation.  The call is repeated after an
# error that passes; raises ThreadRefused, RateLimited, PlatformUnavailable.
OpenThread = Callable[[IncomingMessage], Awaitable[ChannelKey]]

# Seconds between retries: the first delay and the longest.
_FIRST_RETRY, _LONGEST_RETRY = 0.5, 30.0
# Seconds between two sentences to a channel about a thread that could not be opened.
_SENTENCE_INTERVAL = 3600.0
# Characters of a question that name its thread.
_LONGEST_TITLE = 60


class Threads:
    """Opens the threads of one platform."""

    def __init__(self, intake: Intake, pacer: Pacer, open_thread: OpenThread | None) -> None:
        self._intake = intake
        self._pacer = pacer
        self._open_thread = open_thread
        self._told: dict[ChannelKey, float] = {}  # until when a channel gets no other sentence

    async def place(self, worker: Worker) -> str:
        """Open a thread for an answer if its channel asks for that, and move the exchange into it.

        Return a sentence for the asker if no thread can be opened, or "".

        Raises:
            ClaimLost: Another worker goes on with the exchange.
        """
        message, opens = worker.exchange.message, self._open_thread
        if opens is None or not _may_move(worker):
            return ""
        clock, backoff = self._pacer.clock, Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        opened: list[ChannelKey] = []  # not stored yet: while the database fails, no other thread is opened

        async def place() -> str:
            await self._intake.choices.load()
            rule = self._intake.settings.value("answer", message)
            # A refusal is a reply to the message: it needs no thread.
            if not opened and (rule != "thread" or not await self._intake.answers.admits(worker)):
                return ""
            try:
                await self._pacer.call(
                    message.channel, lambda: finish_before_cancel(self._open(worker, opens, opened)), urgent=True
                )
            except ThreadRefused as refused:
                log.info("no thread was opened, the channel gets the answer", error=str(refused))
                return self._sentence(message, refused)
            return ""

        report = log_retry("thread not opened, retrying")
        return await retry(
            place, PlatformUnavailable, RateLimited, StoreError, clock=clock, backoff=backoff, on_failure=report
        )

    async def _open(self, worker: Worker, opens: OpenThread, opened: list[ChannelKey]) -> None:
        message = worker.exchange.message
        if not opened:
            with self._intake.metrics.platform_call(message.channel.platform, "thread", self._pacer.clock):
                opened.append(await opens(message))
        await self._intake.exchanges.move(worker, opened[0])

    def _sentence(self, message: IncomingMessage, refused: ThreadRefused) -> str:
        """Return the reason for the asker, or "" if the channel was given one lately."""
        channel, now = replace(message.channel, thread=None), self._pacer.clock.now()
        self._told = {each: until for each, until in self._told.items() if until > now}
        if not refused.sentence or channel in self._told:
            return ""
        self._told[channel] = now + _SENTENCE_INTERVAL
        return self._intake.settings.translator_for(message)(refused.sentence)


def _may_move(worker: Worker) -> bool:
    """Return whether a thread may be opened for the reply: it is the first one to a question outside threads."""
    exchange = worker.exchange
    message = exchange.message
    is_new = exchange.kind is Kind.CHAT and exchange.answer is None and not worker.parts and not exchange.is_unreadable
    return is_new and message.channel.thread is None and not message.is_direct


def title(question: IncomingMessage) -> str:
    r"""Return a name for the thread of a question: how it begins.

    >>> from datetime import UTC, datetime
    >>> from bot.domain import Author
    >>> mei = Author("discord", "1", "Mei")
    >>> title(IncomingMessage("1", ChannelKey("discord", "2"), mei, "What is\na shell?", datetime.now(UTC)))
    'What is a shell?'
    """
    words = " ".join(question.text.split()) or question.author.name or question.id
    return words if len(words) <= _LONGEST_TITLE else words[: _LONGEST_TITLE - 1].rstrip() + "…"
