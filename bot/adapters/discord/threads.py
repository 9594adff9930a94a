"""Threads on Discord that are opened for answers: each is made from its question, and has the question's id."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import discord

from bot.adapters.discord.errors import REFUSALS, ThreadExists, UnreadableAnswer
from bot.adapters.discord.messenger import DiscordMessenger
from bot.chat.i18n import gettext_noop
from bot.delivery.threads import title
from bot.domain import ChannelKey, IncomingMessage
from bot.errors import AccessDenied, ContentRefused, ThreadRefused

# Minutes without a message after which Discord archives a thread: a day, its default for text channels.
_ARCHIVE_MINUTES: Literal[1440] = 1440
# The name of a thread if a filter refuses the words of its question.
_NEUTRAL_TITLE = "💬"

NO_PERMISSION = gettext_noop(
    "I cannot open threads here: I lack the permissions Create Public Threads and Send Messages in Threads."
)
NO_CONTENT = gettext_noop(
    "Discord shows me only messages that mention me: switch on the Message Content Intent (Developer Portal, Bot)."
)
_NO_THREADS = gettext_noop("This kind of channel has no threads.")
_LOCKED = gettext_noop("The thread of your message is locked, so I answer here.")
_REFUSED = gettext_noop("Discord refused a thread for this answer; there may be too many active ones.")


def missing_for_threads(channel: object) -> str:
    """Return a sentence if the bot cannot open threads in a channel; "" also if it is unknown."""
    if channel is None:
        return ""
    if not isinstance(channel, discord.TextChannel):
        return _NO_THREADS
    may = channel.permissions_for(channel.guild.me)
    return "" if may.create_public_threads and may.send_messages_in_threads else NO_PERMISSION


async def missing_for(client: discord.Client, message: IncomingMessage, wanted: str) -> list[str]:
    """Return what the bot lacks in a channel to answer "all", "triggers", or each mention in a "thread"."""
    missing = [] if client.intents.message_content else [NO_CONTENT]
    if wanted == "thread" and message.channel.thread is None:
        missing.append(missing_for_threads(client.get_channel(int(message.channel.channel))))
    return [each for each in missing if each]


async def open_thread(messenger: DiscordMessenger, question: IncomingMessage) -> ChannelKey:
    """Open the thread of a question; one that exists already is the same.

    Raises:
        ThreadRefused: It cannot be opened.
        PlatformUnavailable, RateLimited: The call may be repeated.
    """
    client = messenger.client
    missing = missing_for_threads(client and client.get_channel(int(question.channel.channel)))
    if missing:
        raise ThreadRefused(missing, NO_PERMISSION if missing == NO_PERMISSION else "")
    try:
        origin = await messenger.message_of(question)
        try:
            await _start(messenger, question, origin, title(question))
        except ContentRefused:
            await _start(messenger, question, origin, _NEUTRAL_TITLE)
    except ThreadExists:
        await _check_open(messenger, origin)  # an earlier try has opened it, or a person
    except REFUSALS as refused:
        sentence = NO_PERMISSION if isinstance(refused, AccessDenied) else _REFUSED
        raise ThreadRefused(str(refused), sentence) from refused
    return replace(question.channel, thread=origin)


async def _start(messenger: DiscordMessenger, question: IncomingMessage, origin: str, name: str) -> None:
    async with messenger.calling() as client:
        opened: Any = await client.http.start_thread_with_message(
            int(question.channel.channel), int(origin), name=name, auto_archive_duration=_ARCHIVE_MINUTES
        )
    if not isinstance(opened, Mapping) or opened.get("id") != origin:
        raise UnreadableAnswer("Discord's answer is not the thread of the message")


async def _check_open(messenger: DiscordMessenger, origin: str) -> None:
    """Check that the bot may write in the thread that a question has; one that is only archived is reopened by that.

    Raises:
        ThreadRefused: It may not.
    """
    try:
        async with messenger.calling() as client:
            found: Any = await client.http.get_channel(int(origin))
    except REFUSALS as refused:
        raise ThreadRefused(str(refused), NO_PERMISSION) from refused
    state = found.get("thread_metadata") if isinstance(found, Mapping) else None
    if isinstance(state, Mapping) and state.get("locked") is True:
        raise ThreadRefused("the thread of the question is locked", _LOCKED)
