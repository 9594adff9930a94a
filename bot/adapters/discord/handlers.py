"""Discord events: stored one by one in the order of arrival."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import discord
import structlog

from bot.adapters.discord.ask import ask_payloads
from bot.adapters.discord.backfill import DiscordBackfill, worth_reading
from bot.adapters.discord.commands import command_payload
from bot.adapters.discord.context import DiscordContext
from bot.adapters.discord.deadlines import Deadlines
from bot.adapters.discord.errors import REFUSALS, UnreadableAnswer
from bot.adapters.discord.http import call_timeout
from bot.adapters.discord.interactions import DiscordInteractions
from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.discord.parse import (
    LONGEST_TEXT,
    PLATFORM,
    channel_key,
    described_channel,
    has_ids,
    is_direct_or_mention,
    is_for_another,
    is_reply_or_role_mention,
    is_user_message,
    mentions_role,
    parse_message,
    points_at_another,
    server_id,
)
from bot.adapters.discord.quotes import Quotes, fetch_message, quotation_of
from bot.adapters.discord.reactions import DiscordReactions
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.discord.targets import Targets
from bot.adapters.discord.threads import missing_for
from bot.adapters.inbox import Inbox
from bot.adapters.malformed import PARSE_ERRORS
from bot.adapters.quotation import NO_QUOTATION
from bot.chat.commands import menu
from bot.chat.intake import Intake
from bot.chat.standing import Standing
from bot.delivery.replies import Replies
from bot.domain import Author, ChannelKey, Exchange, IncomingMessage
from bot.util.clock import Clock

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds until channels that could not be read are read again.
_UNREAD_SECONDS = 30.0
# After so many descriptions of a channel that cannot be read, it is taken for one that is no thread:
# later events must not wait for it.
_UNREADABLE_ANSWERS = 3
# A server, the bot's own direct messages, chats between people.
_EVERYWHERE = [0, 1, 2]

Work = Callable[[], Awaitable[None]]


class DiscordHandlers:
    """Queues events; `run` stores each one before it processes the next.

    Events wait here while the database is unavailable.  The backfill of a new session is
    in the same queue, before the events of that session.
    """

    def __init__(
        self,
        settings: DiscordSection,
        intake: Intake,
        replies: Replies,
        messenger: DiscordMessenger,
        clock: Clock,
    ) -> None:
        self._threads = settings.threads
        self._call_seconds = settings.call_seconds
        self._intake = intake
        self._replies = replies
        self._messenger = messenger
        self._clock = clock
        self._inbox = Inbox(PLATFORM, intake, replies, clock, self._find_standing)
        intake.access.register_managers(PLATFORM, self.is_manager)
        intake.access.register_missing(PLATFORM, lambda message, wanted: missing_for(self._client, message, wanted))
        intake.sign_in.register(PLATFORM, messenger.send_direct)
        intake.continuations.longest[PLATFORM] = LONGEST_TEXT
        context = DiscordContext(lambda: self._client, settings.call_seconds)
        intake.context.before[PLATFORM], intake.context.linked[PLATFORM] = context.before, context.linked
        self._deadlines = Deadlines(intake, replies, messenger, clock)
        self._has_channels, self._has_newest = asyncio.Event(), asyncio.Event()
        self._newest: dict[
            ChannelKey, str
        ] = {}  # the newest message of each channel that was known before this session
        self._targets = Targets(lambda: self._client, settings.call_seconds)
        intake.exchanges.on_deletion[PLATFORM] = self._forget
        interactions = DiscordInteractions(
            settings.call_seconds,
            intake,
            self._inbox,
            replies,
            messenger,
            lambda: self._client,
            lambda id: self._channel_key(None, id, is_direct=False),
            self._put,
            self._has_newest.wait,
            self._targets,
            self._deadlines,
            clock,
        )
        self.events = (
            self.on_message,
            self.on_raw_message_edit,
            self.on_raw_message_delete,
            self.on_raw_bulk_message_delete,
            interactions.on_interaction,
            *DiscordReactions(intake, self._find_channel, self._put).events,
        )
        self._quotes = Quotes(settings.call_seconds, intake.quotes_root)
        self._backfill = DiscordBackfill(clock, settings.call_seconds, self._may_listen)
        self._queue: asyncio.Queue[tuple[Work, discord.Message | None]] = asyncio.Queue()
        self._unstored: deque[discord.Message] = deque()
        self._current: discord.Client | None = None

    def commands(self) -> list[dict[str, Any]]:
        """Return the commands as Discord's API takes them, usable wherever the application is installed."""
        asked = ask_payloads(with_files=self._intake.settings.files.enabled)
        return [{**each, "contexts": _EVERYWHERE} for each in (*map(command_payload, menu()), *asked)]

    async def run(self) -> None:
        """Process queued events until cancelled.

        Raises:
            LoginRefused: A backfill was rejected because of the token.
        """
        while True:
            work, message = await self._queue.get()
            await self._inbox.process(partial(self._inbox.retry, work, self._waiting))
            if message is not None:
                self._unstored.popleft()

    @property
    def takes_votes(self) -> bool:
        """Return whether reactions are votes: only then Discord has to send them."""
        return self._intake.settings.feedback.enabled

    def session_started(self, client: discord.Client, date: str) -> None:
        """Queue a backfill: Discord does not send again what came before this session; `date` is Discord's time."""
        self._intake.recovery.saw_date(PLATFORM, date)
        self._has_channels.clear()
        self._has_newest.clear()
        self._current = self._messenger.client = client
        self._put(self._read_newest)
        self._put(self._inbox.recover)  # what is owed does not wait for the backfill
        self._put(self._store_missed)

    def channels_known(self) -> None:
        """Let the backfill of this session begin."""
        self._has_channels.set()

    async def on_message(self, message: discord.Message) -> None:
        if is_user_message(message):
            self._unstored.append(message)
            self._put(partial(self._store, message), message)

    async def on_raw_message_edit(self, event: discord.RawMessageUpdateEvent) -> None:
        if event.message.author.id != self._me.id:
            self._put(partial(self._edit, event.message))

    def edited_somehow(self, server: int | None, channel_id: int, message_id: int) -> None:
        """Queue an edit whose event lacks the message."""
        self._put(partial(self._edit_fetched, server, channel_id, message_id))

    async def on_raw_message_delete(self, event: discord.RawMessageDeleteEvent) -> None:
        self._put(partial(self._delete, event.guild_id, event.channel_id, [event.message_id]))

    async def on_raw_bulk_message_delete(self, event: discord.RawBulkMessageDeleteEvent) -> None:
        self._put(partial(self._delete, event.guild_id, event.channel_id, sorted(event.message_ids)))

    def _put(self, work: Work, message: discord.Message | None = None) -> None:
        self._queue.put_nowait((work, message))

    def _waiting(self) -> Iterator[IncomingMessage]:
        for message in self._unstored:
            with suppress(*PARSE_ERRORS):
                if is_direct_or_mention(message, self._me):
                    yield parse_message(message, self._me, channel_key(message.channel, message.channel.id))

    async def _read_newest(self) -> None:
        """Read where the backfill begins, before anything of this session is stored."""
        newest = await self._intake.last_message_ids(PLATFORM)
        self._newest = await asyncio.to_thread(worth_reading, newest)
        self._has_newest.set()

    async def _store_missed(self, unread: Sequence[discord.abc.Messageable] | None = None) -> None:
        """Store what was missed, in all channels or only in those that were `unread`."""
        await self._has_channels.wait()
        known = self._newest
        catch_up = timedelta(minutes=self._intake.settings.conversation.catch_up_minutes)
        since = self._backfill.since(self._client, known, catch_up)
        said = await self._intake.said_since(PLATFORM, since)
        rows = [row for row in said if has_ids(row.message.channel, row.message.id)]
        if unread is None:
            missed = await self._backfill.missed(self._client, known, rows, since)
        else:
            missed = await self._backfill.read(self._client, unread, rows, since)
        for row in missed.deleted:
            await self._intake.delete(row.message.channel, row.message.id)
        for channel, quoted in missed.deleted_quotes:
            await self._intake.delete(channel, quoted)
        for message in missed.edited_quotes:
            await self._inbox.process(partial(self._edit, message))
        for row, message in missed.edited:
            await self._inbox.process(partial(self._store_edit, row, message))

        async def parse(message: discord.Message) -> IncomingMessage | None:
            if message.id in arrived:
                return None
            parsed = await self._parse(message)
            # Up to the last known message of its channel the bot was connected, and ignored the rest.
            if parsed is not None and not self._is_called(message):
                return parsed if message.id > int(known.get(parsed.channel, 0)) else None
            return parsed

        # Events of this session follow in the queue, and whether they are for the bot depends on their order.
        arrived = {message.id for message in self._unstored}
        await self._inbox.backfill(missed.messages, parse, self._parse_continuation)
        if missed.unread:
            self._replies.run_beside(self._store_later(self._client, missed.unread))

    async def _store_later(self, client: discord.Client, unread: Sequence[discord.abc.Messageable]) -> None:
        await self._clock.sleep(_UNREAD_SECONDS)
        if client is self._current:  # else a new session has read them
            self._put(partial(self._store_missed, unread))

    async def _store_edit(self, row: Exchange, message: discord.Message) -> None:
        channel = row.message.channel
        if self._is_hidden(message) and not self._is_called(message):
            await self._intake.delete(channel, str(message.id))  # as for an edit that arrives
            return
        parsed = parse_message(message, self._me, channel)
        await self._intake.store_change(row, parsed, self._backfill.reply_to(message))

    async def _find_standing(self, owed: Sequence[Exchange]) -> Standing:
        for exchange in owed:
            self._deadlines.resume(exchange)
        return Standing(await self._backfill.standing(self._client, owed))

    async def _store(self, message: discord.Message) -> None:
        parsed = await self._parse(message)
        if parsed is not None:
            await self._inbox.accept(parsed)
        elif (part := await self._parse_continuation(message)) is not None:
            await self._inbox.accept_continuation(part)

    async def _edit(self, message: discord.Message) -> None:
        """Replace the text of a question, addressed to the bot or not; accept one that was none before."""
        self._targets.forget([str(message.id)])  # an open modal is about the new text
        is_direct = server_id(message) is None
        channel = await self._channel_key(message.channel, message.channel.id, is_direct=is_direct)
        if channel is None:
            return
        if not is_user_message(message):  # an app's is no question, but may be quoted
            await self._intake.replace_quotes(channel, str(message.id), quotation_of(message, self._me).text)
            return
        calls_bot = self._is_called(message)
        is_hidden = self._is_hidden(message) and not calls_bot
        if is_hidden and await self._intake.is_known(channel, str(message.id)):
            # Without the intent the new text is unknown, and the old one was taken back.
            await self._intake.delete(channel, str(message.id))
            return
        await self._inbox.edit(parse_message(message, self._me, channel))
        oldest = timedelta(minutes=self._intake.settings.conversation.catch_up_minutes)
        if message.edited_at is None or message.edited_at - message.created_at > oldest:
            return
        if calls_bot or await self._intake.is_triggered(channel, _server(message.guild), message.content):
            await self._store(message)  # changes nothing if it is known

    async def _edit_fetched(self, server: int | None, channel_id: int, message_id: int) -> None:
        try:
            message = await fetch_message(self._client, server, channel_id, message_id, self._call_seconds)
        except (*REFUSALS, UnreadableAnswer) as error:
            log.info("edit skipped, its message is gone or cannot be read", error=str(error))
            return
        await self._edit(message)

    async def _delete(self, server_id: int | None, channel_id: int, message_ids: Sequence[int]) -> None:
        self._targets.forget(map(str, message_ids))
        channel = await self._find_channel(channel_id, server_id is None)
        if channel is not None:
            await self._intake.delete(channel, *map(str, message_ids))

    def _forget(self, channel: ChannelKey | None, author: Author | None) -> None:
        """Forget what was said in a channel, or by a person, and deleted."""
        self._messenger.forget(channel, author)
        self._targets.forget_in(channel)

    async def is_manager(self, message: IncomingMessage) -> bool:
        """Return whether the author may manage the channel.

        Raises:
            PlatformError: Discord cannot be asked.
        """
        server = self._client.get_guild(int(message.server or 0))
        channel = None if server is None else server.get_channel(int(message.channel.channel))
        if server is None or channel is None:
            return False
        try:
            async with call_timeout(self._call_seconds, self._client):
                member = await server.fetch_member(int(message.author.id))
        except REFUSALS:
            return False
        return channel.permissions_for(member).manage_channels

    async def _parse(self, message: discord.Message) -> IncomingMessage | None:
        """Return the message if it addresses the bot."""
        is_direct, channel = server_id(message) is None, None
        is_hidden = self._is_hidden(message)
        if is_direct_or_mention(message, self._me) or (is_reply_or_role_mention(message, self._me) and not is_hidden):
            channel = await self._channel_key(message.channel, message.channel.id, is_direct=is_direct)
        elif not (is_hidden or isinstance(message.channel, discord.PartialMessageable) or is_for_another(message)):
            place = channel_key(message.channel, message.channel.id)
            unaddressed = parse_message(message, self._me, place)
            channel = place if await self._intake.listens(unaddressed, threads=self._threads) else None
        if channel is None:
            return None
        quotation = await self._quotes.find(message, self._client, channel)
        return parse_message(message, self._me, channel, quotation)

    async def _parse_continuation(self, message: discord.Message) -> IncomingMessage | None:
        """Return a message that does not address the bot if it may be more of a question."""
        channel = channel_key(message.channel, message.channel.id)
        is_unknown = self._is_hidden(message) or isinstance(message.channel, discord.PartialMessageable)
        may_go_on = self._intake.continuations.may_go_on(channel, str(message.author.id), message.created_at)
        if is_unknown or not may_go_on or points_at_another(message):
            return None
        quotation = (
            await self._quotes.find(message, self._client, channel) if message.message_snapshots else NO_QUOTATION
        )
        return parse_message(message, self._me, channel, quotation)

    def _may_listen(self, channel: discord.abc.Messageable) -> bool:
        """Return whether the bot may answer messages without a mention in a channel."""
        if isinstance(channel, discord.Thread):
            return True
        if not isinstance(channel, discord.abc.GuildChannel):
            return False
        return self._intake.settings.rules.may_answer(channel_key(channel, channel.id), _server(channel.guild))

    def _is_called(self, message: discord.Message) -> bool:
        """Return whether it is a direct message, or mentions the bot or, where its text is known, the bot's role."""
        is_role_known = not self._is_hidden(message)
        return is_direct_or_mention(message, self._me) or (is_role_known and mentions_role(message))

    def _is_hidden(self, message: discord.Message) -> bool:
        """Return whether Discord withholds the text, for lack of the Message Content intent."""
        shows_any = message.content or message.message_snapshots
        return not (shows_any or self._client.intents.message_content or server_id(message) is None)

    async def _find_channel(self, id: int, is_direct: bool) -> ChannelKey | None:
        return await self._channel_key(self._client.get_channel(id), id, is_direct=is_direct)

    async def _channel_key(self, channel: object, channel_id: int, *, is_direct: bool) -> ChannelKey | None:
        """Return the conversation's key; None if it is not cached and no longer exists."""
        if is_direct or not (channel is None or isinstance(channel, discord.PartialMessageable)):
            return channel_key(channel, channel_id)
        # It may be a thread.
        for _ in range(_UNREADABLE_ANSWERS):
            try:
                async with call_timeout(self._call_seconds, self._client):
                    fetched: Any = await self._client.http.get_channel(channel_id)
                    return described_channel(fetched, channel_id)
            except REFUSALS as gone:
                log.info("event skipped, its channel is gone", error=str(gone))
                return None
            except UnreadableAnswer as error:
                log.warning("a channel's description cannot be read", error=str(error))
        return channel_key(None, channel_id)

    @property
    def _client(self) -> discord.Client:
        assert self._current is not None, "events come from a connection"
        return self._current

    @property
    def _me(self) -> discord.ClientUser:
        assert self._client.user is not None, "events come after the login"
        return self._client.user


def _server(guild: discord.Guild | None) -> str | None:
    return None if guild is None else str(guild.id)
