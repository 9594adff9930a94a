"""The verbs that a growing reply needs, on Discord."""

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import discord

from bot.adapters.discord.http import call_timeout
from bot.adapters.discord.parse import target
from bot.delivery.markdown.format import MarkdownFormat, Rendered, utf16_units
from bot.domain import Action, ChannelKey, Controls, Exchange
from bot.errors import ChannelGone, MessageGone, PlatformUnavailable

T = TypeVar("T")

# Discord says "2000 characters" and not which: counted so, no way of counting finds more.
_FORMAT = MarkdownFormat(2000, utf16_units)
# Signs and no words: the reader's language is not known where a button is made.
_FACES = {Action.STOP: "⏹️", Action.RETRY: "🔄"}
# Commands, and messages that may have been sent before: more than are under way at once.
_REMEMBERED = 512
_BAD_WEBHOOK_TOKEN = 50027
# What Discord's API calls the response to an interaction, whose id is not known before it is shown.
_RESPONSE: Any = "@original"


class DiscordMessenger:
    """A Messenger over `client`, the one that is connected at the moment, if one is."""

    def __init__(self, edit_seconds: float, call_seconds: float) -> None:
        self.client: discord.Client | None = None
        self._edit_seconds = edit_seconds
        self._call_seconds = call_seconds
        # Slash commands that wait for their reply, and those whose reply is shown, by its message.
        self._asked: OrderedDict[str, discord.Interaction] = OrderedDict()
        self._shown: OrderedDict[str, discord.Interaction] = OrderedDict()
        self._doubtful: OrderedDict[str, None] = OrderedDict()

    @property
    def format(self) -> MarkdownFormat:
        return _FORMAT

    def edit_interval(self, channel: ChannelKey) -> float:
        return self._edit_seconds

    def expect(self, interaction: discord.Interaction) -> None:
        """Reply to this slash command in Discord's own way; "thinking" is shown already."""
        _remember(self._asked, str(interaction.id), interaction)

    def doubt(self, exchange: Exchange) -> None:
        """Expect that the first message of this reply was sent before: Discord forgets nonces after minutes."""
        _remember(self._doubtful, f"{exchange.id}.0.0", None)

    async def send(
        self, channel: ChannelKey, text: Rendered, *, reply_to: str | None, controls: Controls, nonce: str
    ) -> str:
        interaction = self._asked.get(reply_to or "")
        if interaction is not None:
            try:
                return await self._respond(interaction, text)
            except MessageGone:
                # Too late for Discord, not for who asked: they get a message like any other.
                self._asked.pop(reply_to or "", None)
        reference = None
        if reply_to is not None:
            if nonce in self._doubtful:
                found = await self._sent_before(channel, text, reply_to)
                if found is not None:
                    self._doubtful.pop(nonce, None)
                    return found
            # Discord leaves the reference out where the question was deleted.
            reference = discord.MessageReference(
                message_id=int(reply_to), channel_id=target(channel), fail_if_not_exists=False
            )
        async with self._calling() as client:
            message = await client.get_partial_messageable(target(channel)).send(
                text.text,
                reference=reference,  # type: ignore[arg-type]  # the library's own signature forbids its None
                nonce=nonce,
                suppress_embeds=True,
                view=_buttons(controls),
            )
        self._doubtful.pop(nonce, None)
        return str(message.id)

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        interaction = self._shown.get(message_id)
        if interaction is not None and not interaction.is_expired():
            await self._respond(interaction, text)
            return
        async with self._calling() as client:
            message = client.get_partial_messageable(target(channel)).get_partial_message(int(message_id))
            await message.edit(content=text.text, view=_buttons(controls))

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        async with self._calling() as client:
            await client.get_partial_messageable(target(channel)).get_partial_message(int(message_id)).delete()

    async def _sent_before(self, channel: ChannelKey, text: Rendered, reply_to: str) -> str | None:
        """The id of our reply to this message that still shows the text it was sent with, if it can be read.

        The text tells it from the excuse for a database that cannot be written to, which is a reply as well.
        """
        question = discord.Object(int(reply_to))
        # Whether we may write there is for the send to find out.
        with suppress(ChannelGone, MessageGone):
            async with self._calling() as client:
                async for message in client.get_partial_messageable(target(channel)).history(limit=100, after=question):
                    is_reply = message.reference is not None and message.reference.message_id == question.id
                    if is_reply and message.author == client.user and message.content == text.text:
                        return str(message.id)
        return None

    async def _respond(self, interaction: discord.Interaction, text: Rendered) -> str:
        """Show the text as the response to a command; an edit, so trying again never says it twice.

        The interaction's own call would go out by the client that heard the command, which may be closed by now.
        """
        async with self._calling() as client:
            webhook = discord.Webhook.partial(interaction.application_id, interaction.token, client=client)
            webhook.proxy = client.http.proxy
            try:
                message = await webhook.edit_message(_RESPONSE, content=text.text)
            except discord.HTTPException as exc:
                if exc.code == _BAD_WEBHOOK_TOKEN:
                    raise MessageGone("Discord takes no response to this command any more") from exc
                raise
        _remember(self._shown, str(message.id), interaction)
        return str(message.id)

    @asynccontextmanager
    async def _calling(self) -> AsyncIterator[discord.Client]:
        client = self.client
        if client is None or client.is_closed():
            raise PlatformUnavailable("Discord is not connected")
        async with call_timeout(self._call_seconds, client):
            yield client


def _buttons(controls: Controls) -> discord.ui.View:
    """The buttons under a message; an empty view takes them away."""
    view = discord.ui.View(timeout=None)
    for action in sorted(controls):
        view.add_item(discord.ui.Button(emoji=_FACES[action], custom_id=action.value))
    # A view that was stopped is shown all the same, and not kept for ever by the library:
    # presses are read by their custom id.
    view.stop()
    return view


def _remember(where: OrderedDict[str, T], key: str, value: T) -> None:
    where[key] = value
    while len(where) > _REMEMBERED:
        where.popitem(last=False)
