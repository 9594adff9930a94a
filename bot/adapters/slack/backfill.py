"""What was said on Slack while nobody listened."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.slack.errors import map_errors

_PAGE = 200

# Threads are searched whose first message, or whose last one to the bot, is not older than this
# (seconds before the last message that is known).
_THREAD_AGE = 24 * 3600.0


async def pages(
    web: AsyncWebClient, channel: str, thread: str | None, *, oldest: str | None
) -> AsyncIterator[list[dict[str, Any]]]:
    """The messages after `oldest`: a thread's in their order, a channel's the newest first.

    Raises:
        PlatformError: As `translated` has it.
    """
    cursor: str | None = None
    while True:
        with map_errors():
            if thread is None:
                response = await web.conversations_history(
                    channel=channel, oldest=oldest, cursor=cursor, limit=_PAGE, include_all_metadata=True
                )
            else:
                response = await web.conversations_replies(
                    channel=channel, ts=thread, oldest=oldest, cursor=cursor, limit=_PAGE, include_all_metadata=True
                )
        yield response.get("messages") or []
        cursor = (response.get("response_metadata") or {}).get("next_cursor")
        if not cursor:
            return


def stamps(known: Mapping[str | None, str]) -> dict[str | None, float]:
    """When the newest message of each thread was said; slash commands do not tell."""
    return {thread: float(id) for thread, id in known.items() if not id.startswith("/")}


async def missed(
    web: AsyncWebClient, channel: str, known: Mapping[str | None, str], now: float
) -> list[dict[str, Any]]:
    """What was said in a channel and its threads after the newest message known there, in order.

    `known` has the newest id per thread.  `now` is the time of day, for a channel of which
    only slash commands are known: they have no timestamp.
    """
    last = stamps(known)
    since = max(last.values(), default=now - _THREAD_AGE)
    begin = since - _THREAD_AGE
    found: dict[str, dict[str, Any]] = {}
    threads = {thread for thread, stamp in last.items() if thread and float(thread) <= begin < stamp}
    async for page in pages(web, channel, None, oldest=f"{begin:.6f}"):
        for message in page:
            found[message["ts"]] = message
            if float(message.get("latest_reply") or 0) > since:  # of messages with a thread alone
                threads.add(message["ts"])
    for thread in sorted(threads):
        async for page in pages(web, channel, thread, oldest=f"{since:.6f}"):
            found |= {message["ts"]: message for message in page}
    return [found[ts] for ts in sorted(found, key=float) if float(ts) > since]
