"""Slack: events through Bolt, over a web socket or HTTP; replies over the Web API."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.base import Finding
from bot.adapters.inbox import Inbox
from bot.adapters.proxy import find_proxy
from bot.adapters.slack.backfill import SlackBackfill
from bot.adapters.slack.client import identify, web_api
from bot.adapters.slack.connection import http_server, open_socket, socket_url
from bot.adapters.slack.context import SlackContext
from bot.adapters.slack.files import fetch_file
from bot.adapters.slack.handlers import SlackHandlers
from bot.adapters.slack.messenger import EDITS_PER_MINUTE, SlackMessenger, is_slash
from bot.adapters.slack.parse import LONGEST_TEXT, PLATFORM, Directory, MessageParser
from bot.adapters.slack.settings import SlackSection
from bot.adapters.slack.standing import SlackReplies
from bot.adapters.slack.streams import SlackStreams
from bot.chat.i18n import gettext_noop
from bot.chat.intake import Intake
from bot.config.schema import AdapterSection
from bot.delivery.replies import Replies
from bot.domain import IncomingMessage
from bot.errors import PlatformError, PlatformUnavailable, StoreError
from bot.util.aio import BackgroundTasks
from bot.util.clock import Clock
from bot.util.retry import Backoff, log_retry, retry

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_SCOPES = "app_mentions:read channels:history channels:read chat:write commands files:read groups:history im:history mpim:history users:read"
SCOPES = frozenset(_SCOPES.split())
# Apps that are agents have it; without it replies are edited.
AGENT_SCOPE = "assistant:write"
# Those without which the bot gets no messages that do not mention it.
_READING = frozenset({"channels:history", "groups:history"})
_NO_MESSAGES = gettext_noop(
    "Slack shows me only messages that mention me: add the scopes channels:history and groups:history "
    "(docs/slack-manifest.yaml has them) and install the app again."
)

# Seconds between retries: the first delay and the longest.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 60.0


def open_adapter(settings: AdapterSection, clock: Clock) -> "SlackAdapter":
    assert isinstance(settings, SlackSection)
    find_proxy("slack", settings.proxy.get_secret_value(), settings.api_url)  # raises ConfigError
    return SlackAdapter(settings, clock)


class SlackAdapter:
    """One workspace.

    `is_connected` is whether the web socket is open; with mode = "http", whether the server listens.
    """

    def __init__(self, settings: SlackSection, clock: Clock) -> None:
        self.is_connected = False
        self._settings = settings
        self._clock = clock

    async def run(self, intake: Intake) -> None:
        async with web_api(self._settings, self._clock) as api:
            me = await self._retry(partial(identify, api))
            log.info("slack: logged in", bot=me.name, team=me.team)
            streams = SlackStreams(api, me, self._clock, intake.exchanges.is_reply)
            messenger = SlackMessenger(api, self._settings.edit_interval, streams)
            directory = Directory(api, self._clock)

            async def is_manager(message: IncomingMessage) -> bool:
                return await directory.is_manager(message.author.id, message.channel.channel)

            async def missing(message: IncomingMessage, wanted: str) -> list[str]:
                lacking = await missing_scopes(api)
                return [_NO_MESSAGES] if lacking and not lacking.isdisjoint(_READING) else []

            intake.access.register_managers(PLATFORM, is_manager)
            intake.access.register_missing(PLATFORM, missing)
            intake.sign_in.register(PLATFORM, messenger.send_direct)
            listens = partial(intake.listens, threads=self._settings.threads)
            may_go_on = intake.continuations.may_go_on
            intake.continuations.longest[PLATFORM] = LONGEST_TEXT
            parser = MessageParser(me, api, directory, intake.quotes_root, listens, intake.is_triggered, may_go_on)
            context = SlackContext(api, parser, directory)
            intake.context.before[PLATFORM], intake.context.linked[PLATFORM] = context.before, context.linked
            async with (
                Replies(
                    intake,
                    messenger,
                    self._clock,
                    edits_per_minute=EDITS_PER_MINUTE,
                    # A send is found again by its nonce, also after a restart; a slash command's shows nothing.
                    sends_whole=lambda message: not is_slash(message.id),
                    streams=streams,
                ) as replies,
                BackgroundTasks() as background,
            ):
                standing = SlackReplies(api, streams)
                inbox = Inbox(PLATFORM, intake, replies, self._clock, standing.find)
                intake.files.sources[PLATFORM] = partial(fetch_file, self._settings)
                handlers = SlackHandlers(self._settings, api, me, parser, intake, inbox, messenger, background)
                backfill = SlackBackfill(api, me, parser, intake, inbox, handlers, standing, self._clock, self._retry)
                is_http = self._settings.mode == "http"
                serving = self._serve_http(handlers, backfill) if is_http else self._serve(api, handlers, backfill)
                await replies.run_until_unauthorised(serving)

    async def _serve_http(self, handlers: SlackHandlers, backfill: SlackBackfill) -> None:
        known = await self._retry(backfill.prepare)
        async with http_server(handlers.app, self._settings):
            self.is_connected = True
            await backfill.run(known)
            await asyncio.Event().wait()

    async def _serve(self, api: AsyncWebClient, handlers: SlackHandlers, backfill: SlackBackfill) -> None:
        backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY, random.random)

        async def connect() -> None:
            began = self._clock.now()
            try:
                await self._serve_socket(api, handlers, backfill)
            finally:
                self.is_connected = False
                if self._clock.now() - began >= _LONGEST_RETRY:
                    backoff.succeeded()

        await self._retry(connect, backoff)

    async def _serve_socket(self, api: AsyncWebClient, handlers: SlackHandlers, backfill: SlackBackfill) -> None:
        """Serve one connection.

        Raises:
            PlatformUnavailable: The connection is lost.
        """
        await identify(api)  # the socket uses the app token, so it would not notice a revoked bot token
        known = await backfill.prepare()
        try:
            async with open_socket(handlers.app, self._settings, api) as connection, asyncio.TaskGroup() as tasks:
                self.is_connected = True
                backfilling = tasks.create_task(backfill.run(known))
                await connection.wait_lost(self._clock)
                backfilling.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        raise PlatformUnavailable("the web socket was lost")

    async def _retry(self, attempt: Callable[[], Awaitable[T]], backoff: Backoff | None = None) -> T:
        backoff = backoff or Backoff(_FIRST_RETRY, _LONGEST_RETRY, random.random)
        report = log_retry("slack: call failed, retrying")
        return await retry(attempt, PlatformError, StoreError, clock=self._clock, backoff=backoff, on_failure=report)


async def missing_scopes(api: AsyncWebClient) -> frozenset[str] | None:
    """Return the scopes that the bot token lacks; None if the server does not tell.

    Raises:
        PlatformError: Slack cannot be asked.
    """
    granted = await _granted_scopes(api)
    return None if granted is None else SCOPES - granted


async def _granted_scopes(api: AsyncWebClient) -> frozenset[str] | None:
    scopes = (await api.auth_test()).headers.get("x-oauth-scopes")
    return None if scopes is None else frozenset(scope.strip() for scope in scopes.split(","))


async def inspect(settings: SlackSection) -> AsyncIterator[Finding]:
    """Report whether Slack accepts the tokens, which scopes they lack, and whether the app is an agent."""
    async with web_api(settings) as api:
        me = await identify(api)
        yield Finding.of(
            True, gettext_noop("Slack: the bot is @{name}, in the workspace {team}"), name=me.name, team=me.team
        )
        granted = await _granted_scopes(api)
        if granted is None:
            yield Finding.of(True, gettext_noop("Slack: the server does not tell which scopes the bot token has"))
        elif missing := SCOPES - granted:
            yield Finding.of(
                False,
                gettext_noop(
                    "Slack: the bot token lacks {scopes}. Add these scopes under OAuth & Permissions (or paste "
                    "docs/slack-manifest.yaml again), then reinstall the app."
                ),
                scopes=", ".join(sorted(missing)),
            )
        else:
            yield Finding.of(True, gettext_noop("Slack: the bot token has all scopes"))
        if granted is not None and AGENT_SCOPE not in granted:
            yield Finding.of(
                True,
                gettext_noop(
                    "Slack: the app is no agent, so replies grow by edits and not as streams; docs/SLACK.md says what "
                    "to switch on"
                ),
            )
        if settings.mode == "socket":
            await socket_url(api, settings)
            yield Finding.of(True, gettext_noop("Slack: the app token opens web sockets"))
