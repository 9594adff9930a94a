"""Slack: what is said to the bot comes in by Bolt, the answers go out over the Web API."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import aiohttp
import structlog
from pydantic import SecretStr
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.base import Finding
from bot.adapters.slack.backfill import missed, stamps
from bot.adapters.slack.client import PatientWebClient
from bot.adapters.slack.connection import requests, socket, ticket
from bot.adapters.slack.errors import map_errors
from bot.adapters.slack.handlers import EventHandlers
from bot.adapters.slack.messenger import SlackMessenger
from bot.adapters.slack.parse import PLATFORM, BotIdentity, Event, UserDirectory
from bot.adapters.slack.settings import SlackSection
from bot.chat.intake import Intake
from bot.config.schema import AdapterSection
from bot.delivery.replies import Replies
from bot.domain import ChannelKey
from bot.errors import BotError, LoginRefused, PlatformError, PlatformUnavailable, RateLimited, StoreError
from bot.util.aio import BackgroundTasks
from bot.util.clock import Clock, MonotonicClock
from bot.util.retry import Backoff

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SCOPES = frozenset(
    {
        "app_mentions:read",
        "channels:history",
        "chat:write",
        "commands",
        "groups:history",
        "im:history",
        "mpim:history",
        "users:read",
    }
)

_CALL_SECONDS = 30.0
# Seconds between tries of what failed: the first, and the longest.
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 60.0


def open_adapter(settings: AdapterSection, clock: Clock) -> "SlackAdapter":
    assert isinstance(settings, SlackSection)
    return SlackAdapter(settings, clock)


class SlackAdapter:
    """One workspace, over a web socket or over HTTP."""

    def __init__(self, settings: SlackSection, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._is_connected = False

    @property
    def is_connected(self) -> bool:
        """Whether there is a web socket; with mode = "http", whether we listen: Slack calls or does not."""
        return self._is_connected

    async def run(self, intake: Intake) -> None:
        async with web_api(self._settings, self._clock) as api:
            me = await self._persist(lambda: introduction(api))
            log.info("slack knows us", bot=me.name, team=me.team)
            messenger = SlackMessenger(api, self._settings.edit_interval)
            people = UserDirectory(api, self._clock)
            async with Replies(intake, messenger, self._clock) as replies, BackgroundTasks() as background:
                desk = EventHandlers(
                    self._settings, api, me, people, intake, messenger, replies, background, self._clock
                )
                backlog = _Backlog(api, intake, desk, self._persist)
                is_called = self._settings.mode == "http"
                listening = self._serve(desk, backlog) if is_called else self._stay_connected(api, desk, backlog)
                await replies.run_until_unauthorised(listening)

    async def _serve(self, desk: EventHandlers, backlog: "_Backlog") -> None:
        settings = self._settings
        marks = await self._persist(backlog.marks)
        async with requests(desk.app, settings.host, settings.port, settings.path):
            self._is_connected = True
            await backlog.catch_up(marks)
            await asyncio.Event().wait()

    async def _stay_connected(self, api: AsyncWebClient, desk: EventHandlers, backlog: "_Backlog") -> None:
        token = _secret(self._settings.app_token)
        wait = Backoff(_FIRST_RETRY, _LONGEST_RETRY, random.random)
        while True:
            began = self._clock.now()
            try:
                await introduction(api)  # the socket has a token of its own, and tells nothing of the bot's
                # Read before connecting: what comes in later would move the marks beyond what was missed.
                marks = await backlog.marks()
                async with socket(desk.app, token, api, self._clock) as line, asyncio.TaskGroup() as tasks:
                    self._is_connected = True
                    catching_up = tasks.create_task(backlog.catch_up(marks))
                    await line.lost()
                    catching_up.cancel()
                error: BotError = PlatformUnavailable("the web socket was lost")
            except (PlatformUnavailable, RateLimited, StoreError) as exc:
                error = exc
            except ExceptionGroup as of_one:
                raise of_one.exceptions[0] from None
            self._is_connected = False
            if self._clock.now() - began >= _LONGEST_RETRY:
                wait.succeeded()
            await self._sleep(wait, error)

    async def _persist(self, do: Callable[[], Awaitable[T]]) -> T:
        """Do it until nothing is in the way that passes."""
        wait = Backoff(_FIRST_RETRY, _LONGEST_RETRY, random.random)
        while True:
            try:
                return await do()
            except (PlatformUnavailable, RateLimited, StoreError) as error:
                await self._sleep(wait, error)

    async def _sleep(self, wait: Backoff, error: BotError) -> None:
        seconds = wait.after(error)
        log.warning("slack: trying again", seconds=round(seconds, 1), error=str(error))
        await self._clock.sleep(seconds)


class _Backlog:
    """What was said to the bot while it was away, and what it owes."""

    def __init__(
        self,
        api: AsyncWebClient,
        intake: Intake,
        desk: EventHandlers,
        persist: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]],
    ) -> None:
        self._api = api
        self._intake = intake
        self._desk = desk
        self._persist = persist

    async def marks(self) -> Mapping[ChannelKey, str]:
        """The newest message known per thread; from here on those channels wait for `catch_up`."""
        marks = await self._intake.last_message_ids(PLATFORM)
        self._desk.shut({key.channel for key in marks})
        return marks

    async def catch_up(self, marks: Mapping[ChannelKey, str]) -> None:
        """Keep what was missed, a channel after the other, and begin all that is owed.

        Slack bears about one such call a second.  Where people spoke last they most likely did again: those
        channels come first.
        """
        channels: dict[str, dict[str | None, str]] = {}
        for key, newest in marks.items():
            channels.setdefault(key.channel, {})[key.thread] = newest
        await self._persist(self._desk.begin_owed)
        for channel, known in sorted(channels.items(), key=_last_spoken_in, reverse=True):
            await self._persist(partial(self._read, channel, known))
            self._desk.open(channel)

    async def _read(self, channel: str, known: Mapping[str | None, str]) -> None:
        try:
            events = await missed(self._api, channel, known, datetime.now(UTC).timestamp())
        except (PlatformUnavailable, RateLimited, LoginRefused):
            raise
        except PlatformError as error:
            log.warning("a channel cannot be read; what was missed there stays so", channel=channel, error=str(error))
            return
        for event in events:
            await self._keep({**event, "channel": channel})
        await self._desk.begin_owed()

    async def _keep(self, event: Event) -> None:
        try:
            message = await self._desk.ears.heard(event)
            if message is not None:
                await self._intake.store(message)
        except BotError:
            raise
        except Exception:
            # A fault of ours: the next one may be better, and this one must not meet us again at each start.
            log.exception("a message that was missed on slack was dropped")


def _last_spoken_in(channel: tuple[str, Mapping[str | None, str]]) -> float:
    _, known = channel
    return max(stamps(known).values(), default=0.0)


@asynccontextmanager
async def web_api(settings: SlackSection, clock: Clock | None = None) -> AsyncIterator[AsyncWebClient]:
    """The Web API under one HTTP session."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS)) as session:
        yield PatientWebClient(
            clock or MonotonicClock(),
            _secret(settings.bot_token),
            base_url=settings.api_url,
            session=session,
            proxy=settings.proxy.get_secret_value() or None,
            # By default a call whose connection broke is made again, though its work may be done.
            retry_handlers=[],
        )


