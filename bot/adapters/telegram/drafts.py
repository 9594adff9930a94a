"""Telegram's drafts: a preview of the growing answer that vanishes by itself when it is not kept alive."""

import asyncio

import structlog
from telegram import Bot

from bot.adapters.telegram.client import map_errors
from bot.adapters.telegram.markup import TelegramFormat
from bot.adapters.telegram.messenger import entities_of, is_private, thread_id
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.stream import ReplyStream
from bot.delivery.markdown.format import Rendered
from bot.delivery.markdown.split import Splitter
from bot.delivery.pacer import Pacer
from bot.domain import Delta, Exchange, Kind
from bot.errors import PlatformError, RateLimited
from bot.util.aio import race
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Telegram takes a draft away after 30 s.
_REFRESH = 20.0


class Drafts:
    """A Preview for private chats, the only ones that have drafts.

    Nothing of the answer is sent before all of it is known.  What then follows is the
    delivery of any answer, so a crash before it leaves nothing that could be said twice.
    """

    def __init__(self, bot: Bot, settings: TelegramSection, clock: Clock) -> None:
        self._bot = bot
        self._interval = settings.draft_interval
        self._clock = clock

    async def show(self, exchange: Exchange, stream: ReplyStream, pacer: Pacer) -> ReplyStream:
        is_new = exchange.kind is Kind.CHAT and exchange.answer is None and not exchange.parts
        if not is_new or not is_private(exchange.message.channel):
            return stream
        splitter = Splitter(TelegramFormat())
        known = ReplyStream()
        is_over = asyncio.Event()
        drawing = asyncio.create_task(self._draw(exchange, splitter, pacer, is_over))
        try:
            async for event in stream:
                known.put(event)
                if isinstance(event, Delta):
                    splitter.append(event.text)
            is_over.set()
            await drawing
        finally:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)
        return known

    async def _draw(self, exchange: Exchange, splitter: Splitter, pacer: Pacer, is_over: asyncio.Event) -> None:
        """Show the end of the answer, as far as one message can, until the answer is over."""
        shown, until = None, 0.0

        async def call() -> None:
            if not is_over.is_set():  # it may be by now: the channel was told to wait
                await self._call(exchange, now)

        while not is_over.is_set():
            pieces = splitter.chunks()
            # An empty draft says that the bot is thinking.
            now = TelegramFormat().render(pieces[-1].text if pieces else "")
            if now != shown or self._clock.now() >= until:
                try:
                    await pacer.call(exchange.message.channel, call, urgent=True)
                    shown, until = now, self._clock.now() + _REFRESH
                except RateLimited:
                    continue  # the pacer lets nobody through before its time
                except PlatformError as error:
                    log.info("no draft is shown", exchange=exchange.id, error=str(error))
                    return
            await race(self._clock.sleep(self._interval), is_over.wait())

    async def _call(self, exchange: Exchange, text: Rendered) -> None:
        channel = exchange.message.channel
        with map_errors():
            await self._bot.send_message_draft(
                int(channel.channel),
                draft_id=exchange.id,
                text=text.text,
                message_thread_id=thread_id(channel),
                entities=entities_of(text),
            )
