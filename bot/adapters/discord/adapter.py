"""Discord: messages from the gateway, replies as edited messages."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial

import discord
import structlog

from bot.adapters.base import Finding
from bot.adapters.discord.client import BotClient, IdentifyBudget
from bot.adapters.discord.errors import LOGIN_REFUSED, map_errors
from bot.adapters.discord.files import fetch_file
from bot.adapters.discord.handlers import DiscordHandlers
from bot.adapters.discord.http import RateLimitTrace, call_timeout, configure_library, proxy_for, rest_client
from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.discord.parse import PLATFORM
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.discord.threads import open_thread
from bot.adapters.login import confirm
from bot.adapters.malformed import describe_error
from bot.chat.i18n import gettext_noop
from bot.chat.intake import Intake
from bot.config.schema import AdapterSection
from bot.delivery.replies import Replies
from bot.errors import AccessDenied, ChannelGone, LoginRefused, PlatformError, PlatformUnavailable, RateLimited
from bot.util.aio import BackgroundTasks
from bot.util.clock import Clock, MonotonicClock
from bot.util.retry import Backoff, log_retry, retry
from bot.util.text import clean

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between connections: the first delay and the longest.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 60.0
# Seconds for resuming a session; after that a new one begins.
_CUT_OFF_SECONDS = 60.0
# Seconds without another server, after which the list is complete.
_SERVER_SECONDS = 2.0
_LOGIN_CALLS = 3  # the user and the application, which an inspection reads twice
# The most servers that `inspect` checks, with one call each.
_INSPECTED = 20
_PERMISSIONS = discord.Permissions(
    view_channel=True,
    send_messages=True,
    create_public_threads=True,
    send_messages_in_threads=True,
    read_message_history=True,
)


def open_adapter(settings: AdapterSection, clock: Clock) -> "DiscordAdapter":
    assert isinstance(settings, DiscordSection), "the settings of this platform"
    for url in (settings.api_url, settings.gateway_url):
        proxy_for(settings, url)  # raises ConfigError
    return DiscordAdapter(settings, clock)


class DiscordAdapter:
    """One bot account.

    The library resumes a lost connection without missing events.  If that fails, a new
    session begins, and a backfill reads what was missed.
    """

    def __init__(
        self,
        settings: DiscordSection,
        clock: Clock,
        *,
        server_seconds: float = _SERVER_SECONDS,
        cut_off_seconds: float = _CUT_OFF_SECONDS,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._server_seconds = server_seconds
        self._cut_off_seconds = cut_off_seconds
        self._client: BotClient | None = None

    @property
    def is_connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    async def run(self, intake: Intake) -> None:
        configure_library(self._settings)
        messenger = DiscordMessenger(self._settings.edit_seconds, self._settings.call_seconds)
        replies = Replies(
            intake,
            messenger,
            self._clock,
            open_thread=partial(open_thread, messenger),
            show_typing=messenger.show_typing,
        )
        handlers = DiscordHandlers(self._settings, intake, replies, messenger, self._clock)
        intake.files.sources[PLATFORM] = partial(fetch_file, self._settings)
        # The connection is closed last: replies in flight finish their calls.
        async with BackgroundTasks() as connections, replies, BackgroundTasks() as workers:
            trace = RateLimitTrace(self._clock)
            tasks = [
                connections.start(self._stay_connected(handlers, messenger, trace)),
                workers.start(handlers.run()),
                workers.start(self._watch_login(trace)),
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()

    async def _watch_login(self, trace: RateLimitTrace) -> None:
        """Ask for the bot's own user when a call was answered with 401.

        Raises:
            LoginRefused: That was refused as well, twice.
        """

        async def ask() -> None:
            client = rest_client(self._settings, self._clock, trace)
            async with client, call_timeout(self._settings.call_seconds, client):
                await client.http.static_login(_token(self._settings))

        while True:
            await trace.login_doubted.wait()
            trace.login_doubted.clear()
            try:
                await confirm(ask, self._clock)
            except LoginRefused:
                raise
            except PlatformError as error:
                log.warning("discord rejected a call's token, and could not be asked again", error=str(error))

    async def _stay_connected(
        self, handlers: DiscordHandlers, messenger: DiscordMessenger, trace: RateLimitTrace
    ) -> None:
        budget = IdentifyBudget(self._clock)
        backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY, random.random)

        async def connect() -> None:
            client = self._client = BotClient(
                self._settings, handlers, trace, budget, self._clock, self._server_seconds, self._cut_off_seconds
            )
            try:
                async with client:
                    with _connecting(client):
                        async with call_timeout(_LOGIN_CALLS * self._settings.call_seconds, client):
                            await client.login(_token(self._settings))
                        await client.connect()
            finally:
                messenger.client = self._client = None
                if client.was_ready:
                    backoff.succeeded()
            raise PlatformUnavailable("the connection was closed")

        report, errors = log_retry("not connected to discord, retrying"), (PlatformUnavailable, RateLimited)
        await retry(
            partial(confirm, connect, self._clock), *errors, clock=self._clock, backoff=backoff, on_failure=report
        )


async def inspect(settings: DiscordSection) -> AsyncIterator[Finding]:
    """Report what Discord says about the bot, and what the operator has to change."""
    configure_library(settings)
    async with rest_client(settings, MonotonicClock()) as client:
        async with call_timeout(_LOGIN_CALLS * settings.call_seconds, client):
            await client.login(_token(settings))
            application = await client.application_info()
        invitation = discord.utils.oauth_url(
            application.id, permissions=_PERMISSIONS, scopes=("bot", "applications.commands")
        )
        yield Finding.of(
            True, gettext_noop("the token is valid; the bot is {name}"), invitation, name=clean(str(client.user))
        )
        flags = application.flags
        if flags.gateway_message_content or flags.gateway_message_content_limited:
            yield Finding.of(
                True, gettext_noop("the Message Content intent is on: in threads the bot receives all messages")
            )
        else:
            yield Finding.of(
                not settings.threads,
                gettext_noop(
                    "the Message Content intent is off: in threads the bot answers only messages that mention it. "
                    "Enable it (Developer Portal, Bot, Privileged Gateway Intents), or set threads = false"
                ),
            )
        if application.interactions_endpoint_url is not None:
            yield Finding.of(
                False,
                gettext_noop(
                    "an Interactions Endpoint URL is set, so Discord sends commands and buttons there instead of to "
                    "the bot: remove it (Developer Portal, General Information)"
                ),
            )
        if application.user_integration_config is not None:
            yield Finding.of(
                True,
                gettext_noop(
                    "users can install the bot for themselves: it answers them where it is no member too, as far as "
                    "[access] lets them"
                ),
            )
        if application.bot_require_code_grant:
            yield Finding.of(
                False, gettext_noop('the bot cannot be invited: disable "Requires OAuth2 Code Grant" (Bot)')
            )
        is_for_users = application.user_integration_config is not None
        async for finding in _servers(client, application.id, invitation, settings.call_seconds, is_for_users):
            yield finding


async def _servers(
    client: discord.Client, application_id: int, invitation: str, seconds: float, is_for_users: bool
) -> AsyncIterator[Finding]:
    async with call_timeout(seconds, client):
        servers = [server async for server in client.fetch_guilds(limit=_INSPECTED)]
    if not servers:
        # Those who have installed it for themselves can use it all the same.
        yield Finding.of(
            is_for_users,
            gettext_noop("the bot is not in any server yet; invite it: {invitation}"),
            invitation,
            invitation=invitation,
        )
    for server in servers:
        name = clean(server.name)
        try:
            async with call_timeout(seconds, client):
                await client.http.get_guild_commands(application_id, server.id)
        except (AccessDenied, ChannelGone):
            yield Finding.of(
                False,
                gettext_noop("{server}: slash commands are not authorised; invite the bot again: {invitation}"),
                invitation,
                server=name,
                invitation=invitation,
            )
        else:
            yield Finding.of(True, gettext_noop("{server}: messages and slash commands work"), server=name)


def _token(settings: DiscordSection) -> str:
    if settings.token is None:
        raise LoginRefused(LOGIN_REFUSED)
    return settings.token.get_secret_value()


@contextmanager
def _connecting(client: BotClient) -> Iterator[None]:
    """Translate errors of a connection; all but LoginRefused are worth a retry."""
    try:
        with map_errors():
            yield
    except (LoginRefused, PlatformUnavailable, RateLimited):
        raise
    except discord.ConnectionClosed as exc:
        raise PlatformUnavailable(f"Discord's gateway closed the connection ({exc.code})") from exc
    except (discord.DiscordException, PlatformError) as exc:
        raise PlatformUnavailable(f"Discord rejected the connection: {exc}") from exc
    except Exception as exc:
        # If the first connection fails, the library raises an AttributeError in its error handling,
        # so the cause is the context.  Later it is a frame that cannot be parsed.
        cause = describe_error(exc if client.was_ready else exc.__context__ or exc)
        raise PlatformUnavailable(f"the connection to Discord failed: {cause['error']} at {cause['at']}") from exc
