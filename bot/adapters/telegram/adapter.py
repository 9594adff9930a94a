"""Telegram: messages by long polling, answers in messages that are edited."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import assert_never

import structlog
from telegram import Bot, BotCommand, Update, User
from telegram.error import InvalidToken

from bot.adapters.base import Finding
from bot.adapters.malformed import PARSE_ERRORS, describe_error
from bot.adapters.telegram.client import map_errors, open_bot
from bot.adapters.telegram.drafts import Drafts
from bot.adapters.telegram.messenger import TelegramMessenger
from bot.adapters.telegram.parse import PLATFORM, Addressee, ButtonEvent, ChannelMigrated, MessageEvent, read
from bot.adapters.telegram.settings import TelegramSection
from bot.chat.commands import menu
from bot.chat.i18n import translator
from bot.chat.intake import Intake
from bot.config.schema import AdapterSection
from bot.delivery.replies import Replies
from bot.domain import Exchange
from bot.errors import LoginRefused, PlatformError, PlatformUnavailable, RateLimited, StoreError
from bot.util.aio import BackgroundTasks
from bot.util.clock import Clock
from bot.util.retry import Backoff

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# What is asked for; of the rest Telegram then tells nothing.
_UPDATES = (Update.MESSAGE, Update.EDITED_MESSAGE, Update.CALLBACK_QUERY)
# The most updates that Telegram gives at once; fewer are all there are.
_MOST_UPDATES = 100
# How long Telegram holds a poll open while nobody speaks.
_POLL = timedelta(seconds=25)
# Seconds between tries of what failed: the first, and the longest.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 30.0
# Seconds in which another program's next poll would show.
_SECOND_POLLER = 3.0

_NOT_KNOWN = "Telegram does not know the bot's token: put the one that @BotFather shows for it into BOT_TELEGRAM__TOKEN"
_PRIVACY = (
    "privacy mode is on: in groups the bot hears commands and replies to it, and perhaps no plain mention; to change "
    "that, send /setprivacy to @BotFather and choose Disable, then add the bot to the group anew"
)


def open_adapter(settings: AdapterSection, clock: Clock) -> "TelegramAdapter":
    assert isinstance(settings, TelegramSection), "the settings of this platform"
    return TelegramAdapter(settings, clock)


class TelegramAdapter:
    """One bot account.

    The library's own loop is not used: it moves its offset on by itself, and an error
    of ours in it would end it without a word.
    """

    def __init__(self, settings: TelegramSection, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._is_connected = False

    @property
    def is_connected(self) -> bool:
        """Whether the last poll was answered."""
        return self._is_connected

    async def run(self, intake: Intake) -> None:
        bot = open_bot(self._settings)
        try:
            me = await self._log_in(bot)
            messenger = TelegramMessenger(bot, self._settings, intake.rename_channel)
            preview = Drafts(bot, self._settings, self._clock).show if self._settings.drafts else None
            replies = Replies(intake, messenger, self._clock, preview)
            async with BackgroundTasks() as background, replies:
                background.start(_announce(bot, self._clock))
                listener = _Listener(bot, me, self._settings, intake, replies, background)
                await self._again_and_again(listener)
        finally:
            await bot.shutdown()

    async def _log_in(self, bot: Bot) -> User:
        wait = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        while True:
            try:
                with map_errors():
                    await _knowing_the_token(bot.initialize)
                    # As long as a webhook is set nobody may poll; what waits there stays.
                    await bot.delete_webhook(drop_pending_updates=False)
                break
            except PlatformError as error:
                if isinstance(error, LoginRefused):
                    raise
                log.warning("telegram: not logged in yet", error=str(error))
                await self._clock.sleep(wait.after(error))
        me: User = bot.bot
        log.info("telegram: logged in", bot=me.username)
        if not me.can_read_all_group_messages:
            log.info("telegram: %s", _PRIVACY)
        return me

    async def _again_and_again(self, listener: "_Listener") -> None:
        wait = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
        while True:
            try:
                await listener.poll()
                wait.succeeded()
                self._is_connected = True
            except (PlatformError, StoreError) as error:
                self._is_connected = isinstance(error, StoreError)
                if isinstance(error, LoginRefused):
                    raise
                log.warning("telegram: not listening just now", error=str(error))
                listener.is_behind = True
                await self._clock.sleep(wait.after(error))


class _Listener:
    """Takes what Telegram tells, in its order, and keeps each message before the next poll confirms it."""

    def __init__(
        self,
        bot: Bot,
        me: User,
        settings: TelegramSection,
        intake: Intake,
        replies: Replies,
        background: BackgroundTasks,
    ) -> None:
        self.is_behind = True  # messages may wait that were said while nobody listened
        self._bot = bot
        self._me = me
        self._settings = settings
        self._intake = intake
        self._replies = replies
        self._background = background
        self._confirmed: int | None = None
        self._album: str | None = None

    async def poll(self) -> None:
        """Ask once, and take what there is; what waited for long is answered only when all of it is known.

        Raises:
            LoginRefused: The token is no longer valid.
            PlatformError: Telegram did not answer, or not with updates.
            StoreError: A message could not be kept; it, and what follows it, comes again.
        """
        updates = await self._updates()
        # What is confirmed is forgotten there.  Said once is enough: after a week without
        # updates their numbers begin anew anywhere, also below the last one.
        self._confirmed = None
        for number, update in enumerate(updates):
            try:
                await self._take(update)
            except StoreError:
                self._excuse(updates[number:])
                raise
            except Exception:
                # A fault of ours: the next one may be better.
                log.exception("an update from telegram was dropped", update=update.update_id)
            self._confirmed = update.update_id + 1
        if self.is_behind and len(updates) < _MOST_UPDATES:
            for exchange in await self._intake.recover(PLATFORM):
                self._begin(exchange)
            self.is_behind = False

    async def _updates(self) -> tuple[Update, ...]:
        with map_errors():
            try:
                return await self._bot.get_updates(
                    offset=self._confirmed,
                    limit=_MOST_UPDATES,
                    timeout=timedelta() if self.is_behind else _POLL,
                    allowed_updates=_UPDATES,
                )
            except InvalidToken as error:
                await _knowing_the_token(self._bot.get_me)
                raise PlatformUnavailable("Telegram does not find the method getUpdates just now") from error

    def _excuse(self, updates: Sequence[Update]) -> None:
        """Tell all who wait, and not only who stands in front, that the database keeps them waiting."""
        for update in updates:
            with suppress(*PARSE_ERRORS):
                told = read(update, self._me)
                if isinstance(told, MessageEvent) and told.to is Addressee.BOT and not told.is_edit:
                    self._replies.notify_delayed(told.message)

    async def _take(self, update: Update) -> None:
        try:
            told = read(update, self._me)
        except PARSE_ERRORS as error:
            log.warning("an update could not be read", update=update.update_id, **describe_error(error))
            return
        match told:
            case MessageEvent():
                await self._hear(told)
            case ButtonEvent():
                await self._press(told)
            case ChannelMigrated():
                await self._intake.rename_channel(told.channel, told.to)
            case None:
                pass
            case _:
                assert_never(told)

    async def _hear(self, said: MessageEvent) -> None:
        if said.is_edit:
            if said.to is Addressee.ANOTHER_BOT:
                return
            if self.is_behind:
                await self._intake.store_edit(said.message)
            else:
                self._begin(await self._intake.edit(said.message))
        elif await self._is_for_us(said):
            if self.is_behind:
                await self._intake.store(said.message)
            else:
                self._begin(await self._intake.accept(said.message))
            self._album = said.album

    async def _is_for_us(self, said: MessageEvent) -> bool:
        # Pictures that are sent together come one by one, and only one of them may say something.
        if said.album is not None and said.album == self._album and not said.message.text:
            return False
        if said.to is Addressee.NOBODY:
            channel = said.message.channel
            return self._settings.threads and channel.thread is not None and await self._intake.has_history(channel)
        return said.to is Addressee.BOT

    async def _press(self, press: ButtonEvent) -> None:
        pressed = await self._intake.on_button(
            press.channel, press.message_id, press.action, press.by, later=self.is_behind
        )
        self._begin(pressed.again)
        self._background.start(self._answer(press, pressed.notice))

    async def _answer(self, press: ButtonEvent, notice: str) -> None:
        try:
            with map_errors():
                await self._bot.answer_callback_query(press.query, notice or None)
        except PlatformError as error:
            log.info("a button was not answered", error=str(error))  # it was pressed long ago, say

    def _begin(self, exchange: Exchange | None) -> None:
        if exchange is not None:
            self._replies.start(exchange)


async def inspect(settings: TelegramSection) -> AsyncIterator[Finding]:
    """Call Telegram and tell what stands in the bot's way there."""
    bot = open_bot(settings)
    try:
        with map_errors():
            await _knowing_the_token(bot.initialize)
            me: User = bot.bot
            yield Finding(True, f"the token is valid; the bot is @{me.username} ({me.full_name})")
            if me.can_read_all_group_messages:
                yield Finding(True, "privacy mode is off: in groups the bot hears everything")
            else:
                yield Finding(False, _PRIVACY)
            if me.can_join_groups is False:
                yield Finding(False, "nobody may add the bot to a group; /setjoingroups at @BotFather changes that")
            webhook = await bot.get_webhook_info()
            if webhook.url:
                yield Finding(
                    False, "a webhook is set, so another program may use this token; a start of the bot removes it"
                )
            else:
                await _wait_for_another_poller(bot, settings.call_seconds)
                yield Finding(True, "nobody else asks for this bot's messages")
    except PlatformError as error:
        yield Finding(False, str(error))
    finally:
        await bot.shutdown()


async def _wait_for_another_poller(bot: Bot, seconds: float) -> None:
    """Poll as long as another program's next poll would take to end ours, and confirm nothing."""
    await bot.get_updates(limit=1, timeout=int(min(_SECOND_POLLER, seconds)))


async def _knowing_the_token(get_me: Callable[[], Awaitable[object]]) -> None:
    try:
        await get_me()
    except InvalidToken:
        raise LoginRefused(_NOT_KNOWN) from None  # the library's own message holds the token


async def _announce(bot: Bot, clock: Clock) -> None:
    """Fill the menu of commands: in Chinese for whose app is Chinese, in English for all others."""
    wait = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
    languages = [None, "zh"]
    while languages:
        translate = translator(languages[0] or "en")
        commands = [BotCommand(each.name, translate(each.summary)) for each in menu()]
        try:
            with map_errors():
                await bot.set_my_commands(commands, language_code=languages[0])
            del languages[0]
        except (PlatformUnavailable, RateLimited) as error:
            await clock.sleep(wait.after(error))
        except PlatformError as error:
            log.warning("telegram: the menu of commands was not set", error=str(error))
            return
