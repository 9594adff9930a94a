"""Slack replies: format, send, edit, delete."""

import math
from functools import partial
from typing import Any

from bot.adapters.send_once import SendOnce
from bot.adapters.slack.client import SlackWebClient, pages
from bot.adapters.slack.markup import escaped, without_pings
from bot.adapters.slack.metadata import nonce_in, reply_metadata
from bot.adapters.slack.parse import fields, is_timestamp, text_of
from bot.adapters.slack.streams import SlackStreams, is_streaming
from bot.delivery.markdown.format import Rendered
from bot.domain import Action, ChannelKey, Controls, IncomingMessage
from bot.errors import PlatformUnavailable, RateLimited
from bot.util.recent import RecentDict

# A `markdown` block takes 12,000 characters, all blocks together about 13,100; chat.update takes
# 4,000 characters of text.  The difference leaves room for buttons and escapes.
_MARKDOWN_LIMIT = 11_500
_PLAIN_LIMIT = 3_800
# chat.update is in tier 3, 50 calls a minute and more, counted for the app in its workspace; a few
# are left for a minute that Slack counts from another moment.
EDITS_PER_MINUTE = 46
# The length of a notification on a phone.
_PREVIEW = 150

_SYMBOLS = {
    Action.STOP: ("⏹", "Stop"),
    Action.RETRY: ("↻", "Regenerate"),
    Action.UP: ("👍", "Good answer"),
    Action.DOWN: ("👎", "Bad answer"),
}


class SlackFormat:
    """Markdown blocks; plain text has a third of their limit."""

    limit = _MARKDOWN_LIMIT

    def render(self, markdown: str) -> Rendered:
        return Rendered(without_pings(markdown), ("markdown",))

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

    A reply to a slash command is ephemeral and cannot be edited, nor are its further messages: `send` only
    returns an id, and the first `edit` shows it.

    With `streams`, a message that can be stopped is a stream where Slack allows it.  A stream that
    does not grow as expected is ended, and its text set with an edit.
    """

    def __init__(self, web: SlackWebClient, edit_interval: float, streams: SlackStreams | None = None) -> None:
        self.format = SlackFormat()
        self._web = web
        self._streams = streams
        self._edit_interval = edit_interval
        self._once = SendOnce()
        self._response_urls: RecentDict[str, str] = RecentDict()

    def edit_interval(self, channel: ChannelKey) -> float:
        return self._edit_interval

    def expect_slash(self, message_id: str, response_url: str) -> None:
        """Reply to this slash command at its URL, which also works where the bot is not a member."""
        if response_url.startswith("http"):
            self._response_urls[message_id] = response_url

    async def send(
        self,
        channel: ChannelKey,
        text: Rendered,
        *,
        reply_to: str | None,
        controls: Controls,
        nonce: str,
        may_exist: bool = False,
        continues: str | None = None,
    ) -> str:
        if reply_to is not None and is_slash(reply_to):
            return reply_to
        if continues is not None and is_slash(continues):
            return f"{continues}/{nonce}"
        thread = thread_of(channel, reply_to)
        metadata = reply_metadata(nonce, answers=reply_to, continues=continues)

        async def post() -> str:
            try:
                if self._streams is not None:
                    may_grow = text.stable is not None and Action.STOP in controls
                    if may_grow and (started := await self._streams.open(channel, reply_to, metadata)) is not None:
                        return started
                    await self._streams.end_session(channel)
                response = await self._web.chat_postMessage(
                    channel=channel.channel,
                    thread_ts=thread,
                    unfurl_links=False,
                    unfurl_media=False,
                    metadata=metadata,
                    **_content(text, controls),
                )
            except RateLimited:
                self._once.maybe_sent(nonce)  # a limit of a proxy may tell of the call after it
                raise
            ts = text_of(fields(response), "ts")
            if not is_timestamp(ts):
                raise PlatformUnavailable("Slack does not name the message that was sent")
            return ts

        async def find() -> str | None:
            nameless = []
            async for page in pages(self._web, channel.channel, thread, oldest=reply_to or thread):
                for message in page:
                    if nonce_in(message) == nonce:
                        return str(message["ts"])
                    if self._streams is not None and thread is not None and self._streams.is_nameless(message):
                        nameless.append(str(message["ts"]))
                if thread is None and reply_to is None:
                    break  # the first page has the newest messages
            begins = reply_to or continues
            for ts in nameless:
                is_later = begins is not None and is_timestamp(begins) and float(ts) > float(begins)
                if is_later and self._streams is not None and await self._streams.claim(channel, ts, metadata):
                    return ts
            return None

        if may_exist:
            self._once.maybe_sent(nonce)
        return await self._once.send(nonce, post, find)

    async def edit(self, channel: ChannelKey, message_id: str, text: Rendered, *, controls: Controls) -> None:
        if is_slash(message_id):
            await self._answer_slash(channel, message_id, text)
            return
        metadata = None
        if self._streams is not None:
            if await self._streams.show(channel, message_id, text, [_buttons(controls)] if controls else []):
                return
            await self._streams.end_session(channel)
            metadata = self._streams.metadata_of(channel, message_id)
        content = {"blocks": [], "attachments": [], **_content(text, controls)}
        update = partial(self._web.chat_update, channel=channel.channel, ts=message_id, metadata=metadata, **content)
        try:
            await update()
        except PlatformUnavailable as error:
            if self._streams is None or not is_streaming(error):
                raise
            await self._streams.close(channel, message_id)  # an earlier run has opened it
            await update()

    async def delete(self, channel: ChannelKey, message_id: str) -> None:
        if is_slash(message_id):
            return
        if self._streams is not None and self._streams.is_open(channel, message_id):
            await self._streams.close(channel, message_id)
            await self._streams.end_session(channel)
        await self._web.chat_delete(channel=channel.channel, ts=message_id)

    async def send_ephemeral(self, channel: ChannelKey, user: str, text: Rendered) -> None:
        """Show a text to one user in the channel, until they reload it."""
        await self._web.chat_postEphemeral(
            channel=channel.channel, user=user, thread_ts=channel.thread, **_content(text, frozenset())
        )

    async def send_direct(self, message: IncomingMessage, text: str) -> None:
        """Show a text to the author of a message alone, in the channel where it was sent."""
        await self.send_ephemeral(message.channel, message.author.id, Rendered(escaped(text)))

    async def _answer_slash(self, channel: ChannelKey, message_id: str, text: Rendered) -> None:
        _, user, trigger, *_ = message_id.split("/")
        url = self._response_urls.get(f"/{user}/{trigger}", "")
        answer = {"response_type": "ephemeral", **_content(text, frozenset())}
        if not (url and await self._web.respond(url, answer)):
            # The command is from before a restart, or its URL has expired.
            await self.send_ephemeral(channel, user, text)


def is_slash(message_id: str) -> bool:
    """Return whether this is the id of a slash command, whose reply is ephemeral, or of a message of that reply."""
    return message_id.startswith("/")


def thread_of(channel: ChannelKey, reply_to: str | None) -> str | None:
    """Return the thread in which the reply to a message is sent."""
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
            for action in Action
            if action in controls
        ],
    }
