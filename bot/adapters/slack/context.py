"""Context messages on Slack: those before a question, and those that it links to."""

import re
from datetime import UTC, datetime

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.malformed import skip_malformed
from bot.adapters.slack.client import pages
from bot.adapters.slack.parse import (
    PLATFORM,
    Directory,
    Event,
    MessageParser,
    fields,
    id_of,
    is_timestamp,
    is_tombstone,
    text_of,
)
from bot.domain import Author, FurtherKind, FurtherMessage, IncomingMessage
from bot.errors import PlatformError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_LINK = re.compile(
    r"https://[\w.-]+\.slack\.com/archives/(\w{1,40})/p(\d{10})(\d{6})(?!\d)(?:\?\S*?thread_ts=(\d{10}\.\d{6}))?"
)
# Linked messages that are read.
_MOST_LINKS = 3
# A thread is read from its beginning: the last messages before a question are on its last page.  This is the most
# that Slack allows.
_PAGE_OF_THREAD = 1000
_MOST_MEMBERS = 1000


class SlackContext:
    """Reads messages with the Web API."""

    def __init__(self, web: AsyncWebClient, parser: MessageParser, directory: Directory) -> None:
        self._web = web
        self._parser = parser
        self._directory = directory

    async def before(self, question: IncomingMessage, count: int) -> list[FurtherMessage]:
        """Return the messages of others before the question, in its thread or else its channel.

        Raises:
            PlatformError: They cannot be read.
        """
        if not is_timestamp(question.id):
            return []  # a slash command
        channel, thread = question.channel.channel, question.channel.thread
        thread = None if thread == question.id else thread
        earlier: list[Event] = []
        limit = count if thread is None else _PAGE_OF_THREAD
        async for page in pages(self._web, channel, thread, oldest=None, latest=question.id, limit=limit):
            found = [*earlier, *(each for each in page if float(each["ts"]) < float(question.id))]
            earlier = sorted(found, key=lambda each: float(each["ts"]))[-count:]
            if thread is None and len(earlier) == count:
                break
        return await self._further(earlier, channel, FurtherKind.BEFORE)

    async def linked(self, question: IncomingMessage) -> list[FurtherMessage]:
        """Return the messages of the workspace that the question links to, if its author may read them."""
        found: list[FurtherMessage] = []
        for channel, seconds, rest, thread in list(dict.fromkeys(_LINK.findall(question.text)))[:_MOST_LINKS]:
            ts = f"{seconds}.{rest}"
            try:
                if await self._may_read(question, channel):
                    found += await self._further([await self._fetch(channel, ts, thread)], channel, FurtherKind.LINKED)
            except PlatformError as error:
                log.info("a linked message was not read", error=str(error))
        return found

    async def _may_read(self, question: IncomingMessage, channel: str) -> bool:
        """Return whether the author of a question may read another channel."""
        if channel == question.channel.channel:
            return True
        place = fields(await self._web.conversations_info(channel=channel)).get("channel")
        person = fields(await self._web.users_info(user=question.author.id)).get("user")
        if not isinstance(place, dict) or not isinstance(person, dict):
            return False
        is_guest = person.get("is_restricted") is True or person.get("is_ultra_restricted") is True
        if place.get("is_channel") is True and place.get("is_private") is False and not is_guest:
            return True
        members = fields(await self._web.conversations_members(channel=channel, limit=_MOST_MEMBERS)).get("members")
        return isinstance(members, list) and question.author.id in members

    async def _fetch(self, channel: str, ts: str, thread: str) -> Event:
        if thread and thread != ts:
            page = await self._web.conversations_replies(
                channel=channel, ts=thread, oldest=ts, latest=ts, inclusive=True, limit=2
            )
        else:
            page = await self._web.conversations_history(channel=channel, latest=ts, inclusive=True, limit=1)
        return next((each for each in _messages(fields(page)) if each["ts"] == ts), {})

    async def _further(self, messages: list[Event], channel: str, kind: FurtherKind) -> list[FurtherMessage]:
        found = []
        for message in messages:
            with skip_malformed(PLATFORM, kind="history"):
                if not message or is_tombstone(message) or self._parser.is_own(message):
                    continue
                sent_at = datetime.fromtimestamp(float(message["ts"]), UTC)
                text = await self._parser.quotable_text(message)
                author, thread = await self._author(message), text_of(message, "thread_ts") or None
                found.append(FurtherMessage(message["ts"], channel, author, text, sent_at, kind, thread=thread))
        return found

    async def _author(self, message: Event) -> Author:
        user = id_of(message, "user")
        if user:
            return (await self._directory.find(user))[0]
        bot = id_of(message, "bot_id")
        return Author(PLATFORM, bot, text_of(message, "username") or bot, is_bot=True)


def _messages(page: Event) -> list[Event]:
    messages = page.get("messages")
    found = [each for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    return [each for each in found if is_timestamp(text_of(each, "ts"))]
