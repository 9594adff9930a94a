"""What comes in from Slack, in Bolt's hands until it is kept: only then is Slack told that it arrived."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import structlog
from slack_bolt.async_app import AsyncApp
from slack_bolt.authorization import AuthorizeResult
from slack_bolt.context.ack.async_ack import AsyncAck
from slack_bolt.error import BoltUnhandledRequestError
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.malformed import PARSE_ERRORS, describe_error
from bot.adapters.slack.messenger import SlackMessenger
from bot.adapters.slack.parse import PLATFORM, BotIdentity, Event, MessageParser, UserDirectory, id_of, slash, text_of
from bot.adapters.slack.settings import SlackSection
from bot.chat.commands import parse
from bot.chat.intake import Intake
from bot.delivery.replies import Replies
from bot.domain import Action, Author, ChannelKey, Exchange, IncomingMessage
from bot.errors import BotError, PlatformError, PlatformUnavailable, StoreError
from bot.util.aio import BackgroundTasks, detach_on_cancel
from bot.util.clock import Clock
from bot.util.retry import retry_until_stored

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Slack waits 3 s for its acknowledgement, so nothing beside the database may take longer than this.
_PATIENCE = 2.0

_REMEMBERED_THREADS = 10_000


class EventHandlers:
    """Bolt's listeners: each returns when what came in is kept, and fails if it is not.

    Slack sends what is not acknowledged again.
    """

    def __init__(
        self,
        settings: SlackSection,
        api: AsyncWebClient,
        me: BotIdentity,
        people: UserDirectory,
        intake: Intake,
        messenger: SlackMessenger,
        replies: Replies,
        background: BackgroundTasks,
        clock: Clock,
    ) -> None:
        self.ears = MessageParser(me, api, people, intake.has_history, threads=settings.threads)
        self._gates: dict[str, asyncio.Event] = {}
        self._people = people
        self._intake = intake
        self._messenger = messenger
        self._replies = replies
        self._background = background
        self._clock = clock
        self._orders: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._threads: dict[tuple[str, str], ChannelKey] = {}  # where each person spoke last, by channel
        self.app = self._bolt(settings, api, me)

    def _bolt(self, settings: SlackSection, api: AsyncWebClient, me: BotIdentity) -> AsyncApp:
        async def authorize() -> AuthorizeResult:
            # Bolt's own way asks Slack at the first event, and acknowledges that event if it gets no answer.
            return AuthorizeResult(enterprise_id=None, team_id=me.team, bot_user_id=me.user, bot_id=me.bot)

        secret = settings.signing_secret
        app = AsyncApp(
            name="slack",
            client=AsyncWebClient(base_url=api.base_url, session=api.session, proxy=api.proxy, retry_handlers=[]),
            authorize=authorize,
            signing_secret=secret.get_secret_value() if secret else "",
            process_before_response=True,
            attaching_conversation_kwargs_enabled=False,
            # By default Bolt logs what nobody listens to, people's words included.
            raise_error_for_unhandled_request=True,
        )
        app.event("app_mention")(self.on_message)
        app.event("message")(self.on_message)
        app.event(re.compile(""))(self.on_other)
        app.command(re.compile(""))(self.on_command)
        app.action(re.compile(""))(self.on_button)
        app.error(self.on_error)
        return app

    def shut(self, channels: Iterable[str]) -> None:
        """Take nothing from these channels until they are opened: what was missed there goes first.

        A newer message that is kept would move the mark beyond what was missed.
        """
        self._gates = {channel: asyncio.Event() for channel in channels}

    def open(self, channel: str) -> None:
        self._gates.pop(channel).set()

    async def begin_owed(self) -> None:
        """Begin all that is owed and that nobody works on.

        Raises:
            StoreError: It cannot be read.
        """
        for exchange in await self._intake.recover(PLATFORM):
            self._messenger.doubt(exchange)
            self._replies.start(exchange)

    async def on_message(self, event: Event) -> None:
        channel = id_of(event, "channel")
        await self._turn(channel)
        await self._surely(self._heard(channel, event))

    async def _heard(self, channel: str, event: Event) -> None:
        # Two listeners may run at once, and a name to look up must not change the order.
        async with self._orders.setdefault(channel, asyncio.Lock()):
            match text_of(event, "subtype"):
                case "message_deleted":
                    await self._deleted(channel, text_of(event, "deleted_ts"))
                case "message_changed":
                    await self._changed(channel, event)
                case _:
                    message = await self.ears.heard(event)
                    if message is not None:
                        await self._take(message)

    async def on_other(self) -> None:
        """Let events that we have no use for count as received."""

    async def on_command(self, ack: AsyncAck, command: Mapping[str, Any]) -> None:
        user = id_of(command, "user_id")
        if not (user and id_of(command, "channel_id") and id_of(command, "trigger_id")):
            raise ValueError("a command that nobody used anywhere")
        person = await self._people.person(user)
        message = slash(command, person)
        self._messenger.expect_slash(message.id, text_of(command, "response_url"))
        await self._surely(self._take(message))
        await ack()

    async def on_button(self, ack: AsyncAck, body: Mapping[str, Any], action: Mapping[str, Any]) -> None:
        channel = ChannelKey(PLATFORM, id_of(body["channel"], "id"), text_of(body["message"], "thread_ts") or None)
        user = id_of(body["user"], "id")
        by = Author(PLATFORM, user, text_of(body["user"], "name"))
        notice = await self._surely(
            self._pressed(channel, text_of(body["message"], "ts"), Action(action["action_id"]), by)
        )
        if notice:
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._messenger.whisper(channel, user, notice)
            except (PlatformError, TimeoutError) as error:
                log.warning("nobody was told why a button did nothing", error=str(error) or "no answer in time")
        await ack()

    async def _pressed(self, channel: ChannelKey, message_id: str, action: Action, by: Author) -> str:
        pressed = await self._intake.on_button(channel, message_id, action, by)
        self._begin(pressed.again)
        return pressed.notice

    async def on_error(self, error: Exception) -> None:
        """Leave it to Slack to send again what could not be kept."""
        if isinstance(error, BotError):
            log.warning("an event was not taken; Slack sends it again", error=str(error))
        elif isinstance(error, (*PARSE_ERRORS, BoltUnhandledRequestError)):
            log.warning("slack sent an event that cannot be read", **describe_error(error))
        else:
            log.error("an event was not understood", exc_info=error)

    async def _turn(self, channel: str) -> None:
        gate = self._gates.get(channel)
        if gate is not None:
            try:
                async with asyncio.timeout(_PATIENCE):
                    await gate.wait()
            except TimeoutError:
                raise PlatformUnavailable("what was missed in its channel is not kept yet") from None

    async def _surely(self, work: Coroutine[Any, Any, T]) -> T:
        """Go on though the connection that brought it be lost meanwhile, and its listener ended.

        What still waited to be written then is written after the next connection has asked what is owed.
        """
        return await detach_on_cancel(self._background.start(work))

    async def _take(self, message: IncomingMessage) -> None:
        placed = self._placed(message)
        await self._kept(lambda: self._replies.accept_and_reply(placed))

    async def _kept(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write it down: Slack does not send for ever what is not acknowledged, a command not even twice."""
        failures = 0

        async def tried() -> T:
            nonlocal failures
            try:
                return await write()
            except StoreError:
                failures += 1
                raise

        written = await retry_until_stored(tried, self._clock)
        if failures:
            # Where only the database's answer was lost, the next try found it written and nothing to begin.
            await retry_until_stored(self.begin_owed, self._clock)
        return written

    def _begin(self, exchange: Exchange | None) -> None:
        if exchange is not None:
            self._replies.start(exchange)

    def _placed(self, message: IncomingMessage) -> IncomingMessage:
        """Let a stop or retry from outside a thread mean its author's last thread: no answer stands elsewhere."""
        place = (message.channel.channel, message.author.id)
        if message.channel.thread is not None:
            self._threads.pop(place, None)
            if len(self._threads) >= _REMEMBERED_THREADS:
                del self._threads[next(iter(self._threads))]
            self._threads[place] = message.channel
            return message
        called = parse(message.text)
        if called is None or called[0].name not in {"stop", "retry"}:
            return message
        return replace(message, channel=self._threads.get(place, message.channel))

    async def _changed(self, channel: str, event: Event) -> None:
        message = event["message"]
        if text_of(message, "subtype") == "tombstone":  # what is left of a deleted message that had replies
            await self._deleted(channel, text_of(message, "ts"))
            return
        if "edited" not in message:  # a link was unfurled, or a thread grew
            return
        edited = await self.ears.changed({**message, "channel": channel})
        if edited is not None:
            self._begin(await self._kept(lambda: self._intake.edit(edited)))

    async def _deleted(self, channel: str, ts: str) -> None:
        await retry_until_stored(lambda: self._intake.delete(ChannelKey(PLATFORM, channel), ts), self._clock)
