"""Telegram updates: store each one before the next poll confirms it."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import assert_never

import structlog
from telegram import Bot, Update, User
from telegram.error import InvalidToken

from bot.adapters.inbox import Inbox
from bot.adapters.malformed import PARSE_ERRORS
from bot.adapters.telegram.client import check_token, map_errors
from bot.adapters.telegram.parse import Addressee, ButtonEvent, ChannelMigrated, MessageEvent, parse
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.intake import Intake
from bot.domain import IncomingMessage
from bot.errors import PlatformError, PlatformUnavailable, StoreError
from bot.observability.logging import log_context
from bot.util.aio import BackgroundTasks

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# The kinds of updates to request; Telegram does not send the others.
_UPDATES = (Update.MESSAGE, Update.EDITED_MESSAGE, Update.CALLBACK_QUERY)
# The most updates of one poll; with fewer, the backlog is complete.
_PAGE = 100
# Telegram holds a poll open this long while there are no updates.
_POLL = timedelta(seconds=25)


@dataclass(eq=False)
class TelegramHandlers:
    """Polls for updates and hands them to the inbox in order."""

    _bot: Bot
    _me: User
    _settings: TelegramSection
    _intake: Intake
    _inbox: Inbox
    _background: BackgroundTasks
    _offset: int | None = None
    _album: str | None = None

    async def poll(self) -> None:
        """Poll once and store the updates; after the backlog's last page start all replies owed.

        Raises:
            LoginRefused: The token is no longer valid.
            PlatformError: The poll failed.
            StoreError: An update is not stored; Telegram sends it and those after it again.
        """
        updates = await self._get_updates()
        # Telegram has confirmed the offset with this poll.  It must not be sent again: after a week
        # without updates their ids restart at random, maybe below it.
        self._offset = None
        for number, update in enumerate(updates):
            try:
                with log_context(update=update.update_id):
                    await self._inbox.process(partial(self._handle, update))
            except StoreError:
                self._inbox.notify_delayed(self._questions(updates[number:]))
                raise
            self._offset = update.update_id + 1
        if self._inbox.is_backfilling and len(updates) < _PAGE:
            await self._inbox.recover()

    async def _get_updates(self) -> tuple[Update, ...]:
        with map_errors():
            try:
                return await self._bot.get_updates(
                    offset=self._offset,
                    limit=_PAGE,
                    timeout=timedelta() if self._inbox.is_backfilling else _POLL,
                    allowed_updates=_UPDATES,
                )
            except InvalidToken as error:
                await check_token(self._bot.get_me)
                raise PlatformUnavailable("Telegram answers 404 or 401 to getUpdates, but accepts the token") from error

    def _questions(self, updates: Iterable[Update]) -> Iterator[IncomingMessage]:
        for update in updates:
            with suppress(*PARSE_ERRORS):
                event = parse(update, self._me)
                if isinstance(event, MessageEvent) and event.to is Addressee.BOT and not event.is_edit:
                    yield event.message

    async def _handle(self, update: Update) -> None:
        match parse(update, self._me):
            case MessageEvent() as event if event.is_edit:
                if event.to is not Addressee.ANOTHER_BOT:
                    await self._inbox.edit(event.message)
            case MessageEvent() as event:
                if await self._is_for_bot(event):
                    await self._inbox.accept(event.message)
                    self._album = event.album
            case ButtonEvent() as event:
                notice = await self._inbox.press(event.channel, event.message_id, event.action, event.by)
                self._background.start(self._acknowledge(event, notice))
            case ChannelMigrated(channel, to):
                await self._intake.rename_channel(channel, to)
            case None:
                pass
            case unknown:
                assert_never(unknown)

    async def _is_for_bot(self, event: MessageEvent) -> bool:
        # The pictures of an album arrive one by one, and at most one of them has a text.
        if event.album is not None and event.album == self._album and not event.message.text:
            return False
        if event.to is Addressee.NOBODY:
            channel = event.message.channel
            return self._settings.threads and channel.thread is not None and await self._intake.has_history(channel)
        return event.to is Addressee.BOT

    async def _acknowledge(self, press: ButtonEvent, notice: str) -> None:
        try:
            with map_errors():
                await self._bot.answer_callback_query(press.query, notice or None)
        except PlatformError as error:
            log.info("button press not acknowledged", error=str(error))  # it may be too old
