"""Slack handlers: store the event, then acknowledge it."""

import asyncio
import re
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import structlog
from slack_bolt.async_app import AsyncApp
from slack_bolt.authorization import AuthorizeResult
from slack_bolt.context.ack.async_ack import AsyncAck
from slack_bolt.error import BoltUnhandledRequestError
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.inbox import Inbox
from bot.adapters.malformed import PARSE_ERRORS, describe_error
from bot.adapters.slack.errors import try_call
from bot.adapters.slack.files import has_lost_file
from bot.adapters.slack.forms import CALLBACK, modal, notice, read_submission
from bot.adapters.slack.messenger import SlackMessenger
from bot.adapters.slack.parse import (
    PLATFORM,
    BotIdentity,
    Event,
    MessageParser,
    id_of,
    is_timestamp,
    is_tombstone,
    text_of,
)
from bot.adapters.slack.prompts import SuggestedPrompts
from bot.adapters.slack.settings import SlackSection
from bot.chat.commands import called_by
from bot.chat.intake import Intake
from bot.domain import Action, Author, ChannelKey, Exchange, IncomingMessage
from bot.errors import BotError, PlatformUnavailable
from bot.util.aio import BackgroundTasks, detach_on_cancel
from bot.util.recent import RecentDict

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Slack waits 3 s for an acknowledgement, so anything but the database gets at most this long.
_TIMEOUT = 2.0
# A form is opened after its right was checked, which takes 1.5 s at most.
_OPEN_SECONDS = 1.0
# Edited messages whose newest text is remembered: Slack redelivers events for six minutes.
_EDITED = 1000


