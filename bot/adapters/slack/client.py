"""Slack's Web API client, which keeps to the waits that Slack asks for."""

import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import structlog
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from bot.adapters.login import confirm
from bot.adapters.proxy import find_proxy
from bot.adapters.response import parse_response, read_response
from bot.adapters.slack.errors import error_for, error_of
from bot.adapters.slack.parse import BotIdentity, fields, id_of, is_timestamp, is_tombstone, text_of
from bot.adapters.slack.settings import SlackSection
from bot.errors import AccessDenied, LoginRefused, PlatformUnavailable, RateLimited
from bot.util.clock import Clock, MonotonicClock
from bot.util.unreachable import why_unreachable

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_CALL_SECONDS = 30.0
_PAGE = 200

_CHUNK = 2**16

# Slack limits these methods per channel, all others per workspace.
_PER_CHANNEL = frozenset({"chat.postMessage"})

# Above this many rate limits, those that are over are dropped.
_REMEMBERED = 1024

# The one method that takes the app token.
_OPEN = "apps.connections.open"


class SlackWebClient(AsyncWebClient):
    """The library's client with errors of bot.errors, and bounds on what it reads.

    A method that was rate limited is not called before its time: otherwise each channel would
    find out by itself.  `date` is the Date header of the last answer.

    Raises:
        PlatformError: By `api_call`, in which all methods end.
    """

    def __init__(self, clock: Clock, session: aiohttp.ClientSession, token: str, **options: Any) -> None:
        # The library's default handler repeats calls that may have arrived.
        super().__init__(token, session=session, retry_handlers=[], **options)
        self._clock = clock
        self.date = ""
        self._http = session
        self._not_before: dict[tuple[str, object], float] = {}

    async def api_call(self, api_method: str, **options: Any) -> AsyncSlackResponse:
        try:
            return await self._call(api_method, **options)
        except LoginRefused as refusal:
            asked = (
                partial(self._call, api_method, **options) if api_method == _OPEN else partial(self._call, "auth.test")
            )
            await confirm(asked, self._clock)
            raise PlatformUnavailable(f"{refusal}, but the token is valid") from refusal

    async def _call(self, api_method: str, **options: Any) -> AsyncSlackResponse:
        lane = api_method, _channel(options) if api_method in _PER_CHANNEL else None
        wait = self._not_before.get(lane, -math.inf) - self._clock.now()
        if wait > 0:
            raise RateLimited(wait)
        # The library removes the token from the arguments.
        copied: dict[str, Any] = {
            name: dict(value) if isinstance(value, dict) else value for name, value in options.items()
        }
        try:
            response = await super().api_call(api_method, **copied)
        except SlackApiError as error:
            refusal = error_of(error.response)
            if isinstance(refusal, RateLimited):
                log.warning("slack: rate limited", method=api_method, seconds=refusal.seconds)
                self._limit(lane, self._clock.now() + refusal.seconds)
            if api_method == _OPEN and isinstance(refusal, AccessDenied):
                refusal = LoginRefused(str(refusal))  # an app token without the scope
            raise refusal from error
        if response.get("ok") is not True:
            raise PlatformUnavailable("Slack's response cannot be parsed")
        return response

    async def respond(self, url: str, content: Mapping[str, Any]) -> bool:
        """Send a reply to the response URL of a command; return False if it has expired or says something strange.

        Raises:
            PlatformError: The reply may have arrived.
        """
        status, headers, body = await fetch(self._http, "POST", url, json=content, proxy=self.proxy)
        if status == 200:
            return body.strip() in {b"", b"ok"} or _object(body).get("ok") is True
        if 400 <= status < 500 and status != 429:
            return False
        raise error_for(status, "", headers.get("Retry-After"))

    async def _request(self, *, http_verb: str, api_url: str, req_args: dict[str, Any]) -> dict[str, Any]:
        # The library's own follows redirects, and raises whatever reading a strange body raises.
        status, headers, body = await fetch(self._http, http_verb, api_url, **req_args)
        self.date = headers.get("Date", "")
        return {"data": await parse_response(body, _object), "headers": headers, "status_code": status}

    def _limit(self, lane: tuple[str, object], until: float) -> None:
        if len(self._not_before) >= _REMEMBERED:
            now = self._clock.now()
            self._not_before = {lane: time for lane, time in self._not_before.items() if time > now}
        self._not_before[lane] = max(until, self._not_before.get(lane, until))


