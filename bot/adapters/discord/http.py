"""HTTP calls of discord.py: endpoints, rate limits, timeouts, errors.

The library waits out a 429 or a 5xx inside the call, for minutes, and then sends a
stale text.  Here a call fails at once; the caller waits and retries with the latest text.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace

import aiohttp
import discord
import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route
from discord.webhook.async_ import async_context

from bot.adapters.discord.settings import DiscordSection
from bot.errors import (
    ChannelGone,
    ContentRefused,
    EditRefused,
    LoginRefused,
    MessageGone,
    PlatformUnavailable,
    RateLimited,
)
from bot.util.clock import Clock

LOGIN_REFUSED = (
    "Discord rejects the token: create a new one (Developer Portal, your application, Bot, Reset Token) "
    "and put it into BOT_DISCORD__TOKEN or the secret file discord__token"
)

# Replies notify the asker; mentions in the model's text notify no one.
ALLOWED_MENTIONS = discord.AllowedMentions(everyone=False, roles=False, users=False, replied_user=True)

# Discord's error codes: https://discord.com/developers/docs/topics/opcodes-and-status-codes#json
_UNKNOWN_CHANNEL = 10003
_TOO_MANY_EDITS = 30046
_ARCHIVED = 50083
_LOCKED = 160005
_GONE = frozenset({_UNKNOWN_CHANNEL, _ARCHIVED, _LOCKED})
# AutoMod's rules of the server, and the filter for harmful links.
_FILTERED = frozenset({200000, 240000})
_AUTHORED_BY_ANOTHER = 50005

# Seconds, where a 429 names none: messages older than an hour allow about 3 edits in 20 s.
_DEFAULT_WAIT = 20.0


def configure_endpoints(settings: DiscordSection) -> None:
    """Set the URLs of the API and the gateway, which discord.py keeps per process."""
    Route.BASE = settings.api_url.rstrip("/")
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(settings.gateway_url)


def rest_client(settings: DiscordSection, clock: Clock) -> discord.Client:
    """Return a client for HTTP calls, without a gateway connection."""
    return discord.Client(
        intents=discord.Intents(guilds=True),  # the library warns about a client without this one
        allowed_mentions=ALLOWED_MENTIONS,
        proxy=settings.proxy.get_secret_value() or None,
        http_trace=RateLimitTrace(clock).trace,
    )


class RateLimitTrace:
    """An aiohttp TraceConfig that raises on a 429 or a 5xx, before the library handles it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._blocked_until = clock.now()

    @property
    def trace(self) -> aiohttp.TraceConfig:
        """The value of a client's `http_trace`."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._before)
        trace.on_request_end.append(self._after)
        return trace

    async def _before(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, call: aiohttp.TraceRequestStartParams
    ) -> None:
        seconds = self._blocked_until - self._clock.now()
        if seconds > 0 and _is_api(call.url):
            raise RateLimited(seconds)

    async def _after(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, call: aiohttp.TraceRequestEndParams
    ) -> None:
        response = call.response
        if not _is_api(call.url) or (response.status != 429 and response.status < 500):
            return
        body = await response.text()
        if response.status != 429:
            raise PlatformUnavailable(f"Discord answered {response.status}")
        limit = _json_object(body)
        seconds = _seconds(limit.get("retry_after")) or _seconds(response.headers.get("Retry-After")) or _DEFAULT_WAIT
        # A 429 without the API's fields comes from the proxy in front of it (Cloudflare) and concerns all calls.
        if limit.get("global", "code" not in limit and "retry_after" not in limit):
            self._blocked_until = max(self._blocked_until, self._clock.now() + seconds)
        raise RateLimited(seconds)


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
        except (TimeoutError, asyncio.CancelledError):
            # If the library is interrupted while it records a rate limit, the channel's bucket stays
            # exhausted, or a webhook's lock stays held, and later calls block.  So drop both.
            client.http._buckets.clear()
            async_context.get()._locks.clear()
            raise


@contextmanager
def map_errors() -> Iterator[None]:
    """Translate the library's errors.

    Raises:
        RateLimited, PlatformUnavailable, LoginRefused, MessageGone, EditRefused, ChannelGone, ContentRefused
    """
    try:
        yield
    except discord.RateLimited as exc:
        raise RateLimited(exc.retry_after) from exc
    except discord.LoginFailure as exc:
        raise LoginRefused(LOGIN_REFUSED) from exc
    except discord.HTTPException as exc:
        if exc.status == 401 and exc.code == 0:
            raise LoginRefused(LOGIN_REFUSED) from exc
        if exc.code == _TOO_MANY_EDITS:
            raise RateLimited(_DEFAULT_WAIT) from exc
        if exc.code in _FILTERED:
            raise ContentRefused(f"a filter refuses the text ({exc.code})") from exc
        if exc.code == _AUTHORED_BY_ANOTHER:
            raise EditRefused(f"the message may not be edited ({exc.code})") from exc
        if exc.status == 403 and exc.code == 0:
            # From the proxy in front of the API, so it says nothing about this channel.
            raise PlatformUnavailable("Discord blocks calls from this address (403)") from exc
        if exc.status == 403 or exc.code in _GONE:
            raise ChannelGone(f"the bot no longer has access to the channel ({exc.code}: {exc.text})") from exc
        if exc.status == 404:
            raise MessageGone(f"the message no longer exists ({exc.code}: {exc.text})") from exc
        raise
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise PlatformUnavailable(f"Discord cannot be reached: {str(exc) or type(exc).__name__}") from exc
    except RuntimeError as exc:
        if exc.args != ("Session is closed",):
            raise
        raise PlatformUnavailable("the connection to Discord was closed") from exc


def _is_api(url: yarl.URL) -> bool:
    # The gateway's socket is opened in the same HTTP session.
    return str(url).startswith(Route.BASE)


def _seconds(value: object) -> float:
    try:
        return max(0.0, float(value)) if isinstance(value, (int, float, str)) else 0.0
    except ValueError:  # Retry-After may be a date
        return 0.0


def _json_object(body: str) -> dict[str, object]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
