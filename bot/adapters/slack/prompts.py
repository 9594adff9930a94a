"""Suggested prompts for the chat with an app that is an agent, in the reader's language."""

from collections.abc import Awaitable, Callable

import structlog
from slack_bolt.async_app import AsyncApp
from slack_sdk.web.async_client import AsyncWebClient

from bot.adapters.slack.parse import Event, id_of, is_timestamp, text_of
from bot.adapters.slack.sessions import is_passing
from bot.chat.i18n import gettext_noop, language_for, translator
from bot.errors import PlatformError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Slack shows at most four; a press sends one as a message.
_PROMPTS = (
    gettext_noop("What can you help me with?"),
    gettext_noop("Explain in simple words how a language model works."),
    gettext_noop("Give me five ideas for a lunch with my team."),
)


class SuggestedPrompts:
    """Sets the prompts when a user opens the chat; `language` is `conversation.language`."""

    def __init__(
        self,
        web: AsyncWebClient,
        locale_of: Callable[[str], Awaitable[str | None]],
        language: Callable[[], str],
    ) -> None:
        self._web = web
        self._locale_of = locale_of
        self._language = language
        self._is_refused = False

    def register(self, app: AsyncApp) -> None:
        app.event("app_home_opened")(self.on_opened)
        app.event("assistant_thread_started")(self.on_thread_started)

    async def on_opened(self, event: Event) -> None:
        """Suggest prompts in the chat with an agent."""
        if text_of(event, "tab") == "messages":
            await self._suggest(id_of(event, "user"), id_of(event, "channel"), None)

    async def on_thread_started(self, event: Event) -> None:
        """Suggest prompts in a new thread of an app of the older kind (`assistant_view`)."""
        started = event.get("assistant_thread")
        thread = text_of(started, "thread_ts") if isinstance(started, dict) else ""
        if isinstance(started, dict) and is_timestamp(thread):
            await self._suggest(id_of(started, "user_id"), id_of(started, "channel_id"), thread)

    async def _suggest(self, user: str, channel: str, thread: str | None) -> None:
        if self._is_refused or not (user and channel):
            return
        translate = translator(language_for(self._language(), await self._locale_of(user), ""))
        prompts = [{"title": translate(prompt), "message": translate(prompt)} for prompt in _PROMPTS]
        # For an agent the call does nothing if it names a thread.
        place = {"channel_id": channel} | ({"thread_ts": thread} if thread else {})
        try:
            await self._web.api_call("assistant.threads.setSuggestedPrompts", json={**place, "prompts": prompts})
        except PlatformError as error:
            self._is_refused = not is_passing(error)
            log.info("slack: suggested prompts not set", error=str(error))