async def fetch(
    session: aiohttp.ClientSession, verb: str, url: str, **options: Any
) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, headers and body of a response; the session limits the time.

    Raises:
        PlatformUnavailable: There is none, or it is too long.
    """
    try:
        async with session.request(verb, url, allow_redirects=False, **options) as response:
            body = await read_response(response.content.iter_chunked(_CHUNK), "Slack")
            return response.status, response.headers, body
    except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
        raise PlatformUnavailable(f"Slack cannot be reached: {why_unreachable(error)}") from error


def _object(body: bytes) -> dict[str, Any]:
    """Return a JSON object; empty if the body is something else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _channel(options: Mapping[str, Any]) -> object:
    arguments = options.get("json") or options.get("params") or options.get("data") or {}
    return arguments.get("channel") if isinstance(arguments, Mapping) else None


@asynccontextmanager
async def web_api(settings: SlackSection, clock: Clock | None = None) -> AsyncIterator[SlackWebClient]:
    """Open the Web API client on one HTTP session."""
    proxy = find_proxy("slack", settings.proxy.get_secret_value(), settings.api_url)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS)) as session:
        client = SlackWebClient(
            clock or MonotonicClock(),
            session,
            settings.bot_token.get_secret_value() if settings.bot_token else "",
            base_url=settings.api_url,
            proxy=proxy,
        )
        client.proxy = proxy  # without one, the library has looked for one itself
        yield client


async def identify(api: AsyncWebClient) -> BotIdentity:
    """Return the bot's identity (auth.test).

    Raises:
        LoginRefused: The bot token is wrong.
        PlatformUnavailable: The response names no user or workspace.
    """
    try:
        found = fields(await api.auth_test())
    except LoginRefused as error:
        raise LoginRefused(
            f"{error}: adapters.slack.bot_token is wrong. Copy the Bot User OAuth Token (xoxb-…, under OAuth & "
            "Permissions) into BOT_SLACK__BOT_TOKEN."
        ) from error
    user, team = id_of(found, "user_id"), id_of(found, "team_id")
    if not (user and team):
        raise PlatformUnavailable("Slack's auth.test names no user or workspace")
    return BotIdentity(user=user, bot=id_of(found, "bot_id"), team=team, name=text_of(found, "user"))


async def is_shown(web: AsyncWebClient, channel: str, thread: str | None, ts: str) -> bool:
    """Return whether a message is in the history of its channel or thread; an empty one proves nothing.

    Raises:
        PlatformError: The history cannot be read.
    """
    if thread in (None, ts):
        page = fields(await web.conversations_history(channel=channel, latest=ts, inclusive=True, limit=1))
    else:  # which begins with its first message, whatever is asked for
        page = fields(
            await web.conversations_replies(channel=channel, ts=thread, oldest=ts, latest=ts, inclusive=True, limit=2)
        )
    messages = page.get("messages")
    if not isinstance(messages, list) or not messages:
        return True
    return any(isinstance(each, dict) and text_of(each, "ts") == ts and not is_tombstone(each) for each in messages)


async def pages(
    web: AsyncWebClient,
    channel: str,
    thread: str | None,
    *,
    oldest: str | None,
    latest: str | None = None,
    limit: int = _PAGE,
) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the messages after `oldest` and before `latest`, a thread's oldest first, a channel's newest first.

    A page has `limit` messages, or fewer: Slack decides.

    Raises:
        PlatformError: A page cannot be read.
    """
    read = partial(
        web.conversations_history if thread is None else partial(web.conversations_replies, ts=thread),
        channel=channel,
        oldest=oldest,
        latest=latest,
        limit=limit,
        include_all_metadata=True,
    )
    seen: set[str] = set()
    cursor = ""
    while True:
        page = fields(await read(cursor=cursor or None))
        messages = page.get("messages")
        if not isinstance(messages, list):
            raise PlatformUnavailable("Slack's history names no messages")
        readable = [each for each in messages if isinstance(each, dict) and is_timestamp(text_of(each, "ts"))]
        if len(readable) < len(messages):
            log.warning("slack: malformed messages skipped", channel=channel, count=len(messages) - len(readable))
        yield readable
        metadata = page.get("response_metadata")
        cursor = text_of(metadata, "next_cursor") if isinstance(metadata, dict) else ""
        if not cursor:
            return
        if cursor in seen:
            raise PlatformUnavailable("Slack's history repeats a page")
        seen.add(cursor)
