"""Interactions on Discord: slash commands, questions by command, buttons, forms."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import discord
import structlog

from bot.adapters.discord.ask import (
    ABOUT,
    ASK,
    about_modal,
    asked_question,
    question_about,
    shown_question,
    target_of,
    target_of_modal,
)
from bot.adapters.discord.deadlines import Deadlines
from bot.adapters.discord.forms import DiscordForms, is_of_form
from bot.adapters.discord.guests import is_guest, token_of
from bot.adapters.discord.http import call_timeout
from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.discord.parse import Use, channel_id, parse_command, parse_user
from bot.adapters.discord.quotes import fetch_message, quotation_of
from bot.adapters.inbox import Inbox
from bot.adapters.quotation import Quotation
from bot.chat.commands import menu
from bot.chat.i18n import Translate, language_for, translator
from bot.chat.intake import Intake
from bot.delivery.replies import Replies
from bot.delivery.view import PLACEHOLDER
from bot.domain import Action, ChannelKey, Exchange, IncomingMessage
from bot.errors import PlatformError, StoreError
from bot.util.clock import Clock
from bot.util.recent import RecentDict

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds within which Discord expects a response to an interaction.
_RESPONSE_SECONDS = 3.0
# Seconds of these in which a question waits for what came before it.
_TURN_SECONDS = 1.0
# Seconds of these for reading the message that a question is about, if it is not known any more.
_FETCH_SECONDS = 1.5
# Commands that affect the whole channel are answered in public, the others only to their user.
_PUBLIC = frozenset({"clear", "persona", "model"})
_ACTIONS = {action.value: action for action in Action}
# Choices that Discord shows for an option.
_MOST_CHOICES = 25
_COMMANDS = frozenset(command.name for command in menu())
# Characters of the description of an embed.
_LONGEST_DESCRIPTION = 4000

Work = Callable[[], Awaitable[None]]


class DiscordInteractions:
    """Carries interactions out: what is said in a channel in the order of its messages, the rest at once."""

    def __init__(
        self,
        call_seconds: float,
        intake: Intake,
        inbox: Inbox,
        replies: Replies,
        messenger: DiscordMessenger,
        client: Callable[[], discord.Client],
        channel_of_id: Callable[[int], Awaitable[ChannelKey | None]],
        put: Callable[[Work], None],
        deadlines: Deadlines,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._call_seconds = call_seconds
        self._intake = intake
        self._inbox = inbox
        self._replies = replies
        self._messenger = messenger
        self._client = client
        self._channel_of_id = channel_of_id
        self._put = put
        self._forms = DiscordForms(intake, messenger.format, self._channel_of, self._respond)
        self._deadlines = deadlines
        # Messages that modals are about, by the user and the message's id.
        self._targets: RecentDict[tuple[int, str], Quotation] = RecentDict(1000)

    async def on_interaction(self, use: Use) -> None:
        interaction = use.interaction
        data: Mapping[str, Any] = interaction.data or {}
        name, action = str(data.get("name")), _ACTIONS.get(str(data.get("custom_id")))
        is_command = interaction.type is discord.InteractionType.application_command
        if is_command and name in _COMMANDS:
            await self._in_turn(use, partial(self._run_command, use, name))
        elif is_command and name == ASK:
            await self._soon(use, partial(self._ask, use))
        elif is_command and name == ABOUT:
            await self._open_modal(use)
        elif (target := target_of_modal(interaction)) is not None:
            await self._soon(use, partial(self._ask_about, use, target))
        elif interaction.type is discord.InteractionType.autocomplete and name in _COMMANDS:
            await self._complete(use)
        elif use.message_id is not None and action is not None:
            await self._press(use, use.message_id, action)
        elif is_of_form(interaction):
            await self._forms.use(use)
        else:
            log.info("interaction ignored, it is no command or button of this bot", kind=interaction.type.name)

    async def _in_turn(self, use: Use, work: Work) -> None:
        """Carry out what is said in a channel after what was said there before.

        In a guest place there are no other messages, and a token is worth nothing unless it is used in time.
        """
        if use.channel is None or not is_guest(use.channel):
            self._put(work)
            return
        try:
            await work()
        except StoreError as error:
            # Without a response Discord shows that the interaction failed.
            log.warning("interaction not stored", error=str(error))

    async def _soon(self, use: Use, work: Work) -> None:
        """Take a question in its turn, unless that comes too late for a response, as while missed messages are read."""
        taking, is_taken = asyncio.Lock(), False

        async def take() -> None:
            nonlocal is_taken
            async with taking:
                if not is_taken:
                    await work()
                    is_taken = True

        await self._in_turn(use, take)
        await self._clock.sleep(_TURN_SECONDS)
        try:
            await take()
        except (PlatformError, StoreError) as error:
            log.info("question not stored yet, it is in the queue", error=str(error))

    async def _run_command(self, use: Use, name: str) -> None:
        interaction, channel = use.interaction, await self._channel_of(use)
        message = parse_command(interaction, channel) if channel else None
        if message is not None and (form := await self._inbox.open_form(message)) is not None:
            await self._forms.show(interaction, form)
            return
        exchange = await self._intake.accept(message) if message else None
        if exchange is None or message is None:
            await self._refuse(interaction)
            return
        if exchange.message.id == message.id:
            await self._respond(interaction.response.defer(ephemeral=name not in _PUBLIC, thinking=True))
            # Also without a confirmation: if Discord does not know the response, the messenger sends a message.
            self._messenger.responses.know(message.id, interaction.token)
        else:  # a retry, answered in the reply of the question
            translate = self._intake.settings.translator_for(exchange.message)
            notice = translate("I am answering the question again.")
            await self._respond(interaction.response.send_message(notice, ephemeral=True))
        self._start(exchange)

    async def _ask(self, use: Use) -> None:
        channel = await self._channel_of(use)
        await self._accept(use, asked_question(use.interaction, channel) if channel else None)

    async def _open_modal(self, use: Use) -> None:
        """Ask for the question about a message; it comes with the modal."""
        interaction, channel = use.interaction, use.channel
        if channel is not None and not self._intake.access.admits(parse_command(interaction, channel)):
            await self._refuse(interaction)
            return
        me = self._client().user
        assert me is not None, "known after the login"
        target, quoted = target_of(interaction, me)
        self._targets[interaction.user.id, target] = quoted
        await self._respond(interaction.response.send_modal(about_modal(target, _translator(interaction))))

    async def _ask_about(self, use: Use, target: str) -> None:
        interaction, channel = use.interaction, await self._channel_of(use)
        if channel is None:
            await self._refuse(interaction)
            return
        quoted = self._targets.get((interaction.user.id, target)) or await self._read_target(use, channel, target)
        if quoted is None:
            translate = _translator(interaction)
            sentence = translate("I cannot read that message any more. Please choose it again.")
            await self._respond(interaction.response.send_message(sentence, ephemeral=True))
            return
        await self._accept(use, question_about(interaction, channel, quoted))

    async def _read_target(self, use: Use, channel: ChannelKey, target: str) -> Quotation | None:
        """Read the message of a modal that was opened before a restart; None if that cannot be."""
        client, seconds = self._client(), min(_FETCH_SECONDS, self._call_seconds)
        if is_guest(channel) or client.user is None:
            return None
        try:
            message = await fetch_message(client, use.interaction.guild_id, channel_id(channel), int(target), seconds)
        except PlatformError as error:
            log.info("the message of a question was not read", error=str(error))
            return None
        return quotation_of(message, client.user)

    async def _accept(self, use: Use, question: IncomingMessage | None) -> None:
        """Store a question, show it as the response to its interaction, and start its reply."""
        exchange = await self._intake.accept(question) if question is not None else None
        if question is None or (exchange is None and not self._intake.access.admits(question)):
            await self._refuse(use.interaction)
            return
        # Also one that is known: it may have been stored without an acknowledgement.
        self._messenger.know(question)
        response = use.interaction.response
        if is_guest(question.channel):
            await self._respond(response.send_message(PLACEHOLDER, embed=_question_embed(question)))
        else:
            shown = await self._respond(response.send_message(shown_question(question), suppress_embeds=True))
            if shown is not None and shown.message_id is not None:
                self._messenger.question_shown(question.id, str(shown.message_id))
        if exchange is not None:
            self._start(exchange)

    def _start(self, exchange: Exchange) -> None:
        self._messenger.know(exchange.message, exchange.parts)
        if (token := token_of(exchange.message)) is not None:
            self._deadlines.start(exchange, token)
        self._replies.start(exchange)

    async def _complete(self, use: Use) -> None:
        """Offer what the option that is being typed may be."""
        offered = [] if use.channel is None else self._intake.offers(parse_command(use.interaction, use.channel))
        choices = [discord.app_commands.Choice(name=each, value=each) for each in offered[:_MOST_CHOICES]]
        await self._respond(use.interaction.response.autocomplete(choices))

    async def _press(self, use: Use, message_id: int, action: Action) -> None:
        """Apply a button at once: Stop must not wait in the queue."""
        try:
            channel = await self._channel_of(use)
            if channel is not None and is_guest(channel):
                channel = await self._know_reply(channel, str(message_id), use.interaction.token)
            by = parse_user(use.interaction.user)
            press, locale = str(use.interaction.id), str(use.interaction.locale)
            notice = await self._inbox.press(channel, str(message_id), action, by, press, locale) if channel else ""
        except (PlatformError, StoreError) as error:
            # Without a response Discord shows that the interaction failed.
            log.warning("button press failed", error=str(error))
            return
        response = use.interaction.response
        await self._respond(response.send_message(notice, ephemeral=True) if notice else response.defer())

    async def _know_reply(self, channel: ChannelKey, message_id: str, token: str) -> ChannelKey | None:
        """Let the messages of a reply be changed: the one that was pressed with the token of the press.

        Return its conversation, None if it is no reply.
        """
        exchange = await self._intake.exchanges.find_by_reply(channel, message_id)
        if exchange is None:
            return None
        self._messenger.know(exchange.message, exchange.parts)
        self._messenger.responses.know_message(message_id, token)
        if exchange.parts[:1] == (message_id,):
            self._messenger.responses.know(exchange.message.id, token)
            self._deadlines.start(exchange, token)
        return channel

    async def _channel_of(self, use: Use) -> ChannelKey | None:
        if use.channel is None and use.channel_id is not None:
            return await self._channel_of_id(use.channel_id)
        if use.channel is None:
            log.warning("interaction without a channel", kind=use.interaction.type.name)
        return use.channel

    async def _refuse(self, interaction: discord.Interaction) -> None:
        translate = _translator(interaction)
        await self._respond(interaction.response.send_message(translate("I do not answer here."), ephemeral=True))

    async def _respond(self, response: Awaitable[T]) -> T | None:
        """Answer an interaction within Discord's time; a failure is logged."""
        try:
            async with call_timeout(min(_RESPONSE_SECONDS, self._call_seconds), self._client()):
                return await response
        except PlatformError as error:
            log.warning("interaction not answered", error=str(error))
            return None


def _translator(interaction: discord.Interaction) -> Translate:
    return translator(language_for("auto", str(interaction.locale), ""))


def _question_embed(question: IncomingMessage) -> discord.Embed:
    """Return what shows a question beside its answer, where the response to the command is the answer."""
    return discord.Embed(description=question.text[:_LONGEST_DESCRIPTION]).set_author(name=question.author.name[:256])
