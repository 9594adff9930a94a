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
from bot.adapters.discord.commands import is_private
from bot.adapters.discord.deadlines import Deadlines
from bot.adapters.discord.forms import DiscordForms, is_of_form
from bot.adapters.discord.guests import InteractionToken, is_guest, token_of
from bot.adapters.discord.http import call_timeout
from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.discord.parse import Use, parse_command, parse_user
from bot.adapters.discord.targets import Targets
from bot.adapters.inbox import Inbox
from bot.chat.commands import menu
from bot.chat.i18n import Translate, language_for, translator
from bot.chat.intake import ButtonResult, Intake
from bot.delivery.replies import Replies
from bot.delivery.view import PLACEHOLDER
from bot.domain import Action, ChannelKey, Exchange, IncomingMessage
from bot.errors import PlatformError, StoreError
from bot.util.clock import Clock

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds within which Discord expects a response to an interaction.
_RESPONSE_SECONDS = 3.0
# Seconds of these in which a question waits for what came before it.
_TURN_SECONDS = 1.0
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
        newest_known: Callable[[], Awaitable[object]],
        targets: Targets,
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
        self._newest_known = newest_known
        self._targets = targets
        self._forms = DiscordForms(intake, messenger.format, self._channel_of, self._respond)
        self._deadlines = deadlines

    async def on_interaction(self, use: Use) -> None:
        interaction = use.interaction
        data: Mapping[str, Any] = interaction.data or {}
        name, action = str(data.get("name")), _ACTIONS.get(str(data.get("custom_id")))
        is_command = interaction.type is discord.InteractionType.application_command
        if is_command and name in _COMMANDS:
            await self._in_turn(use, partial(self._run_command, use))
        elif is_command and name == ASK:
            await self._soon(use, partial(self._ask, use))
        elif is_command and name == ABOUT:
            await self._open_modal(use)
        elif (target := target_of_modal(interaction)) is not None:
            await self._soon(use, partial(self._ask_about, use, target))
        elif interaction.type is discord.InteractionType.autocomplete and name in _COMMANDS:
            await self._complete(use)
        elif use.message_id is not None and action is not None:
            await self._press(use, str(use.message_id), action)
        elif is_of_form(interaction):
            await self._forms.use(use)
        else:
            log.info("interaction ignored, it is no command or button of this bot", kind=interaction.type.name)

    async def _in_turn(self, use: Use, work: Work) -> None:
        """Carry out what is said in a channel after what was said there before.

        In a guest place there are no other messages, and a token is worth nothing unless it is used in time.
        """
        if not _is_by_guest(use):
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
        if not _is_by_guest(use):
            await self._newest_known()  # else the question would be taken for it, and what was missed before for known
        try:
            await take()
        except (PlatformError, StoreError) as error:
            is_lost = _is_by_guest(use)
            log.warning("question not stored" if is_lost else "question not stored yet", error=str(error))

    async def _run_command(self, use: Use) -> None:
        interaction, channel = use.interaction, await self._channel_of(use)
        message = parse_command(interaction, channel) if channel else None
        if message is not None and (form := await self._inbox.open_form(message)) is not None:
            await self._forms.show(interaction, form)
            return
        exchange = await self._intake.accept(message) if message else None
        if exchange is None or message is None:
            await self._refuse(interaction)
            return
        is_answered = True
        if exchange.message.id == message.id:
            is_for_user = is_private(message)
            await self._respond(interaction.response.defer(ephemeral=is_for_user, thinking=True))
            # Also without a confirmation: if Discord does not know the response, the messenger sends a message.
            token = InteractionToken(interaction.token, message.id)
            self._messenger.responses.know(message.id, token, is_private=is_for_user)
        elif is_guest(exchange.message.channel):  # a retry, answered in the response to it
            embed = _question_embed(exchange.message)
            shown = await self._respond(interaction.response.send_message(PLACEHOLDER, embed=embed))
            is_answered = shown is not None
        else:  # a retry, answered in the reply of the question
            translate = self._intake.settings.translator_for(exchange.message)
            notice = translate("I am answering the question again.")
            await self._respond(interaction.response.send_message(notice, ephemeral=True))
        self._start(exchange, is_answered=is_answered)

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
        self._targets.keep(use, target, quoted)
        await self._respond(interaction.response.send_modal(about_modal(target, _translator(interaction))))

    async def _ask_about(self, use: Use, target: str) -> None:
        interaction, channel = use.interaction, await self._channel_of(use)
        if channel is None:
            await self._refuse(interaction)
            return
        if (quoted := await self._targets.find(use, channel, target)) is None:
            translate = _translator(interaction)
            sentence = translate("I cannot read that message any more. Please choose it again.")
            await self._respond(interaction.response.send_message(sentence, ephemeral=True))
            return
        await self._accept(use, question_about(interaction, channel, quoted))

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

    def _start(self, exchange: Exchange, *, is_answered: bool = True) -> None:
        """Show a reply; if its newest interaction was not answered, with the token that is known from before."""
        if is_answered or not self._messenger.responses.has_question(exchange.message.id):
            self._messenger.know(exchange.message, exchange.parts)
            if token_of(exchange.message) is not None:
                self._deadlines.start(exchange)
        self._replies.start(exchange)

    async def _complete(self, use: Use) -> None:
        """Offer what the option that is being typed may be."""
        offered = [] if use.channel is None else self._intake.offers(parse_command(use.interaction, use.channel))
        choices = [discord.app_commands.Choice(name=each, value=each) for each in offered[:_MOST_CHOICES]]
        await self._respond(use.interaction.response.autocomplete(choices))

    async def _press(self, use: Use, message_id: str, action: Action) -> None:
        """Apply a button at once: Stop must not wait in the queue."""
        response = use.interaction.response
        try:
            channel = await self._channel_of(use)
            exchange = await self._intake.exchanges.find_by_reply(channel, message_id) if channel else None
            result = ButtonResult() if exchange is None else await self._on_button(use, exchange, message_id, action)
        except (PlatformError, StoreError) as error:
            # Without a response Discord shows that the interaction failed.
            log.warning("button press failed", error=str(error))
            return
        # The token can be used from the response on, and changes the message unless the response is a notice.
        notice = response.send_message(result.notice, ephemeral=True) if result.notice else response.defer()
        is_answered = await self._respond(notice) is not None
        if exchange is not None and result.again is not None:
            self._messenger.know(exchange.message, exchange.parts)  # its other messages keep their token
            self._start(result.again, is_answered=is_answered)

    async def _on_button(self, use: Use, exchange: Exchange, message_id: str, action: Action) -> ButtonResult:
        channel, interaction = exchange.message.channel, use.interaction
        press = str(interaction.id)
        token = InteractionToken(interaction.token, press, message_id)
        return await self._intake.on_button(
            channel,
            message_id,
            action,
            parse_user(interaction.user),
            press=press,
            locale=str(interaction.locale),
            # Also where the bot is a member by now: the messages of the reply cannot be changed otherwise.
            reply_address=token.address if is_guest(channel) else None,
        )

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


def _is_by_guest(use: Use) -> bool:
    return use.channel is not None and is_guest(use.channel)


def _question_embed(question: IncomingMessage) -> discord.Embed:
    """Return what shows a question beside its answer, where the response to the command is the answer."""
    return discord.Embed(description=question.text[:_LONGEST_DESCRIPTION]).set_author(name=question.author.name[:256])
