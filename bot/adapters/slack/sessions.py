"""Slack's agent sessions: the sign in a thread that the bot works on an answer, with Slack's Stop control."""

import structlog
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.slack.errors import TRANSIENT, code_of
from bot.adapters.slack.parse import fields, text_of
from bot.errors import LoginRefused, PlatformError, RateLimited

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Characters of a thread's title and of its status line.
_TITLE, _STATUS = 200, 150
# The answer where the app does not get the event of Slack's Stop control.
_NO_STOP = "missing_agent_session_stopped_event_subscription"


def is_passing(error: PlatformError) -> bool:
    """Return whether the call is to be repeated, or was refused for a reason that concerns all calls."""
    return isinstance(error, (*TRANSIENT, LoginRefused)) and code_of(error) != "unknown_method"


class SlackSessions:
    """The sessions of threads; a thread's title is the question that began it."""

    def __init__(self, web: AsyncWebClient) -> None:
        self._web = web
        self._has_status = True

    async def begin(self, channel: str, thread: str, question: str) -> bool:
        """Let Slack show that the bot works; return False if it may another time.

        Raises:
            PlatformError: Slack refuses it for good, or would show no Stop control: a stream could not
                be stopped then.  Also for RateLimited and LoginRefused.
        """
        arguments = {"channel_id": channel, "thread_ts": thread, "status": "processing"}
        title = " ".join(question.split())[:_TITLE]
        try:
            response = await self._web.api_call(
                "agents.sessions.setStatus", json=arguments | ({"title": title} if title else {})
            )
        except (LoginRefused, RateLimited):
            raise
        except PlatformError as error:
            if is_passing(error):
                return False
            raise
        if text_of(fields(response), "warning") == _NO_STOP:
            raise PlatformError(f"Slack says {_NO_STOP}")
        return True

    async def say(self, channel: str, thread: str, words: str) -> None:
        """Show a notice of the queue, or of thoughts, in the status line; it is not essential."""
        if not self._has_status:
            return
        try:
            await self._web.assistant_threads_setStatus(channel_id=channel, thread_ts=thread, status=words[:_STATUS])
        except (LoginRefused, RateLimited):
            raise
        except PlatformError as error:
            self._has_status = is_passing(error)
            log.info("slack: status line not set", error=str(error))
