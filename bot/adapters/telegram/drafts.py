"""Telegram drafts: a preview of the answer that expires unless it is refreshed."""

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

# Seconds; Telegram removes a draft after 30.
_REFRESH = 20.0


class Drafts:
    """A Preview for private chats, the only ones that have drafts.

    The answer is sent only when it is complete, by the ordinary delivery, so a crash
    during the preview leaves no message behind.
    """

    def __init__(self, bot: Bot, settings: TelegramSection, clock: Clock) -> None:
        self._bot = bot
        self._interval = settings.draft_interval
        self._clock = clock

    async def show(self, exchange: Exchange, stream: ReplyStream, pacer: Pacer) -> ReplyStream:
        is_new = exchange.kind is Kind.CHAT and exchange.answer is None and not exchange.parts
        if not is_new or not is_private(exchange.message.channel):
            return stream
        texts: list[str] = []
        known = ReplyStream()
        is_complete = asyncio.Event()
        previewing = asyncio.create_task(self._preview(exchange, texts, pacer, is_complete))
        try:
            async for event in stream:
                known.put(event)
                if isinstance(event, Delta):
                    texts.append(event.text)
            is_complete.set()
            await previewing
        finally:
            previewing.cancel()
            await asyncio.gather(previewing, return_exceptions=True)
        return known

    async def _preview(self, exchange: Exchange, texts: list[str], pacer: Pacer, is_complete: asyncio.Event) -> None:
        """Show as much of the answer's end as one message can hold, until it is complete."""
        shown, refresh_at = None, 0.0
        splitter = Splitter(TelegramFormat())

        def render() -> Rendered:
            pieces = splitter.chunks()
            # Telegram shows an empty draft as "thinking".
            return TelegramFormat().render(pieces[-1].text if pieces else "")

        async def call() -> None:
            if not is_complete.is_set():  # checked again: the pacer may have waited
                await self._call(exchange, now)

        while not is_complete.is_set():
            splitter.append("".join(texts))
            texts.clear()
            now = await asyncio.to_thread(render)  # hostile Markdown would stop the event loop
            if now != shown or self._clock.now() >= refresh_at:
                try:
                    await pacer.call(exchange.message.channel, call, urgent=True)
                    shown, refresh_at = now, self._clock.now() + _REFRESH
                except RateLimited:
                    continue  # the pacer has paused the channel
                except PlatformError as error:
                    log.info("telegram: preview stopped", exchange=exchange.id, error=str(error))
                    return
            await race(self._clock.sleep(self._interval), is_complete.wait())

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
