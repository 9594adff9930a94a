"""Slack's Web API client, which keeps to the waits that Slack asks for."""

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from bot.adapters.slack.errors import error_of, map_errors
from bot.adapters.slack.parse import BotIdentity
from bot.adapters.slack.settings import SlackSection
from bot.errors import LoginRefused, RateLimited
from bot.util.clock import Clock, MonotonicClock

_CALL_SECONDS = 30.0
_PAGE = 200

# Slack limits these methods per channel, all others per workspace.
_PER_CHANNEL = frozenset({"chat.postMessage"})

# Above this many rate limits, those that are over are dropped.
_REMEMBERED = 1024


class RateLimitedWebClient(AsyncWebClient):
    """The library's client; a method that was rate limited is not called before its time.

    Otherwise each channel would find out by itself.

    Raises:
        RateLimited: By `api_call`, in which all methods end.
    """

    def __init__(self, clock: Clock, token: str, **options: Any) -> None:
        super().__init__(token, **options)
        self._clock = clock
        self._not_before: dict[tuple[str, object], float] = {}

    async def api_call(self, api_method: str, **options: Any) -> AsyncSlackResponse:
        lane = api_method, _channel(options) if api_method in _PER_CHANNEL else None
        wait = self._not_before.get(lane, -math.inf) - self._clock.now()
        if wait > 0:
            raise RateLimited(wait)
        try:
            return await super().api_call(api_method, **options)
        except SlackApiError as error:
            refusal = error_of(error.response)
            if isinstance(refusal, RateLimited):
                self._limit(lane, self._clock.now() + refusal.seconds)
            raise

    def _limit(self, lane: tuple[str, object], until: float) -> None:
        if len(self._not_before) >= _REMEMBERED:
            now = self._clock.now()
            self._not_before = {lane: time for lane, time in self._not_before.items() if time > now}
        self._not_before[lane] = max(until, self._not_before.get(lane, until))


def _channel(options: Mapping[str, Any]) -> object:
    arguments = options.get("json") or options.get("params") or options.get("data") or {}
    return arguments.get("channel") if isinstance(arguments, Mapping) else None


@asynccontextmanager
async def web_api(settings: SlackSection, clock: Clock | None = None) -> AsyncIterator[AsyncWebClient]:
    """Open the Web API client on one HTTP session."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS)) as session:
        yield RateLimitedWebClient(
            clock or MonotonicClock(),
            settings.bot_token.get_secret_value() if settings.bot_token else "",
            base_url=settings.api_url,
            session=session,
            proxy=settings.proxy.get_secret_value() or None,
            # The library's default handler repeats calls that may have arrived.
            retry_handlers=[],
        )


async def identify(api: AsyncWebClient) -> BotIdentity:
    """Return the bot's identity (auth.test).

    Raises:
        LoginRefused: The bot token is wrong.
    """
    try:
        with map_errors():
            found = await api.auth_test()
    except LoginRefused as error:
        raise LoginRefused(
            f"{error}: adapters.slack.bot_token is wrong. Copy the Bot User OAuth Token (xoxb-…, under OAuth & "
            "Permissions) into BOT_SLACK__BOT_TOKEN."
        ) from error
    return BotIdentity(
        user=found["user_id"] or "", bot=found["bot_id"] or "", team=found["team_id"] or "", name=found["user"] or ""
    )


async def pages(
    web: AsyncWebClient, channel: str, thread: str | None, *, oldest: str | None
) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the messages after `oldest`, a thread's oldest first, a channel's newest first.

    Raises:
        PlatformError: As `map_errors` raises it.
    """
    read = partial(
        web.conversations_history if thread is None else partial(web.conversations_replies, ts=thread),
        channel=channel,
        oldest=oldest,
        limit=_PAGE,
        include_all_metadata=True,
    )
    cursor: str | None = None
    while True:
        with map_errors():
            response = await read(cursor=cursor)
        yield response.get("messages") or []
        cursor = (response.get("response_metadata") or {}).get("next_cursor")
        if not cursor:
            return
