"""A channel's history, message by message, and the bot's replies in it.

The library parses a whole page at once: one message that it cannot parse would cost all.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import discord

from bot.adapters.discord.ask import SHOWN_QUESTION, shown_question
from bot.adapters.discord.http import call_timeout
from bot.adapters.malformed import PARSE_ERRORS, skip_malformed
from bot.chat.commands import parse
from bot.chat.standing import OwnMessage, StandingReply, is_delay_notice
from bot.domain import Action, IncomingMessage
from bot.errors import PlatformUnavailable

Json = Mapping[str, Any]

# Discord allows 100; the library decodes a page's JSON on the event loop, 100 long messages in 30 ms.
_PAGE = 50
_ACTIONS = {action.value: action for action in Action}


async def pages(client: discord.Client, channel: int, after: int, call_seconds: float) -> AsyncIterator[list[Json]]:
    """Yield the messages after this id as Discord sends them, oldest first; entries without an id are skipped.

    Raises:
        PlatformUnavailable: The call failed, or its answer is no history.
    """
    while True:
        page = await _page(client, channel, after, _PAGE, call_seconds)
        messages = sorted((each for each in page if _has_id(each)), key=_id)
        yield messages
        if len(page) < _PAGE or not messages or (last := newest_id(each["id"] for each in messages)) <= after:
            return
        after = last


async def has_messages(client: discord.Client, channel: int, after: int, call_seconds: float) -> bool:
    """Return whether there are messages after this id; raises as `pages` does."""
    return bool(await _page(client, channel, after, 1, call_seconds))


async def _page(client: discord.Client, channel: int, after: int, limit: int, call_seconds: float) -> list[Any]:
    async with call_timeout(call_seconds, client):
        try:
            page: Any = await client.http.logs_from(channel, limit, after=after)
        except PARSE_ERRORS as error:
            if isinstance(error, OSError):
                raise
            raise PlatformUnavailable("Discord's answer is no history") from error
    if not isinstance(page, list):
        raise PlatformUnavailable("Discord's answer is no history")
    return page


def newest_id(message_ids: Iterable[str]) -> int:
    """Return the newest id; a forged one from the future would hide all messages before it."""
    ids = [int(message_id) for message_id in message_ids]
    tomorrow = discord.utils.time_snowflake(datetime.now(UTC) + timedelta(days=1), high=False)
    return max([id for id in ids if id < tomorrow] or ids)  # if none is left, our clock is wrong


def find_question(messages: Iterable[Json], me: int, question: IncomingMessage) -> str | None:
    """Return the id of the bot's message that shows the question of a command, if it is among them."""
    wanted = shown_question(question)
    for message in sorted((each for each in messages if _has_id(each)), key=_id):
        with skip_malformed("discord", kind="own message"):
            used = message.get("interaction_metadata") or {}
            is_its = str(used.get("id", question.id)) == question.id
            if is_its and int(message["author"]["id"]) == me and message["content"] == wanted:
                return str(message["id"])
    return None


def standing_replies(
    messages: Iterable[Json], me: int, opened_by: str = "", asked: Mapping[str, str] = MappingProxyType({})
) -> dict[str, StandingReply]:
    """Return the bot's reply to each question, from a channel's messages in order; the last reply counts.

    The first message of a reply refers to its question, each further one to the first.  Further
    messages of older versions refer to none: a channel's questions are answered one after the
    other, and the last message of a complete reply has a button, so each of them belongs to the
    oldest reply that lacks one.  In a thread that was made from a question, `opened_by`, the first
    message of the reply to it refers to none either: replies cannot refer to another channel.
    `asked` are questions that are no messages, by the bot's messages that show them.
    """
    replies: dict[str, StandingReply] = {}
    begun: dict[str, StandingReply] = {}  # by first message
    growing: list[StandingReply] = []
    edits: dict[str, datetime] = {}
    commands: set[str] = set()
    for message in messages:
        with skip_malformed("discord", kind="own message"):
            if int(message["author"]["id"]) != me:
                if message.get("edited_timestamp"):
                    edits[message["id"]] = datetime.fromisoformat(message["edited_timestamp"])
                if parse(message["content"].replace(f"<@{me}>", "").strip()) is not None:
                    commands.add(message["id"])
                continue
            refers_to = str((message.get("message_reference") or {}).get("message_id", ""))
            own = _own(message)
            refers_to = asked.get(refers_to, refers_to)
            shows_question = not refers_to and own.text.startswith(SHOWN_QUESTION)
            if is_delay_notice(own.text) or message.get("interaction_metadata") or shows_question:
                continue
            if refers_to in begun:
                reply = begun[refers_to]
                reply.messages.append(own)
            elif refers_to or (opened_by and opened_by not in replies):
                question = refers_to or opened_by
                reply = replies[question] = begun[own.id] = StandingReply([own])
                if question not in commands:  # their replies have no button
                    growing.append(reply)
            elif growing:
                reply = min(growing, key=lambda each: bool(each.messages[-1].actions))
                reply.messages.append(own)
            else:
                continue
            if reply.is_complete and reply in growing:
                growing.remove(reply)
    for question, reply in replies.items():
        reply.edited_at = edits.get(question)
    return replies


def _own(message: Json) -> OwnMessage:
    buttons = [each for row in message.get("components") or [] for each in row.get("components") or []]
    actions = frozenset(_ACTIONS[each["custom_id"]] for each in buttons if each.get("custom_id") in _ACTIONS)
    changed_at = datetime.fromisoformat(message.get("edited_timestamp") or message["timestamp"])
    return OwnMessage(str(message["id"]), message["content"], changed_at, actions)


def _has_id(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("id"), str) and message["id"].isdecimal()


def _id(message: Json) -> int:
    return int(message["id"])
