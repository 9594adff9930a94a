"""Slack's agent sessions: the sign in a thread that the bot works on an answer, with Slack's Stop control."""

import structlog
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from bot.adapters.slack.errors import TRANSIENT, code_of
from bot.adapters.slack.parse import fields, text_of
from bot.domain import ChannelKey
from bot.errors import LoginRefused, PlatformError, RateLimited
from bot.util.recent import RecentDict

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Characters of a thread's title.
_TITLE = 200
# The end of a session delays an edit by so many failures: the answer is more important.
_ATTEMPTS = 4
# The answer where the app does not get the event of Slack's Stop control.
_NO_STOP = "missing_agent_session_stopped_event_subscription"


class NoStopControl(PlatformError):
    """Slack would show no Stop control: a stream could not be stopped."""


def is_passing(error: PlatformError) -> bool:
    """Return whether the call is to be repeated, or was refused for a reason that concerns all calls."""
    return isinstance(error, (*TRANSIENT, LoginRefused)) and code_of(error) != "unknown_method"


class SlackSessions:
    """The sessions of threads; a thread's title is the question that began it."""

    def __init__(self, web: AsyncWebClient) -> None:
        self._web = web
        # Those that Slack may show as "processing", with the failures to end them.
        self._begun: RecentDict[ChannelKey, int] = RecentDict()

    async def begin(self, channel: ChannelKey, question: str) -> bool:
        """Let Slack show that the bot works; return False if it may another time.

        Raises:
            PlatformError: Slack refuses it for good.  Also for RateLimited and LoginRefused.
            NoStopControl: The session is begun nevertheless.
        """
        was_begun = channel in self._begun
        self.note_begun(channel)
        try:
            response = await self._set(channel, "processing", question)
        except (LoginRefused, RateLimited):
            raise
        except PlatformError as error:
            if is_passing(error):
                return False
            if not was_begun:
                self.note_ended(channel)
            raise
        if text_of(fields(response), "warning") == _NO_STOP:
            raise NoStopControl(f"Slack says {_NO_STOP}")
        return True

    async def end(self, channel: ChannelKey) -> None:
        """Let Slack show no more that the bot works; after a few failures without an error.

        Raises:
            PlatformUnavailable, RateLimited, LoginRefused: It is to be repeated.
        """
        if channel not in self._begun:
            return
        try:
            await self._set(channel, "active")
        except (LoginRefused, RateLimited):
            raise
        except PlatformError as error:
            failures = self._begun[channel] = self._begun.get(channel, 0) + 1
            if is_passing(error) and failures < _ATTEMPTS:
                raise
            log.info("slack: session not ended", channel=channel.channel, error=str(error))
            if is_passing(error):
                return  # the next edit in the thread tries again
        self.note_ended(channel)

    def note_begun(self, channel: ChannelKey) -> None:
        self._begun[channel] = 0

    def note_ended(self, channel: ChannelKey) -> None:
        self._begun.pop(channel, None)

    async def _set(self, channel: ChannelKey, status: str, question: str = "") -> AsyncSlackResponse:
        arguments = {"channel_id": channel.channel, "thread_ts": channel.thread, "status": status}
        if title := " ".join(question.split())[:_TITLE]:
            arguments["title"] = title
        return await self._web.api_call("agents.sessions.setStatus", json=arguments)
