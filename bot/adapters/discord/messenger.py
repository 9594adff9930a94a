"""The Messenger on discord.py."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import discord
import structlog
from discord.http import handle_message_parameters
from discord.webhook.async_ import async_context

from bot.adapters.discord.errors import (
    ReferenceRefused,
    ThreadArchived,
    UnknownDenial,
    UnknownRefusal,
    UnreadableAnswer,
)
from bot.adapters.discord.http import ALLOWED_MENTIONS, call_timeout
from bot.adapters.discord.parse import PLATFORM, channel_id
from bot.adapters.send_once import SendOnce
from bot.delivery.markdown.format import MarkdownFormat, Rendered, utf16_units
from bot.domain import Action, ChannelKey, Controls, IncomingMessage
from bot.errors import AccessDenied, ChannelGone, EditRefused, MessageGone, PlatformUnavailable
from bot.util.recent import RecentDict

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Discord documents "2000 characters" without a unit; UTF-16 units are the largest count.
_FORMAT = MarkdownFormat(2000, utf16_units)
# Symbols, since the reader's language is unknown here.
_SYMBOLS = {Action.STOP: "⏹️", Action.RETRY: "🔄", Action.UP: "👍", Action.DOWN: "👎"}
# The API's name of the response to an interaction, whose id is unknown until it is shown.
_RESPONSE: Any = "@original"
# The most digits of an id.
_ID_DIGITS = 20


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
        # Slash commands by their own id, and by the id of the response.
        self._commands: RecentDict[str, discord.Interaction] = RecentDict()
        self._responses: RecentDict[str, discord.Interaction] = RecentDict()

    @property
    def format(self) -> MarkdownFormat:
        return _FORMAT

    def edit_interval(self, channel: ChannelKey) -> float:
        return self._edit_seconds

    def respond_to(self, interaction: discord.Interaction) -> None:
        """Show the reply to this slash command as its response; the command was deferred."""
        self._commands[str(interaction.id)] = interaction

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
        interaction = self._commands.get(reply_to or "")
        if interaction is not None:
            try:
                return await self._respond(interaction, text)
            except MessageGone as gone:
                log.info("a command is answered with a message", error=str(gone))
                self._commands.pop(reply_to or "", None)

        async def post() -> str:
            with suppress(ReferenceRefused):
                return await self._post(channel, text, reply_to or continues, controls, nonce)
            return await self._post(channel, text, None, controls, nonce)

        if may_exist:
            self._once.maybe_sent(nonce)
        return await self._once.send(nonce, post, lambda: self._find(channel, text, reply_to))

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        interaction = self._responses.get(message_id)
        if interaction is not None and not interaction.is_expired():
            await self._respond(interaction, text)
            return
        target, message = channel_id(channel), int(message_id)
        try:
            async with self.calling() as client:
                with handle_message_parameters(
                    content=text.text, view=_buttons(controls), allowed_mentions=ALLOWED_MENTIONS
                ) as params:
                    _check_message(await client.http.edit_message(target, message, params=params), id=message_id)
        except (ReferenceRefused, ThreadArchived, UnknownDenial, UnknownRefusal) as refused:
            raise EditRefused(str(refused)) from refused

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        async with self.calling() as client:
            deletion: Awaitable[object] = client.http.delete_message(channel_id(channel), int(message_id))
            if await deletion:  # no content is due
                raise UnreadableAnswer("Discord's answer to a deletion cannot be read")

    async def send_direct(self, message: IncomingMessage, text: str) -> None:
        """Send a text to the author of a message, as a direct message."""
        async with self.calling() as client:
            opening: Awaitable[object] = client.http.start_private_message(int(message.author.id))
            direct = ChannelKey(PLATFORM, _id_in(await opening, "a channel"))
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
                view=_buttons(controls),
                allowed_mentions=ALLOWED_MENTIONS,
            ) as params:
                return _check_message(await client.http.send_message(target, params=params), channel_id=str(target))

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

    async def _respond(self, interaction: discord.Interaction, text: Rendered) -> str:
        """Show the text as the response to a command; an edit, so a retry is idempotent.

        The interaction's own method would use the client that received it, which may be closed.
        """
        async with self.calling() as client:
            webhook = discord.Webhook.partial(interaction.application_id, interaction.token, client=client)
            with handle_message_parameters(content=text.text, allowed_mentions=ALLOWED_MENTIONS) as params:
                shown = await async_context.get().edit_webhook_message(
                    interaction.application_id,
                    interaction.token,
                    _RESPONSE,
                    session=webhook.session,
                    proxy=client.http.proxy,
                    payload=params.payload,
                )
            id = _check_message(shown)
        self._responses[id] = interaction
        return id

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[discord.Client]:
        """Make calls within the time limit; the library's errors become those of bot.errors."""
        client = self.client
        if client is None or client.is_closed():
            raise PlatformUnavailable("Discord is not connected")
        async with call_timeout(self._call_seconds, client):
            yield client


def _buttons(controls: Controls) -> discord.ui.View:
    """Return the buttons below a message; an empty view removes them."""
    view = discord.ui.View(timeout=None)
    for action in (each for each in Action if each in controls):
        view.add_item(discord.ui.Button(emoji=_SYMBOLS[action], custom_id=action.value))
    # The library keeps every view that was not stopped; presses are matched by custom_id instead.
    view.stop()
    return view


def _check_message(answer: object, **expected: str) -> str:
    """Return the id of the message in an answer, after comparing these fields.

    Raises:
        UnreadableAnswer: It is something else, so the call may or may not have had its effect.
    """
    id = _id_in(answer, "a message")
    message = answer if isinstance(answer, Mapping) else {}
    if any(str(message.get(field)) != value for field, value in expected.items()):
        raise UnreadableAnswer("Discord's answer is another message")
    return id


def _id_in(answer: object, kind: str) -> str:
    """Return the id of the object in an answer.

    Raises:
        UnreadableAnswer: It has none.
    """
    id = str(answer.get("id")) if isinstance(answer, Mapping) else ""
    if len(id) > _ID_DIGITS or not (id.isascii() and id.isdecimal()):
        raise UnreadableAnswer(f"Discord's answer is not {kind}")
    return id
