"""A chat in the browser: its pages are served on the port of the HTTP APIs."""

import asyncio
from dataclasses import replace
from pathlib import Path

from bot.adapters.inbox import Inbox
from bot.adapters.web.chat import Chat
from bot.adapters.web.files import fetch_file
from bot.adapters.web.messenger import Message, WebMessenger
from bot.adapters.web.page import create_pages
from bot.adapters.web.panel.history import ConfigHistory
from bot.adapters.web.panel.sources import PanelSources
from bot.adapters.web.session import Sessions, read_secret
from bot.adapters.web.sign_in.opening import Entrance, open_sign_in
from bot.adapters.web.streams import PageStreams
from bot.chat.intake import Intake
from bot.config.http import WEB_PLATFORM
from bot.delivery.replies import Replies
from bot.util.clock import Clock

SECRET = "web.secret"  # noqa: S105 - the name of its file
HISTORY = "config-changes.jsonl"


class WebAdapter:
    """The platform "web"; `pages` is its application, which serves a chat while `run` runs.

    A session is a channel and a conversation a thread of it.  The store has everything that was
    said: a page gets the whole conversation whenever it connects.
    """

    def __init__(
        self, folder: Path, clock: Clock, sources: PanelSources | None = None, entrance: Entrance | None = None
    ) -> None:
        """Keep the secret of the sessions, and what was changed in the panel, in `folder`.

        With `sources`, serve the operator's panel too; with `entrance`, for people elsewhere who sign in.
        """
        self._clock = clock
        self._chat: Chat | None = None
        secret = read_secret(folder / SECRET)
        if sources is not None:
            sources = replace(sources, history=ConfigHistory(folder / HISTORY))
        sign_in = None if entrance is None else open_sign_in(entrance, secret)
        self.pages = create_pages(lambda: self._chat, Sessions(secret), sources, sign_in)

    @property
    def is_connected(self) -> bool:
        return self._chat is not None

    async def run(self, intake: Intake) -> None:
        streams = PageStreams()
        intake.files.sources[WEB_PLATFORM] = fetch_file

        def changed(message: Message) -> None:
            if message.question is None:  # only the row has the question
                streams.reload(message.channel)
            else:
                streams.show(message.channel, message.question)

        # Not with the last edit: that of a command comes before its row is answered, and no other would follow.
        intake.exchanges.on_finished[WEB_PLATFORM] = lambda exchange: streams.reload(exchange.message.channel)
        messenger = WebMessenger(changed, open_pages=lambda: streams.count)
        try:
            async with Replies(intake, messenger, self._clock) as replies:
                inbox = Inbox(WEB_PLATFORM, intake, replies, self._clock)
                await inbox.retry(inbox.recover)
                self._chat = Chat(intake, inbox, messenger, streams)
                try:
                    await asyncio.Event().wait()
                finally:
                    self._chat = None
        finally:
            streams.close()
