"""How a reply looks on Slack, and how it gets there exactly once."""

import math
import re
from collections import OrderedDict
from typing import Any, TypeVar

from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.webhook.async_client import AsyncWebhookClient

from bot.adapters.slack.backfill import pages
from bot.adapters.slack.errors import map_errors, meaning
from bot.delivery.markdown.format import Rendered
from bot.domain import Action, ChannelKey, Controls, Exchange
from bot.errors import PlatformUnavailable

T = TypeVar("T")

# A `markdown` block takes 12,000 characters, all blocks together about 13,100; chat.update takes
# 4,000 characters of text.  What we add (buttons, escapes) has room below that.
_MARKDOWN_LIMIT = 11_500
_PLAIN_LIMIT = 3_800
# What a notification on a telephone shows of a message.
_PREVIEW = 150

# Ours is the only metadata of this type: a message is found again by the nonce in it.
_EVENT_TYPE = "chatglm_reply"

# Messages that may have been sent before, and slash commands that wait for their reply: more than
# are under way at once.
_REMEMBERED = 10_000

# What Slack turns into a ping or a name, also within Markdown.  Only these: a word joiner behind
# every "<" would spoil code that people copy.
_PINGS = re.compile(r"<(?=!(?:channel|here|everyone|group|subteam|date)\b|[@#][A-Z0-9])", re.IGNORECASE)

_SYMBOLS = {Action.STOP: ("⏹", "Stop"), Action.RETRY: ("↻", "Regenerate")}


class SlackFormat:
    """Markdown blocks; where those are refused, plain text, which costs three times the room."""

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
    """The Messenger on the Web API.

    Slack knows no nonces.  So each message carries its own in its metadata, and before
    one is sent that may be there already, the conversation is read back.

    A reply to a slash command is seen by who used it alone, and cannot be edited: it is
    "sent" by giving it a name and shown by its first edit.
    """

    def __init__(self, web: AsyncWebClient, edit_interval: float) -> None:
        self.format = SlackFormat()
        self._web = web
        self._edit_interval = edit_interval
        # Some of either are never asked for again: what was owed needed no other message, or the
        # command was not for us.
        self._doubtful: OrderedDict[str, None] = OrderedDict()
        self._response_urls: OrderedDict[str, str] = OrderedDict()

    def edit_interval(self, channel: ChannelKey) -> float:
        return self._edit_interval

    def doubt(self, exchange: Exchange) -> None:
        """Expect that the next message of this reply was sent before, and its id not noted."""
        _remember(self._doubtful, f"{exchange.id}.{len(exchange.parts)}.0", None)

    def expect_slash(self, message_id: str, response_url: str) -> None:
        """Remember where Slack wants the reply to this slash command; it works where the bot is no member."""
        _remember(self._response_urls, message_id, response_url)

    async def send(
        self, channel: ChannelKey, text: Rendered, *, reply_to: str | None, controls: Controls, nonce: str
    ) -> str:
        if reply_to is not None and reply_to.startswith("/"):
            return reply_to
        thread = _thread(channel, reply_to)
        if nonce in self._doubtful:
            found = await self._sent_before(channel, thread, reply_to, nonce)
            self._doubtful.pop(nonce, None)
            if found is not None:
                return found
        try:
            with map_errors():
                response = await self._web.chat_postMessage(
                    channel=channel.channel,
                    thread_ts=thread,
                    unfurl_links=False,
                    unfurl_media=False,
                    metadata={"event_type": _EVENT_TYPE, "event_payload": {"nonce": nonce}},
                    **_content(text, controls),
                )
        except PlatformUnavailable:
            _remember(self._doubtful, nonce, None)
            raise
        return str(response["ts"])

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

    async def whisper(self, channel: ChannelKey, user: str, text: str) -> None:
        """Show a text to one person in the channel, until they reload it."""
        await self._whisper(channel, user, self.format.render(text))

    async def _whisper(self, channel: ChannelKey, user: str, text: Rendered) -> None:
        with map_errors():
            await self._web.chat_postEphemeral(
                channel=channel.channel, user=user, thread_ts=channel.thread, **_content(text, frozenset())
            )

    async def _answer_slash(self, channel: ChannelKey, message_id: str, text: Rendered) -> None:
        url = self._response_urls.get(message_id)
        if url is None:  # it was used before a restart
            await self._whisper(channel, message_id.split("/")[1], text)
            return
        hook = AsyncWebhookClient(url, session=self._web.session, proxy=self._web.proxy, retry_handlers=[])
        with map_errors():
            response = await hook.send(response_type="ephemeral", **_content(text, frozenset()))
        if response.status_code != 200:
            raise meaning(response.status_code, response.body, response.headers.get("Retry-After"))
        self._response_urls.pop(message_id, None)

    async def _sent_before(
        self, channel: ChannelKey, thread: str | None, reply_to: str | None, nonce: str
    ) -> str | None:
        """The id of the message with this nonce, if it stands in the conversation."""
        async for page in pages(self._web, channel.channel, thread, oldest=reply_to or thread):
            for message in page:
                if _nonce(message) == nonce:
                    return str(message["ts"])
            if thread is None and reply_to is None:
                break  # the newest messages come first, and ours would be among them
        return None


def _remember(where: OrderedDict[str, T], key: str, value: T) -> None:
    where[key] = value
    while len(where) > _REMEMBERED:
        where.popitem(last=False)


def escaped(text: str) -> str:
    """Write what Slack would read as its own notation so that it is read as it stands.

    >>> escaped("a < b && <!here>")
    'a &lt; b &amp;&amp; &lt;!here&gt;'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _thread(channel: ChannelKey, reply_to: str | None) -> str | None:
    """A conversation with one person goes on where it is; elsewhere replies stand in threads."""
    return channel.thread or (None if channel.channel.startswith("D") else reply_to)


def _content(text: Rendered, controls: Controls) -> dict[str, Any]:
    buttons = [_buttons(controls)] if controls else []
    if not text.entities:
        # Plain words go where no block is involved, for blocks are what was refused.
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