class SlackHandlers:
    """Bolt's listeners: each returns once its event is stored, and raises otherwise.

    Slack redelivers an event that is not acknowledged.
    """

    def __init__(
        self,
        settings: SlackSection,
        api: AsyncWebClient,
        me: BotIdentity,
        parser: MessageParser,
        intake: Intake,
        inbox: Inbox,
        messenger: SlackMessenger,
        background: BackgroundTasks,
    ) -> None:
        self._api = api
        self._parser = parser
        self._intake = intake
        self._inbox = inbox
        self._messenger = messenger
        self._background = background
        self._held_channels: dict[str, asyncio.Event] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Edited messages by channel and id: Slack redelivers events in any order.
        self._edited: RecentDict[tuple[str, str], Event] = RecentDict(_EDITED)
        # The last thread of each user in each channel.
        self._threads: RecentDict[tuple[str, str], ChannelKey] = RecentDict()
        self.app = self._build_app(settings, api, me)

    def _build_app(self, settings: SlackSection, api: AsyncWebClient, me: BotIdentity) -> AsyncApp:
        async def authorize() -> AuthorizeResult:
            # Bolt's own calls auth.test at the first event, and acknowledges that event even if the call fails.
            return AuthorizeResult(enterprise_id=None, team_id=me.team, bot_user_id=me.user, bot_id=me.bot)

        secret = settings.signing_secret
        app = AsyncApp(
            name="slack",
            client=AsyncWebClient(base_url=api.base_url, session=api.session, proxy=api.proxy, retry_handlers=[]),
            authorize=authorize,
            signing_secret=secret.get_secret_value() if secret else "",
            process_before_response=True,
            attaching_conversation_kwargs_enabled=False,
            # By default Bolt logs unhandled requests with the users' texts.
            raise_error_for_unhandled_request=True,
        )
        app.event("app_mention")(self.on_message)
        app.event("message")(self.on_message)
        app.event("agent_session_stopped")(self.on_stopped)
        SuggestedPrompts(api, self._parser.locale_of, self._language).register(app)
        app.event(re.compile(""))(self.on_other)
        app.command(re.compile(""))(self.on_command)
        app.action(re.compile(""))(self.on_button)
        app.view(CALLBACK)(self.on_form)
        app.error(self.on_error)
        return app

    def _language(self) -> str:
        return self._intake.settings.conversation.language

    def hold(self, channels: Iterable[str]) -> None:
        """Hold live events of these channels until their backlog is stored."""
        self._held_channels = {channel: asyncio.Event() for channel in channels}

    def release(self, channel: str) -> None:
        """Let the live events of a channel through."""
        if channel in self._held_channels:
            self._held_channels.pop(channel).set()

    async def finish_current(self, channel: str) -> None:
        """Wait until the events of a channel that have begun are stored."""
        async with self._lock(channel):
            return

    def note_edit(self, channel: str, message: Event) -> None:
        """Remember an edited message, so that an older text of it is ignored if it comes later."""
        if _edited_at(message) >= _edited_at(self._edited.get((channel, message["ts"]), {})):
            self._edited[channel, message["ts"]] = message

    async def on_message(self, event: Event) -> None:
        channel = id_of(event, "channel")
        await self._wait_released(channel)
        await self._complete(self._handle(channel, event))

    async def _handle(self, channel: str, event: Event) -> None:
        # Listeners run concurrently, and the lookup of a name must not change the order.
        async with self._lock(channel):
            match text_of(event, "subtype"):
                case "message_deleted":
                    await self._delete(channel, text_of(event, "deleted_ts"), event.get("previous_message"))
                case "message_changed":
                    await self._change(channel, event)
                case _:
                    newest = self._edited.get((channel, text_of(event, "ts")), {})
                    current = {**event, **newest}
                    message = await self._parser.parse(current)
                    if message is not None:
                        await self._accept(message)
                    elif (part := await self._parser.parse_continuation(current)) is not None:
                        await self._inbox.retry(partial(self._inbox.accept_continuation, part))

    async def on_stopped(self, event: Event) -> None:
        """Stop the answers of a thread, streams and others: its Stop control was used."""
        user = id_of(event, "user")
        channel = ChannelKey(PLATFORM, id_of(event, "channel"), text_of(event, "thread_ts") or None)
        by, locale = Author(PLATFORM, user, ""), await self._parser.locale_of(user)
        notices = []
        for exchange, ts in self._growing(channel):
            if ts is not None:
                work = self._inbox.press(channel, ts, Action.STOP, by, locale=locale)
                notices.append(await self._complete(work))
            elif self._intake.access.may_control(by, exchange):
                self._intake.exchanges.stop(exchange)  # Slack shows the control before the stream has an id
        for sentence in dict.fromkeys(filter(None, notices)):
            text = self._messenger.format.render(sentence)
            await try_call(self._messenger.send_ephemeral(channel, user, text), _TIMEOUT)

    def _growing(self, channel: ChannelKey) -> list[tuple[Exchange, str | None]]:
        """Return the exchanges of a conversation whose replies are begun and not complete, with the first messages."""
        exchanges = self._intake.exchanges
        workers = [exchanges.find(exchange) for exchange in exchanges.queues.in_channel(channel)]
        return [(worker.exchange, worker.parts[0].id) for worker in workers if worker is not None and worker.parts]

    async def on_other(self) -> None:
        """Acknowledge an event that needs no action."""

    async def on_command(self, ack: AsyncAck, command: Mapping[str, Any]) -> None:
        message = await self._parser.parse_command(command)
        if not await self._opens_form(message, text_of(command, "trigger_id")):
            self._messenger.expect_slash(message.id, text_of(command, "response_url"))
            await self._complete(self._accept(message))
        await ack()

    async def _opens_form(self, message: IncomingMessage, trigger: str) -> bool:
        """Answer a command with a form, if one is due; where it cannot be opened, a text answers the command."""
        form = await self._inbox.open_form(message)
        if form is None:
            return False
        call = self._api.views_open(trigger_id=trigger, view=modal(form, message.channel))
        return await try_call(call, _OPEN_SECONDS) is not None

    async def on_form(self, ack: AsyncAck, body: Mapping[str, Any], view: Mapping[str, Any]) -> None:
        submission, user, team = read_submission(view), id_of(body["user"], "id"), body.get("team")
        team_id = id_of(team, "id") if isinstance(team, Mapping) else ""
        message = await self._parser.parse_use(user, submission.channel, team_id)
        if not submission.changes:
            await ack()
            return
        result = await self._complete(self._intake.forms.use(message, submission.changes))
        translate = self._intake.settings.translator_for(message)
        await ack(response_action="update", view=notice(translate, result.notice))

    async def on_button(self, ack: AsyncAck, body: Mapping[str, Any], action: Mapping[str, Any]) -> None:
        channel = ChannelKey(PLATFORM, id_of(body["channel"], "id"), text_of(body["message"], "thread_ts") or None)
        user = id_of(body["user"], "id")
        by = Author(PLATFORM, user, text_of(body["user"], "name"))
        pressed = Action(action["action_id"])
        # Slack delivers a press that was not acknowledged again, with the time of the press.
        press = f"{user}/{time}" if (time := text_of(action, "action_ts")) else None
        locale = await self._parser.locale_of(user)
        work = self._inbox.press(channel, text_of(body["message"], "ts"), pressed, by, press, locale)
        notice = await self._complete(work)
        if notice:
            text = self._messenger.format.render(notice)
            await try_call(self._messenger.send_ephemeral(channel, user, text), _TIMEOUT)
        await ack()

    async def on_error(self, error: Exception) -> None:
        self._report(error)

    def _report(self, error: BaseException) -> None:
        """Log a listener's error; Slack redelivers the event."""
        if isinstance(error, BotError):
            log.warning("event not acknowledged, Slack will redeliver it", error=str(error))
        elif isinstance(error, (*PARSE_ERRORS, BoltUnhandledRequestError)):
            log.warning("malformed event skipped", platform=PLATFORM, **describe_error(error))
        else:
            log.error("event dropped", platform=PLATFORM, exc_info=error)

    def _lock(self, channel: str) -> asyncio.Lock:
        return self._locks.setdefault(channel, asyncio.Lock())

    async def _wait_released(self, channel: str) -> None:
        released = self._held_channels.get(channel)
        if released is not None:
            try:
                async with asyncio.timeout(_TIMEOUT):
                    await released.wait()
            except TimeoutError:
                raise PlatformUnavailable("the backlog of its channel is not stored yet") from None

    async def _complete(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to completion even if the socket closes and its listeners are cancelled."""
        return await detach_on_cancel(self._background.start(work), self._report)

    async def _accept(self, message: IncomingMessage) -> None:
        # Retried here: Slack redelivers an event only a few times, and commands never.
        located = self._locate(message)
        await self._inbox.retry(lambda: self._inbox.accept(located))

    async def _change(self, channel: str, event: Event) -> None:
        message: Event = {**event["message"], "channel": channel}
        if is_tombstone(message):
            await self._delete(channel, text_of(message, "ts"), event.get("previous_message"))
        elif self._parser.is_from_app(message):
            await self._replace_quotes(channel, message, event.get("previous_message"))
        elif "edited" in message or has_lost_file(message):  # else a link was unfurled, or a thread got a reply
            edited = await self._parser.parse_edit(message)
            newest = self._edited.get((channel, text_of(message, "ts")), {})
            if edited is None or _edited_at(message) < _edited_at(newest):
                return
            self.note_edit(channel, message)
            await self._inbox.retry(lambda: self._inbox.edit(edited))
            if (
                await self._is_called_by_edit(channel, event)
                and (question := await self._parser.parse(message)) is not None
            ):
                await self._accept(question)

    async def _replace_quotes(self, channel: str, message: Event, previous: object) -> None:
        """Let quotations of an app's message have its new text; apps' edits need not say that they are some."""
        text = await self._parser.quotable_text(message)
        if (
            not isinstance(previous, dict)
            or has_lost_file(message)
            or text != await self._parser.quotable_text(previous)
        ):
            key, ts = ChannelKey(PLATFORM, channel), text_of(message, "ts")
            await self._inbox.retry(lambda: self._intake.replace_quotes(key, ts, text))

    async def _is_called_by_edit(self, channel: str, event: Event) -> bool:
        """Return whether an edit mentions the bot, or has a trigger, for the first time, in a message not too old."""
        message, edited_at = event["message"], text_of(event, "ts")
        calls = self._parser.calls
        if not await calls(channel, message) or await calls(channel, event.get("previous_message")):
            return False
        age = float(edited_at) - float(message["ts"]) if is_timestamp(edited_at) else 0.0
        return age <= self._intake.settings.conversation.catch_up_minutes * 60

    async def _delete(self, channel: str, ts: str, deleted: object) -> None:
        key = ChannelKey(PLATFORM, channel)
        self._edited.pop((channel, ts), None)

        async def delete() -> None:
            # Slack may redeliver the message after its deletion.
            is_expected = isinstance(deleted, dict) and await self._parser.is_to_bot({**deleted, "channel": channel})
            await self._intake.delete(key, ts, is_expected=is_expected)

        await self._inbox.retry(delete)

    def _locate(self, message: IncomingMessage) -> IncomingMessage:
        """Move a /stop or /retry from outside a thread to its author's last thread, where the replies are."""
        place = (message.channel.channel, message.author.id)
        if message.channel.thread is not None:
            self._threads[place] = message.channel
            return message
        command = called_by(message)
        if command is None or command[0].name not in {"stop", "retry"}:
            return message
        return replace(message, channel=self._threads.get(place, message.channel))


def _edited_at(message: Event) -> float:
    """Return the time of a message's last edit; 0 without one."""
    edited = message.get("edited")
    time = text_of(edited, "ts") if isinstance(edited, dict) else ""
    return float(time) if is_timestamp(time) else 0.0