async def introduction(api: AsyncWebClient) -> BotIdentity:
    """Ask whose the bot token is.

    Raises:
        LoginRefused: Nobody's.
    """
    try:
        with map_errors():
            told = await api.auth_test()
    except LoginRefused as error:
        raise LoginRefused(
            f"{error}: adapters.slack.bot_token is wrong. Copy the Bot User OAuth Token (xoxb-…, under OAuth & "
            "Permissions) into BOT_SLACK__BOT_TOKEN."
        ) from error
    return BotIdentity(
        user=told["user_id"] or "", bot=told["bot_id"] or "", team=told["team_id"] or "", name=told["user"] or ""
    )


async def inspect(settings: SlackSection) -> AsyncIterator[Finding]:
    """What `check --online` tells: whose the tokens are, and which permissions they lack."""
    async with web_api(settings) as api:
        try:
            me = await introduction(api)
            with map_errors():
                scopes = (await api.auth_test()).headers.get("x-oauth-scopes", "")
        except PlatformError as error:
            yield Finding(False, str(error))
            return
        yield Finding(True, f"Slack: the bot is @{me.name}, in the workspace {me.team}")
        lacking = sorted(SCOPES - {scope.strip() for scope in scopes.split(",")})
        if lacking:
            yield Finding(
                False,
                f"Slack: the bot token lacks {', '.join(lacking)}. Add them under OAuth & Permissions (or paste "
                "docs/slack-manifest.yaml anew), and reinstall the app.",
            )
        else:
            yield Finding(True, "Slack: the bot token has all scopes")
        if settings.mode == "socket":
            try:
                await ticket(api, _secret(settings.app_token))
            except PlatformError as error:
                yield Finding(False, str(error))
            else:
                yield Finding(True, "Slack: the app token opens web sockets")


def _secret(token: SecretStr | None) -> str:
    return token.get_secret_value() if token is not None else ""
