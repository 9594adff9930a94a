"""Discord: stays connected, keeps what is said to the bot, and replies by messages that grow."""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager

import discord
import structlog

from bot.adapters.base import Finding
from bot.adapters.discord.client import BotClient, IdentifyBudget
from bot.adapters.discord.handlers import Inbox
from bot.adapters.discord.http import (
    LOGIN_REFUSED,
    RateLimitTrace,
    call_timeout,
    configure_endpoints,
    map_errors,
    rest_client,
)
from bot.adapters.discord.messenger import DiscordMessenger
from bot.adapters.discord.settings import DiscordSection
from bot.adapters.malformed import describe_error
from bot.chat.intake import Intake
from bot.config.schema import AdapterSection
from bot.delivery.replies import Replies
from bot.errors import ChannelGone, LoginRefused, PlatformError, PlatformUnavailable, RateLimited
from bot.util.clock import Clock, MonotonicClock
from bot.util.retry import Backoff

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Seconds between two tries to connect: the first, and the longest.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 60.0
# Seconds that a broken connection may take until it is resumed; then it is begun anew.
_CUT_OFF_SECONDS = 60.0
# Seconds without news of another server, after which all are known.
_SERVER_SECONDS = 2.0
_WRONG_TOKEN = 4004
_LOGIN_CALLS = 3  # who it is, what it may, and its commands
# Servers that an inspection looks at; each is a call.
_INSPECTED = 20
_PERMISSIONS = discord.Permissions(
    view_channel=True,
    send_messages=True,
    send_messages_in_threads=True,
    read_message_history=True,
)


def open_adapter(settings: AdapterSection, clock: Clock) -> "DiscordAdapter":
    assert isinstance(settings, DiscordSection), "config.py reads this table as a DiscordSection"
    return DiscordAdapter(settings, clock)


class DiscordAdapter:
    """One bot on Discord.

    A connection that breaks is resumed by the library, and then nothing is missed; one
    that cannot be, or not soon, is begun anew here, and what was said meanwhile is read.
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
        configure_endpoints(self._settings)
        messenger = DiscordMessenger(self._settings.edit_seconds, self._settings.call_seconds)
        replies = Replies(intake, messenger, self._clock)
        inbox = Inbox(intake, replies, messenger, self._clock, self._settings)
        # The connection is left last: a reply that is under way may end its call.
        async with _running(self._stay_connected(inbox, messenger)) as connection, replies, _running(inbox.run()):
            await asyncio.wait([connection])
            connection.result()

    async def _stay_connected(self, inbox: Inbox, messenger: DiscordMessenger) -> None:
        refusals, sessions = RateLimitTrace(self._clock), IdentifyBudget(self._clock)
        wait = Backoff(_FIRST_RETRY, _LONGEST_RETRY, random.random)
        while True:
            client = self._client = BotClient(
                self._settings, inbox, refusals, sessions, self._server_seconds, self._cut_off_seconds
            )
            error: PlatformError = PlatformUnavailable("the connection was closed")
            try:
                async with client:
                    with _connecting(client):
                        async with call_timeout(_LOGIN_CALLS * self._settings.call_seconds, client):
                            await client.login(_token(self._settings))
                        await client.connect()
            except (PlatformUnavailable, RateLimited) as exc:
                error = exc
            finally:
                messenger.client = self._client = None
            if client.was_ready:
                wait.succeeded()
            seconds = wait.after_failure()
            if isinstance(error, RateLimited):
                seconds = max(seconds, error.seconds)
            log.warning("not connected to discord", seconds=round(seconds, 1), error=str(error))
            await self._clock.sleep(seconds)


async def inspect(settings: DiscordSection) -> AsyncIterator[Finding]:
    """Ask Discord what it knows of the bot, and tell what an operator has to change."""
    configure_endpoints(settings)
    async with rest_client(settings, MonotonicClock()) as client:
        try:
            with map_errors():
                await client.login(_token(settings))
                application = await client.application_info()
        except PlatformError as error:
            yield Finding(False, str(error))
            return
        yield Finding(True, f"Discord knows the token; the bot is called {client.user}")
        flags = application.flags
        if flags.gateway_message_content or flags.gateway_message_content_limited:
            yield Finding(True, "the Message Content intent is on: the bot can read along in its threads")
        else:
            yield Finding(
                not settings.threads,
                "the Message Content intent is off: in threads, only messages that mention the bot are answered. "
                "Switch it on (Developer Portal, Bot, Privileged Gateway Intents), or set threads = false",
            )
        if application.interactions_endpoint_url is not None:
            yield Finding(
                False,
                "an Interactions Endpoint URL is set, so commands and buttons go there and not to the bot: "
                "remove it (Developer Portal, General Information)",
            )
        if application.bot_require_code_grant:
            yield Finding(False, 'nobody can invite the bot: switch off "Requires OAuth2 Code Grant" (Bot)')
        try:
            with map_errors():
                async for finding in _servers(client, application.id):
                    yield finding
        except PlatformError as error:
            yield Finding(False, str(error))


async def _servers(client: discord.Client, application_id: int) -> AsyncIterator[Finding]:
    invitation = discord.utils.oauth_url(
        application_id, permissions=_PERMISSIONS, scopes=("bot", "applications.commands")
    )
    servers = [server async for server in client.fetch_guilds(limit=_INSPECTED)]
    if not servers:
        yield Finding(False, f"the bot is in no server yet; invite it: {invitation}")
    tree = discord.app_commands.CommandTree(client)
    for server in servers:
        try:
            with map_errors():
                await tree.fetch_commands(guild=server)
            yield Finding(True, f"{server.name}: messages and slash commands")
        except ChannelGone:
            yield Finding(False, f"{server.name}: slash commands are not allowed; invite the bot again: {invitation}")


def _token(settings: DiscordSection) -> str:
    if settings.token is None:
        raise LoginRefused(LOGIN_REFUSED)
    return settings.token.get_secret_value()


@contextmanager
def _connecting(client: BotClient) -> Iterator[None]:
    """Tell what ends a connection for good from what is worth another one."""
    try:
        with map_errors():
            yield
    except (LoginRefused, PlatformUnavailable, RateLimited):
        raise
    except discord.ConnectionClosed as exc:
        if exc.code == _WRONG_TOKEN:
            raise LoginRefused(LOGIN_REFUSED) from exc
        raise PlatformUnavailable(f"Discord's gateway closed the connection ({exc.code})") from exc
    except (discord.DiscordException, PlatformError) as exc:
        raise PlatformUnavailable(f"Discord refused the connection: {exc}") from exc
    except Exception as exc:
        # Where the first connection fails, the library asks it where it left off, and there is none:
        # what went wrong is the error before that.  Later it is a frame that cannot be read.
        what = describe_error(exc if client.was_ready else exc.__context__ or exc)
        raise PlatformUnavailable(f"Discord's gateway broke off: {what['error']} at {what['at']}") from exc


@asynccontextmanager
async def _running(work: Coroutine[None, None, None]) -> AsyncIterator[asyncio.Task[None]]:
    """A task for as long as the block lasts."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
