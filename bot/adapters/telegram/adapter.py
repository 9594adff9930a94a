"""Telegram: messages by long polling, replies as edited messages."""

from collections.abc import AsyncIterator
from functools import partial

import structlog
from telegram import Bot, BotCommand, User

from bot.adapters.base import Finding
from bot.adapters.inbox import Inbox
from bot.adapters.proxy import find_proxy
from bot.adapters.telegram.client import check_token, knows_rich_messages, map_errors, open_bot
from bot.adapters.telegram.context import TelegramContext
from bot.adapters.telegram.drafts import Drafts
from bot.adapters.telegram.files import fetch_file
from bot.adapters.telegram.guests import is_guest, lane
from bot.adapters.telegram.handlers import TelegramHandlers
from bot.adapters.telegram.messenger import TelegramMessenger, is_private
from bot.adapters.telegram.parse import LONGEST_TEXT, PLATFORM
from bot.adapters.telegram.rich_support import RichSupport
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.commands import menu
from bot.chat.i18n import gettext_noop, translator
from bot.chat.intake import Intake
from bot.config.schema import AdapterSection
from bot.delivery.replies import Replies
from bot.errors import AccessDenied, BotError, PlatformError, PlatformUnavailable, RateLimited, StoreError
from bot.util.aio import BackgroundTasks
from bot.util.clock import Clock, MonotonicClock
from bot.util.retry import Backoff, log_retry, retry

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between retries: the first delay and the longest.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 30.0
# Seconds within which another program's next poll would end ours.
_SECOND_POLLER = 3.0

_NO_PRIVACY = gettext_noop("privacy mode is off: the bot gets all messages of its groups")
_PRIVACY = gettext_noop(
    "privacy mode is on: in groups the bot receives commands and replies to it, perhaps no plain mentions. To change "
    "that, send /setprivacy to @BotFather and choose Disable, then remove the bot from the group and add it again"
)


def open_adapter(settings: AdapterSection, clock: Clock) -> "TelegramAdapter":
    assert isinstance(settings, TelegramSection), "the settings of this platform"
    find_proxy("telegram", settings.proxy.get_secret_value(), settings.api_url)  # raises ConfigError
    return TelegramAdapter(settings, clock)


class TelegramAdapter:
    """One bot account; `is_connected` is whether the last poll succeeded.

    The library's own polling loop is not used: it confirms updates before they are
    stored, and an error in a handler would end it silently.
    """

    def __init__(self, settings: TelegramSection, clock: Clock) -> None:
        self.is_connected = False
        self._settings = settings
        self._clock = clock
        self._backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        self._context = TelegramContext()

    async def run(self, intake: Intake) -> None:
        bot = await open_bot(self._settings)
        try:
            me, knows_rich = await self._log_in(bot)
            rich = RichSupport(self._clock, is_known=knows_rich)
            messenger = TelegramMessenger(bot, self._settings, intake.rename_channel, intake, rich=rich)
            drafts = Drafts(bot, self._settings, self._clock, messenger) if self._settings.drafts else None
            # A group allows 20 messages a minute, and edits may count.
            replies = Replies(
                intake,
                messenger,
                self._clock,
                None if drafts is None else drafts.show,
                sends_whole=lambda message: not (is_private(message.channel) or is_guest(message.channel)),
                calls_per_minute=messenger.calls_per_minute,
                lane=lane,
                may_notify=lambda channel: not is_guest(channel),
                looks_first=True,
                open_thread=messenger.open_thread,
                show_typing=messenger.show_typing,
            )
            inbox = Inbox(PLATFORM, intake, replies, self._clock)
            intake.continuations.longest[PLATFORM] = LONGEST_TEXT
            intake.files.sources[PLATFORM] = partial(fetch_file, bot, self._settings)
            async with BackgroundTasks() as background, replies:
                background.start(_publish_menu(bot, self._clock))
                intake.context.before[PLATFORM] = self._context.before
                intake.exchanges.on_deletion[PLATFORM] = self._context.drop
                handlers = TelegramHandlers(
                    bot, me, self._settings, intake, inbox, messenger, background, self._clock, self._context
                )
                intake.access.register_managers(PLATFORM, handlers.is_manager)
                intake.access.register_missing(PLATFORM, handlers.missing)
                intake.sign_in.register(PLATFORM, messenger.send_direct)
                await self._poll(handlers, inbox)
        finally:
            self.is_connected = False
            await bot.shutdown()

    async def _log_in(self, bot: Bot) -> tuple[User, bool]:
        """Return the bot, and whether the server may know rich messages."""

        async def log_in() -> None:
            with map_errors():
                await check_token(bot.initialize, self._clock)
                # Polling is refused while a webhook is set; the updates that wait there are kept.
                await bot.delete_webhook(drop_pending_updates=False)

        report = log_retry("telegram: login failed, retrying")
        await retry(log_in, PlatformError, clock=self._clock, backoff=self._backoff, on_failure=report)
        me: User = bot.bot
        log.info("telegram: logged in", bot=me.username)
        if not me.can_read_all_group_messages:
            log.info("telegram: %s", _PRIVACY)
        try:
            with map_errors():
                return me, await knows_rich_messages(bot)
        except PlatformError as error:
            # A proxy may refuse what it does not know, for ever: the first rich message will tell.
            log.info("telegram: whether the server knows rich messages is not known yet", error=str(error))
            return me, True

    async def _poll(self, handlers: TelegramHandlers, inbox: Inbox) -> None:
        def report(error: BotError, seconds: float) -> None:
            log.warning("telegram: polling failed, retrying", seconds=seconds, error=str(error))
            self.is_connected = isinstance(error, StoreError)
            inbox.is_backfilling = True

        inbox.is_backfilling = True
        errors = PlatformError, StoreError
        while True:
            await retry(handlers.poll, *errors, clock=self._clock, backoff=self._backoff, on_failure=report)
            self.is_connected = True


