"""The Messenger on discord.py."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import discord
import structlog
from discord.http import handle_message_parameters

from bot.adapters.discord.ask import opening_message, shown_question
from bot.adapters.discord.commands import is_private
from bot.adapters.discord.errors import (
    ReferenceRefused,
    ThreadArchived,
    TokenExpired,
    UnknownDenial,
    UnknownRefusal,
    UnreadableAnswer,
)
from bot.adapters.discord.guests import SHOWN, is_guest, token_of
from bot.adapters.discord.history import find_question
from bot.adapters.discord.http import ALLOWED_MENTIONS, call_timeout
from bot.adapters.discord.messages import buttons, check_message, id_in
from bot.adapters.discord.parse import PLATFORM, channel_id
from bot.adapters.discord.responses import Responses
from bot.adapters.send_once import SendOnce
from bot.delivery.markdown.format import MarkdownFormat, Rendered, utf16_units
from bot.delivery.messenger import nonce as nonce_of
from bot.domain import Author, ChannelKey, Controls, IncomingMessage
from bot.errors import AccessDenied, ChannelGone, EditRefused, MessageGone, PlatformUnavailable
from bot.util.recent import RecentDict

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Discord documents "2000 characters" without a unit; UTF-16 units are the largest count.
_FORMAT = MarkdownFormat(2000, utf16_units)
# Number of the message that shows a question among those of its reply: it is none of them.
_QUESTION = -2


class DiscordMessenger:
    """A Messenger over `client`, which is replaced with each new connection.

    Discord deduplicates sends by their nonce for some minutes; after that SendOnce
    looks for the first message of a reply in the channel's history.

    Of an answer only the message's id is read: the library parses the whole message, and fails on
    fields that are not needed here.
    """

    def __init__(self, edit_seconds: float, call_seconds: float) -> None:
        self.client: discord.Client | None = None
        self._edit_seconds = edit_seconds
        self._call_seconds = call_seconds
        self._once = SendOnce()
        self.responses = Responses(self.calling)
        # Questions of commands, and the messages that show them, by the id of the question.
        self._asked: RecentDict[str, IncomingMessage] = RecentDict()
        self._shown: RecentDict[str, str] = RecentDict()

    @property
    def format(self) -> MarkdownFormat:
        return _FORMAT

    def edit_interval(self, channel: ChannelKey) -> float:
        return self._edit_seconds

    def know(self, question: IncomingMessage, parts: Sequence[str] = ()) -> None:
        """Take note of a question that may be no message: how its reply is shown is stored with it."""
        if (token := token_of(question)) is not None:
            self.responses.know(question.id, token, parts, is_private=is_private(question))
        elif (shown := opening_message(question)) is not None:
            self.question_shown(question.id, shown)
        elif question.reply_address == SHOWN and question.id not in self._shown:
            self._asked[question.id] = question

    def question_shown(self, question: str, message_id: str) -> None:
        """Take note of the message that shows a question of a command."""
        self._shown[question] = message_id
        self._asked.pop(question, None)

    def forget(self, channel: ChannelKey | None, author: Author | None) -> None:
        """Forget questions whose texts were deleted: in a channel, of a person, or both."""
        for question in list(self._asked.values()):
            place = question.channel
            is_there = channel is None or place == channel or replace(place, thread=None) == channel
            if is_there and (author is None or question.author.key == author.key):
                del self._asked[question.id]

    async def send(
        self,
        channel: ChannelKey,
        text: Rendered,
        *,
        reply_to: str | None,
        controls: Controls,
        nonce: str,
        may_exist: bool = False,
        continues: str | None = None,
    ) -> str:
        if is_guest(channel):
            return await self.responses.send_as_guest(text, controls, reply_to=reply_to, continues=continues)
        if reply_to is not None and self.responses.has_question(reply_to):
            try:
                return await self.responses.show(reply_to, text, controls)
            except MessageGone as gone:
                log.info("a command is answered with a message", error=str(gone))
                self.responses.forget(reply_to)
        if continues is not None and self.responses.is_private(continues):
            return await self.responses.go_on(continues, text, controls)
        if reply_to is not None and (question := self._asked.get(reply_to)) is not None:
            reply_to = await self.message_of(question)
        reply_to = self._shown.get(reply_to or "", reply_to)

        async def post() -> str:
            with suppress(ReferenceRefused):
                return await self._post(channel, text, reply_to or continues, controls, nonce)
            return await self._post(channel, text, None, controls, nonce)

        if may_exist:
            self._once.maybe_sent(nonce)
        return await self._once.send(nonce, post, lambda: self._find(channel, text, reply_to))

    async def message_of(self, question: IncomingMessage) -> str:
        """Return the id of the message that a question is, or that shows it; one that nothing shows is sent.

        Raises:
            PlatformError: As `send` does.
        """
        if question.reply_address != SHOWN:
            return question.id
        if (known := self._shown.get(question.id)) is None:
            known = await self._find_question(question)
            if known is None:
                # The response to its interaction came too late, or never.
                text, once = Rendered(shown_question(question)), nonce_of(question, _QUESTION)
                known = await self._post(question.channel, text, None, frozenset(), once)
            self.question_shown(question.id, known)
        return known

    async def _find_question(self, question: IncomingMessage) -> str | None:
        # Without access the send itself reports the error.
        with suppress(AccessDenied, ChannelGone, MessageGone):
            async with self.calling() as client:
                page: Any = await client.http.logs_from(channel_id(question.channel), 100, after=int(question.id))
            me = client.user
            return find_question(page if isinstance(page, list) else [], me.id if me else 0, question)
        return None

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        if is_guest(channel):
            await self.responses.edit_as_guest(message_id, text, controls)
            return
        if self.responses.has_message(message_id):
            with suppress(TokenExpired):
                await self.responses.edit(message_id, text, controls)
                return
        target, message = channel_id(channel), int(message_id)
        try:
            async with self.calling() as client:
                with handle_message_parameters(
                    content=text.text, view=buttons(controls), allowed_mentions=ALLOWED_MENTIONS
                ) as params:
                    check_message(await client.http.edit_message(target, message, params=params), id=message_id)
        except (ReferenceRefused, ThreadArchived, UnknownDenial, UnknownRefusal) as refused:
            raise EditRefused(str(refused)) from refused

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        if is_guest(channel):
            await self.responses.delete_as_guest(message_id)
            return
        async with self.calling() as client:
            deletion: Awaitable[object] = client.http.delete_message(channel_id(channel), int(message_id))
            if await deletion:  # no content is due
                raise UnreadableAnswer("Discord's answer to a deletion cannot be read")

    async def show_typing(self, channel: ChannelKey) -> None:
        """Show for some seconds that the bot writes; in a guest place the response to the command says so already."""
        if not is_guest(channel):
            async with self.calling() as client:
                await client.http.send_typing(channel_id(channel))

    async def send_direct(self, message: IncomingMessage, text: str) -> None:
        """Send a text to the author of a message, as a direct message."""
        async with self.calling() as client:
            opening: Awaitable[object] = client.http.start_private_message(int(message.author.id))
            direct = ChannelKey(PLATFORM, id_in(await opening, "a channel"))
        await self._post(direct, Rendered(text), None, frozenset(), secrets.token_hex(8))

    async def _post(
        self, channel: ChannelKey, text: Rendered, refers_to: str | None, controls: Controls, nonce: str
    ) -> str:
        target, reference = channel_id(channel), discord.utils.MISSING
        if refers_to is not None and not self._is_opened_by(channel, refers_to):
            # Discord drops the reference if the message was deleted.
            reference = discord.MessageReference(
                message_id=int(refers_to), channel_id=target, fail_if_not_exists=False
            ).to_message_reference_dict()
        async with self.calling() as client:
            with handle_message_parameters(
                content=text.text,
                message_reference=reference,
                nonce=nonce,
                flags=discord.MessageFlags(suppress_embeds=True),
                view=buttons(controls),
                allowed_mentions=ALLOWED_MENTIONS,
            ) as params:
                return check_message(await client.http.send_message(target, params=params), channel_id=str(target))

    async def _find(self, channel: ChannelKey, text: Rendered, reply_to: str | None) -> str | None:
        """Return the id of the bot's reply to this message, if it still has its first text.

        Comparing the text excludes the notice of a delayed message, which is a reply too.
        """
        if reply_to is None:
            return None
        question, is_opened = discord.Object(int(reply_to)), self._is_opened_by(channel, reply_to)
        # Without access the send itself reports the error.
        with suppress(AccessDenied, ChannelGone, MessageGone):
            async with self.calling() as client:
                place = client.get_partial_messageable(channel_id(channel))
                async for message in place.history(limit=100, after=question):
                    refers_to = None if message.reference is None else message.reference.message_id
                    is_reply = refers_to == question.id or (refers_to is None and is_opened)
                    if is_reply and message.author == client.user and message.content == text.text:
                        return str(message.id)
        return None

    def _is_opened_by(self, channel: ChannelKey, message_id: str) -> bool:
        """Return whether a thread was made from this message, which is not in it: no reply can refer to it there."""
        if channel.thread != message_id:
            return False
        parent = self.client and self.client.get_channel(int(channel.channel))
        return not isinstance(parent, discord.ForumChannel)  # a post holds its first message itself

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[discord.Client]:
        """Make calls within the time limit; the library's errors become those of bot.errors."""
        client = self.client
        if client is None or client.is_closed():
            raise PlatformUnavailable("Discord is not connected")
        async with call_timeout(self._call_seconds, client):
            yield client
