"""Backfill of messages missed while disconnected; Slack may not deliver them again."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.inbox import Inbox
from bot.adapters.slack.client import pages
from bot.adapters.slack.errors import TRANSIENT
from bot.adapters.slack.handlers import SlackHandlers
from bot.adapters.slack.parse import PLATFORM, Event, MessageParser
from bot.chat.intake import Intake
from bot.domain import ChannelKey, IncomingMessage
from bot.errors import LoginRefused, PlatformError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds: threads are read whose root or last known message is at most this much older than the
# channel's last known message.
_THREAD_AGE = 24 * 3600.0


@dataclass(frozen=True, eq=False)
class SlackBackfill:
    """Stores missed messages, one channel after another."""

    _api: AsyncWebClient
    _parser: MessageParser
    _intake: Intake
    _inbox: Inbox
    _handlers: SlackHandlers
    _retry: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]

    async def prepare(self) -> Mapping[ChannelKey, str]:
        """Return the newest stored id per thread, and hold live events there until `run`.

        Called before connecting: a newer message would hide those that were missed.
        """
        known = await self._intake.last_message_ids(PLATFORM)
        self._handlers.hold({key.channel for key in known})
        return known

    async def run(self, known: Mapping[ChannelKey, str]) -> None:
        """Start all replies owed, then read what is newer than `known`, latest active channel first.

        Slack allows about one such call a second.
        """
        channels: dict[str, dict[str | None, str]] = {}
        for key, newest in known.items():
            channels.setdefault(key.channel, {})[key.thread] = newest
        await self._retry(self._inbox.recover)
        for channel in sorted(channels, key=lambda channel: _last_activity(channels[channel]), reverse=True):
            await self._retry(partial(self._read, channel, channels[channel]))
            self._handlers.release(channel)

    async def _read(self, channel: str, known: Mapping[str | None, str]) -> None:
        async def parse(event: Event) -> IncomingMessage | None:
            return await self._parser.parse({**event, "channel": channel})

        try:
            missed = await _missed(self._api, channel, known, datetime.now(UTC).timestamp())
        except (*TRANSIENT, LoginRefused):
            raise
        except PlatformError as error:
            log.warning("slack: channel not readable, its backfill is skipped", channel=channel, error=str(error))
        else:
            await self._inbox.backfill(missed, parse)


async def _missed(
    web: AsyncWebClient, channel: str, known: Mapping[str | None, str], now: float
) -> list[dict[str, Any]]:
    """Return the messages of a channel and its threads newer than any known one, in order."""
    times = _timestamps(known)
    # Only slash commands may be known, which have no timestamp.
    since = max(times.values(), default=now - _THREAD_AGE)
    begin = since - _THREAD_AGE
    found: dict[str, dict[str, Any]] = {}
    threads = {thread for thread, time in times.items() if thread and float(thread) <= begin < time}
    async for page in pages(web, channel, None, oldest=f"{begin:.6f}"):
        for message in page:
            found[message["ts"]] = message
            if float(message.get("latest_reply") or 0) > since:
                threads.add(message["ts"])
    for thread in sorted(threads):
        async for page in pages(web, channel, thread, oldest=f"{since:.6f}"):
            found |= {message["ts"]: message for message in page}
    return [found[ts] for ts in sorted(found, key=float) if float(ts) > since]


def _timestamps(known: Mapping[str | None, str]) -> dict[str | None, float]:
    return {thread: float(id) for thread, id in known.items() if not id.startswith("/")}


def _last_activity(known: Mapping[str | None, str]) -> float:
    return max(_timestamps(known).values(), default=0.0)
