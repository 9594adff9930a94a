"""The gateway connection: intents, sessions, slash commands."""

import asyncio
import copy
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import aiohttp
import discord
import structlog
from discord.http import HTTPClient

from bot.adapters.discord.handlers import DiscordHandlers
from bot.adapters.discord.http import ALLOWED_MENTIONS, RateLimitTrace, call_timeout, proxy_for
from bot.adapters.discord.parse import parse_interaction, without_unreadable
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.malformed import PARSE_ERRORS, describe_error, skip_malformed
from bot.errors import PlatformError, PlatformUnavailable, RateLimited
from bot.util.clock import Clock
from bot.util.retry import Backoff, log_retry, retry

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between two IDENTIFYs: Discord requires 5, and allows 1000 a day.  The longest is below the
# 60 s after which the library gives up.
_FIRST_IDENTIFY = 5.5
_LONGEST_IDENTIFY = 40.0
# The longest of these waits in seconds: the number of sessions is per day.
_DAY = 86_400.0
# Seconds between attempts to read the application and to register the slash commands.
_FIRST_SETUP_RETRY = 60.0
_LONGEST_SETUP_RETRY = 3600.0

# No warnings about missing packages for voice, which the bot does not use.
discord.VoiceClient.warn_nacl = False
discord.VoiceClient.warn_dave = False


