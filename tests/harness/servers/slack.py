"""A loopback Slack workspace and its users."""

from collections.abc import Sequence
from typing import Any

from bot.adapters.base import Adapter
from bot.adapters.slack.adapter import open_adapter
from bot.adapters.slack.settings import SlackSection
from bot.domain import Action
from bot.util.clock import Clock
from tests.harness.platform import Seen
from tests.harness.ports import reserved_port
from tests.harness.servers.slack_wire import APP_TOKEN, BOT_TOKEN, JSON, SIGNING_SECRET, TEAM, SlackWire
from tests.harness.servers.slack_world import BOT, CHAT, Message


class SlackServer(SlackWire):
    """A LoopbackPlatform; other keyword arguments than the wire's are settings of the adapter."""

    name = "slack"

    def settings(self) -> SlackSection:
        values: JSON = {
            "bot_token": BOT_TOKEN,
            "app_token": APP_TOKEN,
            "signing_secret": SIGNING_SECRET,
            "api_url": self.url,
            **self._settings,
        }
        if values.get("mode") == "http" and "port" not in values:
            values["port"] = self._settings["port"] = self._held.enter_context(reserved_port())
        self.port = values.get("port", 0)
        return SlackSection.model_validate(values)

    def adapter(self, clock: Clock) -> Adapter:
        self._clock = clock
        return open_adapter(self.settings(), clock)

    async def say(
        self,
        text: str,
        *,
        author: str = "Mei",
        channel: str = "general",
        thread: str | None = None,
        direct: bool = False,
        mention: bool = True,
        reply_to: str | None = None,
        files: Sequence[JSON] = (),
    ) -> str:
        place = self.workspace.direct(author) if direct else self.workspace.channel(channel)
        if reply_to is not None:
            thread = self.workspace.messages[reply_to].root
        if mention and not direct:
            text = f"<@{BOT}> {text}"
        message = self.workspace.post(place, self.workspace.user(author), text=text, thread=thread, files=[*files])
        if files:
            message.subtype = "file_share"
        self.changed()
        event = message.event()
        self.emit({**event, "channel_type": "im" if direct else "channel"})
        if mention and not direct:
            self.emit({**event, "type": "app_mention"})
        return message.ts

    def file(self, name: str, data: bytes, media_type: str = "") -> JSON:
        """Return a file for `say(…, files=[…])`."""
        id = f"F{next(self._numbers):05}"
        self.shelf.files[f"{id}/{name}"] = data
        url = f"http://127.0.0.1:{self._port}/files-pri/{id}/{name}"
        return {"id": id, "name": name, "mimetype": media_type, "size": len(data), "mode": "hosted", "url_private": url}

    async def edit(self, message_id: str, text: str) -> None:
        message = self.workspace.messages[message_id]
        before = message.event()
        mention = f"<@{BOT}> " if message.text.startswith(f"<@{BOT}>") else ""
        message.text, message.edited = mention + text, self.workspace.now()
        self._emit_change(message, before)

    async def delete_file(self, message_id: str) -> None:
        """Delete the files of a message: what is left of them is no edit."""
        message = self.workspace.messages[message_id]
        before = message.event()
        message.files = [{"id": each["id"], "mode": "tombstone"} for each in message.files]
        self._emit_change(message, before)

    def _emit_change(self, message: Message, before: JSON) -> None:
        self.changed()
        self.emit(
            {
                "type": "message",
                "subtype": "message_changed",
                "channel": message.channel,
                "ts": self.workspace.now(),
                "message": message.event(),
                "previous_message": before,
            }
        )

    async def delete(self, message_id: str) -> None:
        message = self.workspace.messages[message_id]
        change: JSON = {"type": "message", "channel": message.channel, "ts": self.workspace.now()}
        if self.workspace.replies(message_id):
            message.subtype, message.user, message.text = "tombstone", "USLACKBOT", "This message was deleted."
            change |= {"subtype": "message_changed", "message": message.event()}
        else:
            del self.workspace.messages[message_id]
            change |= {"subtype": "message_deleted", "deleted_ts": message_id}
        self.changed()
        self.emit(change)

    async def command(self, name: str, *, author: str = "Mei", channel: str = "general") -> None:
        trigger = f"{next(self._numbers)}.738474920.8088930838d88f008e0"
        payload = {
            "command": self.slash,
            "text": name,
            "team_id": self.team,
            "user_id": self.workspace.user(author),
            "user_name": author.lower(),
            "channel_id": self.workspace.find(channel) or self.workspace.channel(channel),
            "trigger_id": trigger,
            "response_url": f"http://127.0.0.1:{self._port}/respond/{trigger}",
        }
        self._commands[trigger] = payload
        self.views.offer(trigger, payload["user_id"])
        self._emit("slash_commands", payload, retries=())

    async def press(self, message_id: str, action: Action, *, author: str = "Mei") -> None:
        message = self.workspace.messages[message_id]
        assert action in message.actions, f"there is no such button under {message_id}"
        payload = {
            "type": "block_actions",
            "team": {"id": TEAM},
            "user": {"id": self.workspace.user(author), "name": author.lower()},
            "channel": {"id": message.channel},
            "container": {"type": "message", "message_ts": message_id, "channel_id": message.channel},
            "message": message.event(),
            "trigger_id": f"{next(self._numbers)}.1.1",
            "actions": [
                {"type": "button", "block_id": "b", "action_id": action.value, "action_ts": self.workspace.now()}
            ],
        }
        self._last_press = payload
        self.repeat_press()

    def repeat_press(self) -> None:
        """Deliver the last press again, as if it had not been acknowledged."""
        self._emit("interactive", self._last_press, retries=())

    async def submit(self, view_id: str, **values: str | None) -> None:
        """Submit a modal, with these values in place of those that it has; None empties an input."""
        self._emit("interactive", self.views.submission(view_id, values), retries=())

    def unfurl(self, message_id: str) -> None:
        """Unfurl a link in a message, which sends the same event as an edit."""
        message = self.workspace.messages[message_id]
        change = {
            "type": "message",
            "subtype": "message_changed",
            "channel": message.channel,
            "ts": self.workspace.now(),
        }
        self.emit({**change, "message": message.event(), "previous_message": message.event()})

    def seen(self, channel: str = "general", thread: str | None = None) -> list[Seen]:
        place = self.workspace.find(channel)
        return [] if place is None else self.workspace.seen(place, thread)

    async def disconnect(self, *, resumable: bool = True) -> None:
        """Close all sockets; if not resumable, events until the next connection are lost."""
        self._is_losing = not resumable
        for line in list(self._sockets):
            await line.close()

    async def stop_session(self, message_id: str, *, author: str = "") -> None:
        """Use Slack's Stop control in the thread of a message of the bot; by default its last asker does."""
        message = self.workspace.messages[message_id]
        asker = [
            each.user for each in self.workspace.messages.values() if each.root == message.root and each.user != BOT
        ]
        is_open = message.streaming == "in_progress"
        if is_open:
            self.agents.stopped_by_user(message)
        self.emit(
            {
                "type": "agent_session_stopped",
                "channel": message.channel,
                "thread_ts": message.root,
                "user": self.workspace.user(author) if author else asker[-1],
                "streaming_message_ts": [message_id] if is_open else [],
                "ts": self.workspace.now(),
            }
        )

    def open_chat(self, *, author: str = "Mei") -> None:
        """Open the direct chat with the bot, as in the client."""
        event = {"type": "app_home_opened", "tab": "messages", "user": self.workspace.user(author)}
        self.emit({**event, "channel": self.workspace.direct(author), "ts": self.workspace.now()})

    def begin_chat(self, *, author: str = "Mei") -> str:
        """Begin a chat with an agent, a thread of the direct messages with it; return the thread."""
        return self.workspace.post(self.workspace.direct(author), BOT, text="New chat", subtype=CHAT).ts

    def open_assistant(self, *, author: str = "Mei") -> str:
        """Begin a chat with an app of the older kind of agents; return the thread."""
        channel, user, thread = (
            self.workspace.direct(author),
            self.workspace.user(author),
            self.begin_chat(author=author),
        )
        started = {"user_id": user, "channel_id": channel, "thread_ts": thread, "context": {}}
        self.emit({"type": "assistant_thread_started", "assistant_thread": started, "ts": self.workspace.now()})
        return thread

    async def refresh(self) -> None:
        """Ask the client to replace its sockets, as Slack does about every hour."""
        for line in list(self._sockets):
            await line.send_json({"type": "disconnect", "reason": "refresh_requested"})


class AskingInChats(SlackServer):
    """An app that is an agent, asked in chats with it, each question in a new one: a channel's name is the asker's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(is_agent=True, **settings)

    async def say(
        self,
        text: str,
        *,
        author: str = "Mei",
        channel: str = "general",
        thread: str | None = None,
        direct: bool = False,
        mention: bool = True,
        reply_to: str | None = None,
        files: Sequence[JSON] = (),
    ) -> str:
        asker = author if direct else channel
        thread = thread or self.begin_chat(author=asker)
        return await super().say(text, author=asker, thread=thread, direct=True, reply_to=reply_to, files=files)
