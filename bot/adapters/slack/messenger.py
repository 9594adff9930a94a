"""Slack replies: format, send, edit, delete."""

import math
import re
from typing import Any

from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.webhook.async_client import AsyncWebhookClient

from bot.adapters.send_once import RecentDict, SendOnce
from bot.adapters.slack.client import pages
from bot.adapters.slack.errors import error_for, map_errors
from bot.delivery.markdown.format import Rendered
from bot.delivery.messenger import nonce as nonce_of
from bot.domain import Action, ChannelKey, Controls, Exchange

# A `markdown` block takes 12,000 characters, all blocks together about 13,100; chat.update takes
# 4,000 characters of text.  The difference leaves room for buttons and escapes.
_MARKDOWN_LIMIT = 11_500
_PLAIN_LIMIT = 3_800
# chat.update is in tier 3, 50 calls a minute and more, counted for the app in its workspace; a few
# are left for a minute that Slack counts from another moment.
EDITS_PER_MINUTE = 46
# The length of a notification on a phone.
_PREVIEW = 150

# Type of the metadata that carries a message's nonce.
_EVENT_TYPE = "chatglm_reply"

# Slack turns these into pings or names, also in Markdown.  Only these get a word joiner: behind
# every "<" it would break code that users copy.
_PINGS = re.compile(r"<(?=!(?:channel|here|everyone|group|subteam|date)\b|[@#][A-Z0-9])", re.IGNORECASE)

_SYMBOLS = {Action.STOP: ("⏹", "Stop"), Action.RETRY: ("↻", "Regenerate")}


class SlackFormat:
    """Markdown blocks; plain text has a third of their limit."""

    limit = _MARKDOWN_LIMIT

    def render(self, markdown: str) -> Rendered:
        return Rendered(_PINGS.sub("<\u2060", markdown), ("markdown",))

    def plain(self, markdown: str) -> Rendered:
        return Rendered(escaped(markdown))

    def measure(self, rendered: Rendered) -> int:
        if rendered.entities:
            return len(rendered.text)
        return math.ceil(len(rendered.text) * _MARKDOWN_LIMIT / _PLAIN_LIMIT)


class SlackMessenger:
    """A Messenger on the Web API.

    Slack does not deduplicate sends, so each message has its nonce in its metadata; one
    that may have been sent is looked for in the conversation first.

    A reply to a slash command is ephemeral and cannot be edited: `send` only returns an
    id, and the first `edit` shows it.
    """

    def __init__(self, web: AsyncWebClient, edit_interval: float) -> None:
        self.format = SlackFormat()
        self._web = web
        self._edit_interval = edit_interval
        self._once = SendOnce()
        self._response_urls: RecentDict[str, str] = RecentDict()

    def edit_interval(self, channel: ChannelKey) -> float:
        return self._edit_interval

    def maybe_sent(self, exchange: Exchange) -> None:
        """Look for the reply's next message before sending it: an earlier run may have sent it."""
        self._once.maybe_sent(nonce_of(exchange.message, len(exchange.parts)))

    def expect_slash(self, message_id: str, response_url: str) -> None:
        """Reply to this slash command at its URL, which also works where the bot is not a member."""
        self._response_urls[message_id] = response_url

    async def send(
        self, channel: ChannelKey, text: Rendered, *, reply_to: str | None, controls: Controls, nonce: str
    ) -> str:
        if reply_to is not None and reply_to.startswith("/"):
            return reply_to
        thread = _thread(channel, reply_to)

        async def post() -> str:
            with map_errors():
                response = await self._web.chat_postMessage(
                    channel=channel.channel,
                    thread_ts=thread,
                    unfurl_links=False,
                    unfurl_media=False,
                    metadata={"event_type": _EVENT_TYPE, "event_payload": {"nonce": nonce}},
                    **_content(text, controls),
                )
            return str(response["ts"])

        async def find() -> str | None:
            async for page in pages(self._web, channel.channel, thread, oldest=reply_to or thread):
                for message in page:
                    if _nonce(message) == nonce:
                        return str(message["ts"])
                if thread is None and reply_to is None:
                    break  # the first page has the newest messages
            return None

        return await self._once.send(nonce, post, find)

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        if message_id.startswith("/"):
            await self._answer_slash(channel, message_id, text)
            return
        content = {"blocks": [], "attachments": [], **_content(text, controls)}
        with map_errors():
            await self._web.chat_update(channel=channel.channel, ts=message_id, **content)

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        if message_id.startswith("/"):
            return
        with map_errors():
            await self._web.chat_delete(channel=channel.channel, ts=message_id)

    async def send_ephemeral(self, channel: ChannelKey, user: str, text: Rendered) -> None:
        """Show a text to one user in the channel, until they reload it."""
        with map_errors():
            await self._web.chat_postEphemeral(
                channel=channel.channel, user=user, thread_ts=channel.thread, **_content(text, frozenset())
            )

    async def _answer_slash(self, channel: ChannelKey, message_id: str, text: Rendered) -> None:
        url = self._response_urls.get(message_id)
        if url is None:  # the command is from before a restart
            await self.send_ephemeral(channel, message_id.split("/")[1], text)
            return
        hook = AsyncWebhookClient(url, session=self._web.session, proxy=self._web.proxy, retry_handlers=[])
        with map_errors():
            response = await hook.send(response_type="ephemeral", **_content(text, frozenset()))
        if response.status_code != 200:
            raise error_for(response.status_code, response.body, response.headers.get("Retry-After"))
        self._response_urls.pop(message_id, None)


def escaped(text: str) -> str:
    """Escape the characters of Slack's own markup.

    >>> escaped("a < b && <!here>")
    'a &lt; b &amp;&amp; &lt;!here&gt;'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _thread(channel: ChannelKey, reply_to: str | None) -> str | None:
    # Outside direct messages, replies go into threads.
    return channel.thread or (None if channel.channel.startswith("D") else reply_to)


def _content(text: Rendered, controls: Controls) -> dict[str, Any]:
    buttons = [_buttons(controls)] if controls else []
    if not text.entities:
        # Plain text must not be a block: blocks are what Slack refused.
        return {"text": text.text} | ({"attachments": [{"fallback": "", "blocks": buttons}]} if buttons else {})
    blocks = [{"type": "markdown", "text": text.text}, *buttons]
    return {"text": escaped(text.text[:_PREVIEW]), "blocks": blocks}


def _buttons(controls: Controls) -> dict[str, Any]:
    return {
        "type": "actions",
        "elements": [
            {
                "type": "button",
                "action_id": action.value,
                "text": {"type": "plain_text", "text": _SYMBOLS[action][0]},
                "accessibility_label": _SYMBOLS[action][1],
            }
            for action in sorted(controls)
        ],
    }


def _nonce(message: dict[str, Any]) -> object:
    metadata = message.get("metadata") or {}
    return (metadata.get("event_payload") or {}).get("nonce") if metadata.get("event_type") == _EVENT_TYPE else None