class IdentifyBudget:
    """Delays IDENTIFYs; shared by consecutive clients."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._backoff = Backoff(_FIRST_IDENTIFY, _LONGEST_IDENTIFY)
        self._next = clock.now()

    async def acquire(self) -> None:
        while (seconds := self._next - self._clock.now()) > 0:
            await self._clock.sleep(seconds)
        self._next = self._clock.now() + self._backoff.after_failure()

    def succeeded(self) -> None:
        self._backoff.succeeded()


def identify_delay(remaining: int, total: int, reset_after: float) -> float:
    """Return the seconds to wait before one of the `remaining` sessions of the day is used.

    Discord resets the token of a bot that exceeds the limit.  The first half is free;
    the second half is spread over the seconds until the reset.

    >>> identify_delay(999, 1000, 80_000.0), identify_delay(400, 1000, 80_000.0), identify_delay(0, 1000, 80_000.0)
    (0.0, 200.0, 80000.0)
    """
    return 0.0 if 2 * remaining > total else min(reset_after / max(remaining, 1), _DAY)


class BotClient(discord.Client):
    """One connection; a closed client cannot be used again."""

    def __init__(
        self,
        settings: DiscordSection,
        handlers: DiscordHandlers,
        trace: RateLimitTrace,
        budget: IdentifyBudget,
        clock: Clock,
        server_seconds: float,
        cut_off_seconds: float,
    ) -> None:
        # Read when the session begins, so `setup_hook` can still add to them.
        self._wanted_intents = discord.Intents(
            guilds=True,
            guild_messages=True,
            dm_messages=True,
            guild_reactions=handlers.takes_votes,
            dm_reactions=handlers.takes_votes,
        )
        super().__init__(
            intents=self._wanted_intents,
            allowed_mentions=ALLOWED_MENTIONS,
            proxy=proxy_for(settings, settings.api_url),
            http_trace=trace.trace,
            # The minimum.  It concerns predicted rate limits only; `trace` handles a 429.
            max_ratelimit_timeout=30.0,
            max_messages=None,
            guild_ready_timeout=server_seconds,
        )
        # The library has one proxy for both, but one of the two may be on this machine.
        self.http.ws_connect = partial(_connect_gateway, self.http, settings)  # type: ignore[method-assign]
        self.was_ready = False
        self.is_connected = False  # `is_ready` of the library stays true when the connection is lost
        self._event_handlers = handlers
        self._trace = trace
        self._budget = budget
        self._clock = clock
        self._call_seconds = settings.call_seconds
        self._cut_off_seconds = cut_off_seconds
        self._outage: asyncio.Timeout | None = None
        self._cut_off_reason = ""
        self._is_application_known = False
        self._application_lock = asyncio.Lock()
        self._setup: list[asyncio.Task[None]] = []
        parsers = self._connection.parsers
        parsers["MESSAGE_CREATE"] = partial(without_unreadable, build=parsers["MESSAGE_CREATE"])
        parsers["MESSAGE_UPDATE"] = partial(self._parse_update, build=parsers["MESSAGE_UPDATE"])
        parsers["INTERACTION_CREATE"] = self._parse_interaction
        # A malformed event would otherwise close the connection. Each connection needs its READY.
        self._connection.parsers = {
            name: parse if name == "READY" else _guarded(name, parse) for name, parse in parsers.items()
        }
        for handler in handlers.events:
            self.event(handler)

    async def login(self, token: str) -> None:
        """Log in; unlike the library's, also if the application is unknown."""
        user: dict[str, Any] = {"username": "", "discriminator": "0", "avatar": None}
        user.update(await self.http.static_login(token))
        self._connection.user = discord.ClientUser(state=self._connection, data=user)  # type: ignore[arg-type]
        await self.setup_hook()

    async def setup_hook(self) -> None:
        try:
            await self._read_application()
        except PlatformError as error:
            log.warning("application not read, connecting without the Message Content intent", error=str(error))
            self._setup.append(asyncio.create_task(self._complete_intents()))
        self._wanted_intents.message_content = self._may_read_content
        self._setup.append(asyncio.create_task(self._register_commands()))

    async def _read_application(self) -> None:
        """Read the application unless it is known."""
        async with self._application_lock:
            if not self._is_application_known:
                await self._fetch_application()

    async def _fetch_application(self) -> None:
        async with call_timeout(self._call_seconds, self):
            data: Mapping[str, Any] = await self.http.application_info()
            flags = discord.ApplicationFlags._from_value(int(data.get("flags") or 0))
            self._connection.application_id = int(data["id"])
            self._connection.application_flags = flags
        self._is_application_known = True
        if data.get("interactions_endpoint_url"):
            log.warning("an Interactions Endpoint URL is set: commands and buttons do not reach the bot")

    @property
    def _may_read_content(self) -> bool:
        """Requesting an intent that is not enabled closes the connection."""
        flags = self.application_flags
        return self._is_application_known and (flags.gateway_message_content or flags.gateway_message_content_limited)

    async def _complete_intents(self) -> None:
        """Begin another session once the application is known to have more intents."""
        if await self._until_done(self._read_application, "application not read") and self._may_read_content:
            self._wanted_intents.message_content = True  # for a session that has not begun yet
            self._cut_off("it lacks the Message Content intent")

    async def _register_commands(self) -> None:
        payload = self._event_handlers.commands()

        async def register() -> None:
            if self.application_id is None:  # READY names it too
                await self._read_application()
            async with call_timeout(self._call_seconds, self):
                registered: object = await self.http.bulk_upsert_global_commands(self.application_id or 0, payload)
            if not isinstance(registered, list):
                raise PlatformUnavailable("Discord's answer lists no commands")

        await self._until_done(register, "slash commands not registered")

    async def _until_done(self, attempt: Callable[[], Awaitable[None]], failure: str) -> bool:
        """Retry what the connection does not need; return False if Discord refuses it."""
        errors, backoff = (PlatformUnavailable, RateLimited), Backoff(_FIRST_SETUP_RETRY, _LONGEST_SETUP_RETRY)
        try:
            await retry(
                attempt, *errors, clock=self._clock, backoff=backoff, on_failure=log_retry(f"{failure}, retrying")
            )
        except PlatformError as error:
            log.warning(failure, error=str(error))
            return False
        return True

    async def connect(self, *, reconnect: bool = True) -> None:
        """Stay connected until the connection is lost for `cut_off_seconds`.

        The library's backoff grows up to 17 minutes and cannot be interrupted.  Its first
        attempts come soon and resume the session, so it gets that much time.
        """
        await self._spread_identifies()
        try:
            async with asyncio.timeout(None) as self._outage:
                await super().connect(reconnect=reconnect)
        except TimeoutError as exc:
            reason = self._cut_off_reason or f"Discord's gateway was unreachable for {self._cut_off_seconds:g} s"
            raise PlatformUnavailable(f"the session ended: {reason}") from exc
        finally:
            self._outage = None

    async def _spread_identifies(self) -> None:
        try:
            async with call_timeout(self._call_seconds, self):
                _, _, limit = await self.http.get_bot_gateway()
                seconds = identify_delay(limit["remaining"], limit["total"], limit["reset_after"] / 1000)
        except (discord.GatewayNotFound, PlatformError) as error:
            log.info("sessions left today unknown", error=str(error))  # a proxy may not know this call
            return
        if seconds > 0:
            log.warning("few sessions left today, connecting later", seconds=round(seconds), left=limit["remaining"])
            await self._clock.sleep(seconds)

    async def close(self) -> None:
        # The library does not cancel its wait for the first servers, which then fails on the closed client.
        tasks = [task for task in (*self._setup, self._connection._ready_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().close()

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        await self._budget.acquire()

    async def on_connect(self) -> None:
        self._set_outage_deadline(None)
        self._event_handlers.session_started(self, self._trace.date)

    async def on_ready(self) -> None:
        self.was_ready = self.is_connected = True
        self._budget.succeeded()
        self._event_handlers.channels_known()

    async def on_resumed(self) -> None:
        self._set_outage_deadline(None)
        self.is_connected = True

    async def on_disconnect(self) -> None:
        self.is_connected = False
        # Also called for each failed attempt to reconnect; the time counts from the first.
        if self._outage is not None and self._outage.when() is None:
            self._set_outage_deadline(asyncio.get_running_loop().time() + self._cut_off_seconds)

    def _cut_off(self, reason: str) -> None:
        """End this session; the next one begins with a new client."""
        self._cut_off_reason = reason
        self._set_outage_deadline(asyncio.get_running_loop().time())

    def _set_outage_deadline(self, when: float | None) -> None:
        if self._outage is not None:
            self._outage.reschedule(when)

    def _parse_update(self, data: Mapping[str, Any], build: Callable[[Any], object]) -> None:
        if not data.get("edited_timestamp"):
            return  # Discord's own, such as adding a link's preview
        if all(name in data for name in ("author", "content", "timestamp", "type")):
            without_unreadable(data, build)
        else:
            server = data.get("guild_id")
            where = int(server) if server else None, int(data["channel_id"]), int(data["id"])
            self._event_handlers.edited_somehow(*where)

    def _parse_interaction(self, data: Mapping[str, Any]) -> None:
        self.dispatch("interaction", parse_interaction(data, self._connection))

    async def on_error(self, event_method: str, /, *args: Any, **kwargs: Any) -> None:
        """Log an error of an event handler; the library passes on partly parsed events."""
        error = sys.exc_info()[1]
        if isinstance(error, PARSE_ERRORS):
            log.warning("malformed event skipped", platform="discord", kind=event_method, **describe_error(error))
        else:
            log.error("event dropped", kind=event_method, exc_info=error)


async def _connect_gateway(
    http: HTTPClient, settings: DiscordSection, url: str, *, compress: int = 0
) -> aiohttp.ClientWebSocketResponse:
    through = copy.copy(http)  # shares the session
    through.proxy = proxy_for(settings, url)
    socket = await HTTPClient.ws_connect(through, url, compress=compress)
    receive = socket.receive

    async def receive_one(*args: Any, **options: Any) -> aiohttp.WSMessage:
        # Otherwise all events that have arrived are parsed in one step of the event loop.
        await asyncio.sleep(0)
        return await receive(*args, **options)

    socket.receive = receive_one  # type: ignore[method-assign]
    return socket


def _guarded(name: str, parse: Callable[[Any], Any]) -> Callable[[Any], None]:
    def guarded(data: Any) -> None:
        with skip_malformed("discord", kind=name):
            parse(data)

    return guarded
