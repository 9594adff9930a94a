"""Telegram drafts: a preview of the answer that expires unless it is refreshed."""

import asyncio

import structlog
from telegram import Bot
from telegram.error import EndPointNotFound

from bot.adapters.telegram.client import map_errors
from bot.adapters.telegram.markup import entities_of
from bot.adapters.telegram.messenger import TelegramMessenger, is_private, thread_id
from bot.adapters.telegram.rich import rich_message_of
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.stream import ReplyStream
from bot.delivery.markdown.format import Format, Rendered, simpler_formats
from bot.delivery.markdown.split import Splitter, join
from bot.delivery.pacer import Pacer
from bot.domain import Delta, Exchange, Kind
from bot.errors import MarkupRefused, PlatformError, PlatformUnavailable, RateLimited
from bot.util.aio import race
from bot.util.clock import Clock
from bot.util.retry import Backoff

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds; Telegram removes a draft after 30.
_REFRESH = 20.0
# Calls that may fail one after the other, and the longest pause between them in seconds.
_MOST_FAILURES = 3
_LONGEST_RETRY = 5.0
# A button that stops the answer; the draft stays until the message takes its place.  Servers older than Bot API 10.3
# ignore both.
_STOPPABLE = {"can_stop": True, "keep_on_stop": True}


class Drafts:
    """A Preview for private chats, the only ones that have drafts.

    The answer is sent only when it is complete, by the ordinary delivery, so a crash
    during the preview leaves no message behind.  Where drafts fail, the ordinary delivery shows
    the answer as it grows.
    """

    def __init__(self, bot: Bot, settings: TelegramSection, clock: Clock, messenger: TelegramMessenger) -> None:
        self._bot = bot
        self._messenger = messenger
        self._interval = settings.draft_interval
        self._clock = clock

    async def show(self, exchange: Exchange, stream: ReplyStream, pacer: Pacer) -> ReplyStream:
        is_new = exchange.kind is Kind.CHAT and exchange.answer is None and not exchange.parts
        if not is_new or not is_private(exchange.message.channel):
            return stream
        texts: list[str] = []
        known = ReplyStream()
        is_complete = asyncio.Event()

        async def read() -> None:
            async for event in stream:
                known.put(event)
                if isinstance(event, Delta):
                    texts.append(event.text)
            is_complete.set()

        previewing = asyncio.create_task(self._preview(exchange, texts, pacer, is_complete))
        reading = asyncio.create_task(read())
        try:
            await asyncio.wait([reading, previewing], return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                await previewing
        finally:
            for task in (reading, previewing):
                task.cancel()
            await asyncio.gather(reading, previewing, return_exceptions=True)
        stream.put_back(known.drain())
        return stream

    async def _preview(self, exchange: Exchange, texts: list[str], pacer: Pacer, is_complete: asyncio.Event) -> None:
        """Show as much of the answer's end as one message can hold, until it is complete or drafts fail."""
        shown, refresh_at = None, 0.0
        format: Format = self._messenger.format
        splitter, formats = Splitter(format), iter(simpler_formats(format))
        backoff, failures = Backoff(self._interval, _LONGEST_RETRY), 0

        def render() -> Rendered:
            pieces = splitter.chunks()
            # Telegram shows an empty draft as "thinking".
            return format.render(pieces[-1].text if pieces else "")

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
                    shown, refresh_at, failures = now, self._clock.now() + _REFRESH, 0
                    backoff.succeeded()
                except RateLimited:
                    continue  # the pacer has paused the channel
                except MarkupRefused as error:
                    simpler = next(formats, None)
                    if simpler is None:
                        log.info("telegram: preview stopped", exchange=exchange.id, error=str(error))
                        return
                    text, format = join(splitter.chunks()), simpler
                    splitter = Splitter(format)
                    splitter.append(text)
                    continue
                except PlatformError as error:
                    failures += 1
                    if isinstance(error, PlatformUnavailable) and failures < _MOST_FAILURES:
                        await race(self._clock.sleep(backoff.after(error)), is_complete.wait())
                        continue
                    log.info("telegram: preview stopped", exchange=exchange.id, error=str(error))
                    return
            await race(self._clock.sleep(self._interval), is_complete.wait())

    async def _call(self, exchange: Exchange, text: Rendered) -> None:
        channel = exchange.message.channel
        chat, topic, rich = int(channel.channel), thread_id(channel), rich_message_of(text)
        with map_errors():
            if rich is None:
                await self._bot.send_message_draft(
                    chat,
                    draft_id=exchange.id,
                    text=text.text,
                    message_thread_id=topic,
                    entities=entities_of(text),
                    api_kwargs=_STOPPABLE,
                )
                return
            draft = {"chat_id": chat, "draft_id": exchange.id, "rich_message": rich.facts} | _STOPPABLE
            try:
                await self._bot.do_api_request(
                    "sendRichMessageDraft", draft if topic is None else draft | {"message_thread_id": topic}
                )
            except EndPointNotFound as error:
                raise MarkupRefused("the Bot API server does not know rich drafts") from error
