"""HTTP calls of discord.py: endpoints, rate limits, timeouts, errors.

The library waits out a 429 or a 5xx inside the call, for minutes, and then sends a
stale text.  Here a call fails at once; the caller waits and retries with the latest text.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import discord
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route
from discord.webhook import async_

from bot.adapters.discord.errors import DEFAULT_WAIT, map_errors
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.proxy import find_proxy
from bot.adapters.response import parse_response, read_response
from bot.errors import PlatformUnavailable, RateLimited
from bot.util.clock import Clock
from bot.util.recent import RecentDict
from bot.util.retry import retry_after

# Replies notify the asker; mentions in the model's text notify no one.
ALLOWED_MENTIONS = discord.AllowedMentions(everyone=False, roles=False, users=False, replied_user=True)

_WHO_AM_I = "/users/@me"
_CHUNK = 2**16


def configure_library(settings: DiscordSection) -> None:
    """Set what discord.py keeps per process: URLs of the API and the gateway, and how responses are read."""
    # The library's own reads a response of any length, and parses it on the event loop: 5 MB took 20 ms.
    discord.http.json_or_text = _read
    async_.json_or_text = _read  # type: ignore[attr-defined]  # imported there by name
    Route.BASE = settings.api_url.rstrip("/")
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(settings.gateway_url)


def proxy_for(settings: DiscordSection, url: str) -> str | None:
    """Return the proxy to `url`; raises ConfigError as `find_proxy` does."""
    return find_proxy("discord", settings.proxy.get_secret_value(), url)


def rest_client(settings: DiscordSection, clock: Clock, trace: "RateLimitTrace | None" = None) -> discord.Client:
    """Return a client for HTTP calls, without a gateway connection; `trace` has the limits of earlier ones."""
    return discord.Client(
        intents=discord.Intents(guilds=True),  # the library warns about a client without this one
        allowed_mentions=ALLOWED_MENTIONS,
        proxy=proxy_for(settings, settings.api_url),
        http_trace=(trace or RateLimitTrace(clock)).trace,
    )


class RateLimitTrace:
    """An aiohttp TraceConfig that raises on a 429, a 5xx or a redirect, before the library handles it.

    Shared by consecutive clients, since a limit outlives the client that met it: until its end the
    same call raises without being made.

    `login_doubted` is set by a 401.  `date` is the Date header of the last answer.
    """

    def __init__(self, clock: Clock) -> None:
        self.login_doubted = asyncio.Event()
        self.date = ""
        self._clock = clock
        # When all calls, and those of a method and path, may be made again.
        self._blocked_until = clock.now()
        self._not_before = RecentDict[tuple[str, str], float]()

    @property
    def trace(self) -> aiohttp.TraceConfig:
        """The value of a client's `http_trace`."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._before)
        trace.on_request_end.append(self._after)
        trace.on_request_redirect.append(self._refuse_redirect)
        return trace

    async def _before(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, call: aiohttp.TraceRequestStartParams
    ) -> None:
        blocked_until = max(self._blocked_until, self._not_before.get((call.method, call.url.path), -math.inf))
        seconds = blocked_until - self._clock.now()
        if seconds > 0 and _is_api(call.url):
            raise RateLimited(seconds)

    async def _after(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, call: aiohttp.TraceRequestEndParams
    ) -> None:
        response = call.response
        if not _is_api(call.url):
            return
        self.date = response.headers.get("Date", "")
        # The login reports its own refusal; interactions have tokens of their own.
        if response.status == 401 and "Authorization" in call.headers and not call.url.path.endswith(_WHO_AM_I):
            self.login_doubted.set()
        if response.status != 429 and response.status < 500:
            return
        if response.status != 429:
            raise PlatformUnavailable(f"Discord answered {response.status}")
        limit = await parse_response(await _body(response), _json_object)
        header = retry_after(response.headers.get("Retry-After"), DEFAULT_WAIT)  # may be a date
        seconds = retry_after(limit.get("retry_after"), header)
        # A 429 without the API's fields comes from the proxy in front of it (Cloudflare) and concerns all calls.
        if limit.get("global", "code" not in limit and "retry_after" not in limit):
            self._blocked_until = max(self._blocked_until, self._clock.now() + seconds)
        else:
            self._not_before[call.method, call.url.path] = self._clock.now() + seconds
        raise RateLimited(seconds)

    async def _refuse_redirect(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, call: aiohttp.TraceRequestRedirectParams
    ) -> None:
        # It could take the text to another host, or turn a POST into a GET.
        call.response.close()
        raise PlatformUnavailable(f"Discord's answer is a redirect ({call.response.status}), which is not followed")


@asynccontextmanager
async def call_timeout(seconds: float, client: discord.Client) -> AsyncIterator[None]:
    """Limit a call to `seconds`; the library's own timeout is five minutes.

    Raises:
        PlatformUnavailable: The time is over; and the errors of `map_errors`.
    """
    with map_errors():
        try:
            async with asyncio.timeout(seconds):
                yield
        except (TimeoutError, asyncio.CancelledError, discord.RateLimited):
            # If the library is interrupted while it records a rate limit, or its header names an absurd
            # one, the channel's bucket stays exhausted, or a webhook's lock held, and later calls block.
            client.http._buckets.clear()
            async_.async_context.get()._locks.clear()
            raise


def _is_api(url: yarl.URL) -> bool:
    # The gateway's socket is opened in the same HTTP session.
    return str(url).startswith(Route.BASE)


async def _read(response: aiohttp.ClientResponse) -> dict[str, Any] | str:
    """Return the JSON or text of a response, as discord.py's function of the same signature.

    Raises:
        ValueError, RecursionError: It cannot be parsed.
        PlatformUnavailable: It is too long.
    """
    is_json = response.headers.get("Content-Type") == "application/json"
    return await parse_response(await _body(response), _json if is_json else _text)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    return await read_response(response.content.iter_chunked(_CHUNK), "Discord")


def _json(body: bytes) -> Any:
    return json.loads(_text(body))


def _text(body: bytes) -> str:
    return body.decode("utf-8")


def _json_object(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body.decode("utf-8", "replace"))
    except (RecursionError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
