"""Telegram updates: store each one before the next poll confirms it."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import assert_never

import structlog
from telegram import Bot, ChatMember, InlineQueryResultsButton, Update, User
from telegram.error import InvalidToken

from bot.adapters.inbox import Inbox
from bot.adapters.malformed import PARSE_ERRORS
from bot.adapters.telegram.client import RAW, RECEIVED_AT, check_token, map_errors
from bot.adapters.telegram.context import TelegramContext
from bot.adapters.telegram.forms import FormEvent, keyboard
from bot.adapters.telegram.guests import is_guest
from bot.adapters.telegram.messenger import NO_RIGHT, TelegramMessenger
from bot.adapters.telegram.parse import (
    Addressee,
    ButtonEvent,
    ChannelMigrated,
    DraftStopped,
    InlineQuery,
    MessageEvent,
    ReactionEvent,
    UserEvent,
    parse,
)
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.i18n import gettext_noop
from bot.chat.intake import Intake
from bot.chat.settings_form import outdated
from bot.domain import IncomingMessage
from bot.errors import AccessDenied, ChannelGone, MarkupRefused, PlatformError, PlatformUnavailable, StoreError
from bot.observability.logging import log_context
from bot.util.aio import BackgroundTasks
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# The kinds of updates to request; Telegram does not send the others.
_UPDATES = (
    *(Update.MESSAGE, Update.EDITED_MESSAGE, Update.CALLBACK_QUERY, Update.GUEST_MESSAGE, Update.INLINE_QUERY),
    "stopped_message_generation",
)
# Reactions, which Telegram sends in groups if the bot is an administrator.
_VOTES = (Update.MESSAGE_REACTION,)
# The most updates of one poll; with fewer, the backlog is complete.
_PAGE = 100
# Telegram holds a poll open this long while there are no updates.
_POLL = timedelta(seconds=25)
# Seconds between two polls that bring nothing new: a broken server may not hold them open.
_IDLE_POLL = 1.0
# Characters of the notice that answers a button press.
_LONGEST_NOTICE = 200
_PRIVACY = gettext_noop(
    "Privacy mode hides messages from me, perhaps even some that mention me: send /setprivacy to @BotFather, choose "
    "Disable, and add me to the group again."
)
_NO_TOPICS = gettext_noop("This group has no topics, so I answer mentions here. Its settings can turn topics on.")
_ASK = gettext_noop("Ask me in the chat")
# Telegram sends it behind /start where the button of an inline query opens the chat.
_START_PARAMETER = "ask"
# The most answers to inline queries at a time.
_INLINE_CALLS = 8
# A smaller difference between the host's clock and Telegram's is none: the header counts seconds.
_CLOCK_SKEW = timedelta(minutes=1)


@dataclass(eq=False)
class TelegramHandlers:
    """Polls for updates and hands them to the inbox in order."""

    _bot: Bot
    _me: User
    _settings: TelegramSection
    _intake: Intake
    _inbox: Inbox
    _messenger: TelegramMessenger
    _background: BackgroundTasks
    _clock: Clock
    _context: TelegramContext
    _last_page: frozenset[int] = frozenset()
    _offset: int | None = None
    _inline_calls: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_INLINE_CALLS))

    async def is_manager(self, message: IncomingMessage) -> bool:
        """Return whether the author is an administrator of the group.

        Raises:
            PlatformError: Telegram cannot be asked.
        """
        chat, author = message.channel.channel, message.author.id
        if is_guest(message.channel):
            return False  # Telegram says nothing about a chat to a guest
        if author == chat:
            return True  # an administrator who writes anonymously
        try:
            with map_errors():
                member = await self._bot.get_chat_member(int(chat), int(author))
        except (AccessDenied, ChannelGone, MarkupRefused):
            return False  # it knows no such member
        return member.status == ChatMember.OWNER  # so is every administrator here, see client.py

    async def missing(self, message: IncomingMessage, wanted: str) -> list[str]:
        """Return what the bot lacks in a group to answer "all", "triggers", or each mention in a "thread".

        Raises:
            PlatformError: Telegram cannot be asked.
        """
        if is_guest(message.channel):
            return []
        chat, missing = int(message.channel.channel), []
        with map_errors():
            own = await self._bot.get_chat_member(chat, self._me.id)
            # Administrators, which have the rank of an owner here, get all messages.
            if not (self._me.can_read_all_group_messages or own.status == ChatMember.OWNER):
                missing.append(_PRIVACY)
            if wanted == "thread" and not (await self._bot.get_chat(chat)).is_forum:
                missing.append(_NO_TOPICS)
            elif wanted == "thread" and not own.api_kwargs["can_manage_topics"]:
                missing.append(NO_RIGHT)
        return missing

    async def poll(self) -> None:
        """Poll once and store the updates; after the backlog's last page start all replies owed.

        Raises:
            LoginRefused: The token is no longer valid.
            PlatformError: The poll failed.
            StoreError: An update is not stored; Telegram sends it and those after it again.
        """
        began = self._clock.now()
        updates = await self._get_updates()
        page = frozenset(update.update_id for update in updates)
        if not self._inbox.is_backfilling and page <= self._last_page:
            await self._clock.sleep(began + _IDLE_POLL - self._clock.now())
        self._last_page = page
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
            await asyncio.sleep(0)  # a page of updates that need no store must not be one step of the event loop
        if self._inbox.is_backfilling and len(updates) < _PAGE:
            await self._inbox.recover()

    async def _get_updates(self) -> tuple[Update, ...]:
        with map_errors():
            try:
                return await self._bot.get_updates(
                    offset=self._offset,
                    limit=_PAGE,
                    timeout=timedelta() if self._inbox.is_backfilling else _POLL,
                    allowed_updates=_UPDATES + _VOTES * self._intake.settings.feedback.enabled,
                )
            except InvalidToken as error:
                await check_token(self._bot.get_me, self._clock)
                raise PlatformUnavailable("Telegram answers 404 or 401 to getUpdates, but accepts the token") from error

    def _questions(self, updates: Iterable[Update]) -> Iterator[IncomingMessage]:
        for update in updates:
            with suppress(*PARSE_ERRORS):
                event = self._parse(update)
                if isinstance(event, MessageEvent) and event.to is Addressee.BOT and not event.is_edit:
                    yield event.message

    def _parse(self, update: Update) -> UserEvent | None:
        now = self._intake.today()
        event = parse(update.api_kwargs[RAW], self._me, now)
        received_at = update.api_kwargs[RECEIVED_AT]
        if isinstance(event, MessageEvent) and received_at is not None:
            ahead = now - datetime.fromtimestamp(received_at, UTC)
            if ahead > _CLOCK_SKEW:
                # Times in the database are the host's: by its clock the question must not be older than it is.
                return replace(event, message=replace(event.message, sent_at=event.message.sent_at + ahead))
        return event

    async def _handle(self, update: Update) -> None:
        event = self._parse(update)
        if isinstance(event, MessageEvent) and event.to is not Addressee.BOT:
            self._note(event)
        match event:
            case MessageEvent() as event if event.is_edit:
                # Also if it is for another bot now: the old text must go.
                await self._inbox.edit(event.message)
                if await self._is_new_question(event):
                    await self._inbox.accept(event.message)  # ignored if it is known
            case MessageEvent() as event:
                if not await self._is_for_bot(event):
                    await self._accept_continuation(event)
                elif not await self._opens_form(event.message):
                    await self._inbox.accept(event.message)
            case ButtonEvent() as event:
                notice = await self._inbox.press(
                    event.channel, event.message_id, event.action, event.by, event.query, event.locale
                )
                self._background.start(self._acknowledge(event.query, notice))
            case ReactionEvent(channel, message_id, by, votes):
                for vote, is_added in votes:
                    await self._intake.on_reaction(channel, message_id, vote, by, is_added=is_added)
            case FormEvent() as event:
                self._background.start(self._inbox.process(partial(self._use_form, event)))
            case InlineQuery(_, message) as event:
                # One comes with each key that is pressed: where too many are open, the next one is answered.
                if self._intake.access.admits(message) and not self._inline_calls.locked():
                    await self._inline_calls.acquire()
                    self._background.start(self._point_to_chat(event))
            case DraftStopped() as event:
                self._stop(event)
            case ChannelMigrated(channel, to):
                self._context.drop(channel, None)
                await self._intake.rename_channel(channel, to)
            case None:
                pass
            case unknown:
                assert_never(unknown)

    def _stop(self, stopped: DraftStopped) -> None:
        exchange = self._intake.exchanges.in_flight(stopped.channel, stopped.draft)
        if exchange is not None and self._intake.access.may_control(stopped.by, exchange):
            self._intake.exchanges.stop(exchange)

    def _note(self, event: MessageEvent) -> None:
        """Keep a message that may be read before a later question."""
        message = event.message
        if self._intake.settings.at(message).conversation.context_messages and not message.is_direct:
            self._context.note(message, is_edit=event.is_edit)

    async def _is_new_question(self, edit: MessageEvent) -> bool:
        """Return whether an edited message can be one that mentions the bot, or has a trigger, only now."""
        oldest = self._intake.today() - timedelta(minutes=self._intake.settings.conversation.catch_up_minutes)
        message = edit.message
        if message.sent_at < oldest or not (message.text or message.quoted or message.files):
            return False
        if edit.to is Addressee.NOBODY:
            return await self._intake.is_triggered(message.channel, message.server, message.text)
        return edit.to is Addressee.BOT

    async def _is_for_bot(self, event: MessageEvent) -> bool:
        if event.to is Addressee.NOBODY:
            return await self._intake.listens(event.message, threads=self._settings.threads)
        return event.to is Addressee.BOT

    async def _accept_continuation(self, event: MessageEvent) -> None:
        """Accept what is not for the bot by itself as a part of a question: a text that the app has cut, a file, a forward."""
        message, is_to_nobody = event.message, event.to in (Addressee.NOBODY, Addressee.NOBODY_WITHOUT_WORDS)
        # Of an album that replies to a person each message does.
        is_of_album = message.album is not None and not message.text.strip()
        if (is_to_nobody or is_of_album) and self._intake.continuations.may_continue(message):
            await self._inbox.accept_continuation(message)

    async def _opens_form(self, message: IncomingMessage) -> bool:
        """Answer a message with a form, if one is due; where it cannot be sent, a reply answers the message."""
        form = None if is_guest(message.channel) else await self._inbox.open_form(message)
        if form is None:
            return False
        text = self._messenger.format.render(form.text)
        try:
            await self._messenger.show_form(message.channel, text, keyboard(form), reply_to=message.id)
        except PlatformError as error:
            log.info("form not shown, a text is sent", error=str(error))
            return False
        return True

    async def _use_form(self, press: FormEvent) -> None:
        """Carry out a press in a form and show the form as it is then."""
        if press.is_old:
            await self._acknowledge(press.query, outdated(self._intake.settings.translator_for(press.message)))
            return
        result = await self._intake.forms.use(press.message, press.changes)
        notice, form = result.notice, result.form
        if form is not None:
            text, buttons = self._messenger.format.render(notice or form.text), keyboard(form, press.shown)
            try:
                await self._messenger.show_form(press.message.channel, text, buttons, message_id=press.form)
                notice = ""
            except PlatformError as error:
                log.info("form not shown after a press", error=str(error))
        await self._acknowledge(press.query, notice)

    async def _point_to_chat(self, query: InlineQuery) -> None:
        """Offer the private chat: an answer of the model takes longer than Telegram shows an inline query."""
        translate = self._intake.settings.translator_for(query.message)
        button = InlineQueryResultsButton(translate(_ASK), start_parameter=_START_PARAMETER)
        try:
            with map_errors():
                await self._bot.answer_inline_query(query.id, [], cache_time=0, is_personal=True, button=button)
        except PlatformError as error:
            log.info("inline query not answered", error=str(error))  # it is too old: more was written
        finally:
            self._inline_calls.release()

    async def _acknowledge(self, query: str, notice: str) -> None:
        try:
            with map_errors():
                await self._bot.answer_callback_query(query, notice[:_LONGEST_NOTICE] or None)
        except PlatformError as error:
            log.info("button press not acknowledged", error=str(error))  # it may be too old
