"""How discord.py reaches Discord: where to, and what happens when a call is refused.

The library would wait out a 429 or a 5xx inside the call, for minutes, and then send
the text of back then.  Here each call ends at once with an error of ours: who made it
waits, and comes back with the text of that moment.
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
from bot.errors import ChannelGone, LoginRefused, MessageGone, PlatformUnavailable, RateLimited
from bot.util.clock import Clock

LOGIN_REFUSED = (
    "Discord does not know this token: make a new one (Developer Portal, your application, Bot, Reset Token) "
    "and set BOT_DISCORD__TOKEN, or the secret file discord__token, to it"
)

# Whatever the model says, only who asked is told.
PINGS = discord.AllowedMentions(everyone=False, roles=False, users=False, replied_user=True)

# Discord's own codes: https://discord.com/developers/docs/topics/opcodes-and-status-codes#json
_UNKNOWN_CHANNEL = 10003
_TOO_MANY_EDITS = 30046
_ARCHIVED = 50083
_LOCKED = 160005
_GONE = frozenset({_UNKNOWN_CHANNEL, _ARCHIVED, _LOCKED})

# Messages older than an hour bear about 3 edits in 20 s; the refusal does not always say so.
_LONG_WAIT = 20.0


def configure_endpoints(settings: DiscordSection) -> None:
    """Set the servers to talk to.

    discord.py knows them per process and not per client: two adapters of one process
    talk to the same.
    """
    Route.BASE = settings.api_url.rstrip("/")
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(settings.gateway_url)


def rest_client(settings: DiscordSection, clock: Clock) -> discord.Client:
    """A client for calls alone: it hears nothing."""
    return discord.Client(
        intents=discord.Intents(guilds=True),  # it warns of a client without; nobody connects this one
        allowed_mentions=PINGS,
        proxy=settings.proxy.get_secret_value() or None,
        http_trace=RateLimitTrace(clock).trace,
    )


class RateLimitTrace:
    """Ends each refused call at once, through the hooks of the library's HTTP session."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._nobody_until = clock.now()

    @property
    def trace(self) -> aiohttp.TraceConfig:
        """For `http_trace` of a client."""
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._before)
        trace.on_request_end.append(self._after)
        return trace

    async def _before(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, call: aiohttp.TraceRequestStartParams
    ) -> None:
        wait = self._nobody_until - self._clock.now()
        if wait > 0 and _is_rest(call.url):
            raise RateLimited(wait)

    async def _after(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, call: aiohttp.TraceRequestEndParams
    ) -> None:
        response = call.response
        if not _is_rest(call.url) or (response.status != 429 and response.status < 500):
            return
        body = await response.text()
        if response.status != 429:
            raise PlatformUnavailable(f"Discord answered {response.status}")
        refusal = _read(body)
        seconds = _seconds(refusal.get("retry_after")) or _seconds(response.headers.get("Retry-After")) or _LONG_WAIT
        # What is not written as Discord's API writes it comes from what stands before it, and means all calls.
        is_for_all = refusal.get("global", "code" not in refusal and "retry_after" not in refusal)
        if is_for_all:
            self._nobody_until = max(self._nobody_until, self._clock.now() + seconds)
        raise RateLimited(seconds)


@asynccontextmanager
async def call_timeout(seconds: float, client: discord.Client) -> AsyncIterator[None]:
    """Give a call up after so many seconds; the library would wait for five minutes.

    Raises:
        PlatformUnavailable: That was so; and whatever `translated` does.
    """
    with map_errors():
        try:
            async with asyncio.timeout(seconds):
                yield
        except (TimeoutError, asyncio.CancelledError):
            # Broken off just while the library takes note of it, a call leaves its channel's limit used
            # up for good, or a command's lock taken, and every later one waits for that in vain: so the
            # library counts anew.
            client.http._buckets.clear()
            async_context.get()._locks.clear()
            raise


@contextmanager
def map_errors() -> Iterator[None]:
    """Make an error of the library one of ours.

    Raises:
        RateLimited, PlatformUnavailable, LoginRefused, MessageGone, ChannelGone
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
            raise RateLimited(_LONG_WAIT) from exc
        if exc.status == 403 and exc.code == 0:
            # Not of Discord's API but of what stands before it: it has nothing against this channel.
            raise PlatformUnavailable("Discord refuses calls from this address (403)") from exc
        if exc.status == 403 or exc.code in _GONE:
            raise ChannelGone(f"Discord lets the bot no longer write there ({exc.code}: {exc.text})") from exc
        if exc.status == 404:
            raise MessageGone(f"Discord does not know it any more ({exc.code}: {exc.text})") from exc
        raise
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise PlatformUnavailable(f"Discord cannot be reached: {str(exc) or type(exc).__name__}") from exc
    except RuntimeError as exc:
        if exc.args != ("Session is closed",):
            raise
        raise PlatformUnavailable("the connection to Discord was closed") from exc


def _is_rest(url: yarl.URL) -> bool:
    """Whether this is a call of the API and not the gateway's socket."""
    return str(url).startswith(Route.BASE)


def _seconds(value: object) -> float:
    """A number of seconds however it is written; 0 where there is none."""
    try:
        return max(0.0, float(value)) if isinstance(value, (int, float, str)) else 0.0
    except ValueError:  # Retry-After may be a date
        return 0.0


def _read(body: str) -> dict[str, object]:
    try:
        refusal = json.loads(body)
    except ValueError:
        return {}
    return refusal if isinstance(refusal, dict) else {}
