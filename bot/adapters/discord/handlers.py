"""What came from Discord, worked off one by one: so that rows stand in the order in which people spoke."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import discord
import structlog

from bot.adapters.discord.backfill import Backlog
from bot.adapters.discord.client import BotClient
from bot.adapters.discord.http import call_timeout, map_errors
from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.discord.parse import PLATFORM, calls, commanded, incoming, key_of, presser, speaks_to
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.malformed import PARSE_ERRORS, describe_error
from bot.chat.i18n import Translate, language_for, translator
from bot.chat.intake import Intake
from bot.delivery.replies import Replies
from bot.domain import Action, ChannelKey
from bot.errors import ChannelGone, MessageGone, PlatformError, PlatformUnavailable, RateLimited, StoreError
from bot.util.clock import Clock
from bot.util.retry import Backoff

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between tries of what failed: the first, and the longest.
_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0
# Discord waits this long for a word on a command or a button.
_PATIENCE = 3.0
# What concerns the whole channel is said to the whole channel, the rest to who asked.
_PUBLIC = frozenset({"clear"})

Work = Callable[[], Awaitable[None]]


class Inbox:
    """A Listener that keeps each message before it looks at the next.

    While the database cannot be written to, everything waits here: nothing is lost, and
    nothing overtakes.  Catching up stands in the same line, before all that came after
    the connection was there again.
    """

    def __init__(
        self,
        intake: Intake,
        replies: Replies,
        messenger: DiscordMessenger,
        clock: Clock,
        settings: DiscordSection,
    ) -> None:
        self._intake = intake
        self._replies = replies
        self._messenger = messenger
        self._clock = clock
        self._threads = settings.threads
        self._call_seconds = settings.call_seconds
        self._backlog = Backlog(clock, settings.call_seconds)
        self._work: asyncio.Queue[Work] = asyncio.Queue()
        self._waiting: deque[discord.Message] = deque()  # said, and not kept yet
        self._client: BotClient | None = None
        self._is_ready = asyncio.Event()

    async def run(self) -> None:
        while True:
            work = await self._work.get()
            try:
                await self._persist(work)
            except PARSE_ERRORS as error:
                log.warning("discord sent an event that cannot be read", **describe_error(error))
            except Exception:
                # A fault of ours: the next one may be better.
                log.exception("an event from discord was dropped")

    def connected(self, client: BotClient) -> None:
        self._is_ready.clear()
        self._client = self._messenger.client = client
        self._work.put_nowait(self._catch_up)

    def ready(self) -> None:
        self._is_ready.set()

    def said(self, message: discord.Message) -> None:
        self._waiting.append(message)
        self._work.put_nowait(partial(self._said, message))
        self._work.put_nowait(self._heard)

    def edited(self, message: discord.Message) -> None:
        self._work.put_nowait(partial(self._edited, message))

    def deleted(self, server_id: int | None, channel_id: int, message_ids: Sequence[int]) -> None:
        self._work.put_nowait(partial(self._deleted, server_id, channel_id, message_ids))

    def commanded(self, interaction: discord.Interaction, name: str) -> None:
        self._work.put_nowait(partial(self._commanded, interaction, name))

    async def pressed(self, interaction: discord.Interaction) -> None:
        """Do it at once: a button is no message, and who stops an answer does not wait in line."""
        action = _action(interaction)
        if action is None or interaction.message is None or interaction.channel_id is None:
            return
        channel = key_of(interaction.channel, interaction.channel_id)
        message_id = str(interaction.message.id)
        try:
            pressed = await self._intake.on_button(channel, message_id, action, presser(interaction))
        except StoreError as error:
            # Discord tells who pressed that it failed.
            log.warning("a button did nothing", error=str(error))
            return
        if pressed.again is not None:
            self._replies.start(pressed.again)
        if pressed.notice:
            await self._answered(interaction.response.send_message(pressed.notice, ephemeral=True))
        else:
            await self._answered(interaction.response.defer())

    async def _persist(self, work: Work) -> None:
        wait, has_failed = Backoff(_FIRST_RETRY, _LONGEST_RETRY), False
        while True:
            try:
                await work()
                break
            except (StoreError, PlatformUnavailable, RateLimited) as error:
                seconds, has_failed = wait.after(error), True
                log.warning("an event from discord waits", seconds=seconds, error=str(error))
                if isinstance(error, StoreError):
                    self._excuse()
                await self._clock.sleep(seconds)
            except (ChannelGone, MessageGone) as gone:
                log.info("an event from discord came too late", error=str(gone))
                break
        if has_failed:
            # Replies, too, were broken off by what failed here.
            self._work.put_nowait(self._begin_owed)

    def _excuse(self) -> None:
        """Tell all who wait, and not only who stands in front, that the database keeps them waiting."""
        for message in self._waiting:
            if calls(message, self._connection.me):
                key = key_of(message.channel, message.channel.id)
                self._replies.notify_delayed(incoming(message, self._connection.me, key))

    async def _heard(self) -> None:
        """The work before this one was a message, and it does not wait any more."""
        self._waiting.popleft()

    async def _said(self, message: discord.Message) -> None:
        channel = await self._for_us(message)
        if channel is not None:
            await self._replies.accept_and_reply(incoming(message, self._connection.me, channel))

    async def _edited(self, message: discord.Message) -> None:
        channel = await self._for_us(message)
        if channel is not None:
            exchange = await self._intake.edit(incoming(message, self._connection.me, channel))
            if exchange is not None:
                self._replies.start(exchange)

    async def _deleted(self, server_id: int | None, channel_id: int, message_ids: Sequence[int]) -> None:
        known = self._connection.get_channel(channel_id)
        channel = await self._key(known, channel_id, is_direct=server_id is None)
        for message_id in message_ids:
            await self._intake.delete(channel, str(message_id))

    async def _commanded(self, interaction: discord.Interaction, name: str) -> None:
        assert interaction.channel_id is not None, "Discord tells where a command is used"
        message = commanded(interaction, name, key_of(interaction.channel, interaction.channel_id))
        exchange = await self._intake.accept(message)
        if exchange is None:
            translate: Translate = translator(language_for("auto", message.locale, ""))
            await self._answered(interaction.response.send_message(translate("I do not answer here."), ephemeral=True))
            return
        if exchange.message.id != message.id:
            translate = self._intake.translator_for(exchange)
            self._replies.start(exchange)
            words = translate("I am answering the question again.")
            await self._answered(interaction.response.send_message(words, ephemeral=True))
            return
        if await self._answered(interaction.response.defer(ephemeral=name not in _PUBLIC, thinking=True)):
            self._messenger.expect(interaction)
        self._replies.start(exchange)

    async def _answered(self, response: Awaitable[object]) -> bool:
        """Tell Discord that we heard; where that comes too late, the reply is a message like any other."""
        try:
            with map_errors():
                async with asyncio.timeout(_PATIENCE):
                    await response
        except (PlatformError, discord.HTTPException, *PARSE_ERRORS) as error:
            log.info("a word on a command or button came too late", error=str(error))
            return False
        return True

    async def _catch_up(self) -> None:
        """Keep what was said while nobody listened, then answer all that is owed."""
        await self._is_ready.wait()
        known = await self._intake.last_message_ids(PLATFORM)
        for message in await self._backlog.missed(self._connection, known):
            channel = await self._for_us(message)
            # What came before the newest known message of its thread was heard, and was not for the bot then.
            if channel and (calls(message, self._connection.me) or message.id > int(known.get(channel, 0))):
                await self._intake.store(incoming(message, self._connection.me, channel))
        await self._begin_owed()

    async def _begin_owed(self) -> None:
        for exchange in await self._intake.recover(PLATFORM):
            if not exchange.parts:
                self._messenger.doubt(exchange)
            self._replies.start(exchange)

    async def _for_us(self, message: discord.Message) -> ChannelKey | None:
        """The conversation that this message goes on with, or None if it does not mean the bot."""
        client = self._connection
        is_hidden = not (message.content or client.reads_all)
        if calls(message, client.me) or (speaks_to(message, client.me) and not is_hidden):
            return await self._key(message.channel, message.channel.id, is_direct=message.guild is None)
        if self._threads and not is_hidden and isinstance(message.channel, discord.Thread):
            channel = key_of(message.channel, message.channel.id)
            return channel if await self._intake.has_history(channel) else None
        return None

    async def _key(self, channel: object, channel_id: int, *, is_direct: bool) -> ChannelKey:
        """Ask Discord about a channel of a server that the library does not know: it may be a thread."""
        if not is_direct and (channel is None or isinstance(channel, discord.PartialMessageable)):
            async with call_timeout(self._call_seconds, self._connection):
                channel = await self._connection.fetch_channel(channel_id)
        return key_of(channel, channel_id)

    @property
    def _connection(self) -> BotClient:
        assert self._client is not None, "events come from a connection"
        return self._client


def _action(interaction: discord.Interaction) -> Action | None:
    name = (interaction.data or {}).get("custom_id", "")  # type: ignore[call-overload]  # a union of typed tables
    return next((action for action in Action if action.value == name), None)