async def inspect(settings: TelegramSection) -> AsyncIterator[Finding]:
    """Report what Telegram says about the bot, and what the operator has to change."""
    bot = await open_bot(settings)
    try:
        with map_errors():
            await check_token(bot.initialize, MonotonicClock())
            me: User = bot.bot
            link = f"https://t.me/{me.username}"
            yield Finding.of(
                True,
                gettext_noop("the token is valid; the bot is {name}"),
                link,
                name=f"@{me.username} ({me.full_name})",
            )
            reads_all = bool(me.can_read_all_group_messages)
            yield Finding.of(reads_all, _NO_PRIVACY if reads_all else _PRIVACY)
            if me.supports_guest_queries:
                yield Finding.of(
                    True,
                    gettext_noop(
                        "guest mode is on: people mention the bot in chats where it is no member too, as far as [access] "
                        "lets them"
                    ),
                )
            if me.can_join_groups is False:
                yield Finding.of(
                    False,
                    gettext_noop("the bot cannot be added to groups: send /setjoingroups to @BotFather to allow it"),
                )
            if (await bot.get_webhook_info()).url:
                yield Finding.of(
                    False, gettext_noop("a webhook is set, maybe by another program; starting the bot removes it")
                )
            else:
                # Confirms no update; another poller's next request would end this one with an error.
                await bot.get_updates(limit=1, timeout=int(min(_SECOND_POLLER, settings.call_seconds)))
                yield Finding.of(True, gettext_noop("no other program polls with this token"))
    finally:
        await bot.shutdown()


async def _publish_menu(bot: Bot, clock: Clock) -> None:
    """Set the menu of commands: in Chinese for Chinese apps, in English for all others."""

    async def publish() -> None:
        for language in (None, "zh"):
            translate = translator(language or "en")
            commands = [BotCommand(each.name, translate(each.summary)) for each in menu()]
            with map_errors():
                await bot.set_my_commands(commands, language_code=language)

    backoff, report = Backoff(_FIRST_RETRY, _LONGEST_RETRY), log_retry("telegram: menu of commands not set, retrying")
    try:
        passing = PlatformUnavailable, RateLimited, AccessDenied
        await retry(publish, *passing, clock=clock, backoff=backoff, on_failure=report)
    except PlatformError as error:
        log.warning("telegram: menu of commands not set", error=str(error))
