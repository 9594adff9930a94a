"""What the loopback Slack allows to apps that are agents: streams, sessions, prompts."""

from collections.abc import Callable
from typing import Any

from tests.harness.servers.slack_world import BOT, Message, SlackRefusal, Workspace

JSON = dict[str, Any]

_CALL_LIMIT, _TOTAL_LIMIT = 12_000, 13_100
_STATES = {"active", "processing", "suspended", "closed"}


class SlackAgents:
    """The methods, as strict as their documentation; `now` is the clock of the streams' age."""

    def __init__(self, workspace: Workspace, now: Callable[[], float], *, is_on: bool) -> None:
        self.is_on = is_on
        self.lifetime = 300.0  # seconds after which Slack ends a stream
        self.warning = ""  # of agents.sessions.setStatus
        self.sessions: dict[tuple[str, str], str] = {}  # state by channel and thread
        self.titles: dict[tuple[str, str], str] = {}
        self.prompts: list[JSON] = []  # arguments of each call
        self._workspace = workspace
        self._now = now
        self._started: dict[str, float] = {}

    @property
    def open_streams(self) -> list[str]:
        self._expire()
        return [ts for ts, message in self._workspace.messages.items() if message.streaming == "in_progress"]

    @property
    def left_open(self) -> list[str]:
        """Streams that have not ended, and sessions in which the bot seems to work, once all answers are complete."""
        sessions = [f"session {thread}" for (_, thread), state in self.sessions.items() if state == "processing"]
        return [*(f"stream {ts}" for ts in self.open_streams), *sessions]

    def start(self, arguments: JSON) -> JSON:
        channel, thread = self._workspace.place(arguments.get("channel", "")), arguments.get("thread_ts")
        if thread is None:
            raise SlackRefusal("invalid_arguments", is_violation=True)
        if thread not in self._workspace.messages:
            raise SlackRefusal("thread_not_found")
        for name in () if channel.startswith("D") else ("recipient_user_id", "recipient_team_id"):
            if not arguments.get(name):
                raise SlackRefusal(f"missing_{name}", is_violation=True)
        if not channel.startswith("D") and arguments["recipient_user_id"] not in self._workspace.people:
            raise SlackRefusal("user_not_found", is_violation=True)
        message = self._workspace.post(channel, BOT, text="", thread=thread)
        message.streaming = "in_progress"
        self._started[message.ts] = self._now()
        self._add(message, arguments, is_required=False)
        return {"channel": channel, "ts": message.ts}

    def append(self, arguments: JSON) -> JSON:
        message = self._streaming(arguments)
        self._add(message, arguments, is_required=True)
        return {"channel": message.channel, "ts": message.ts}

    def stop(self, arguments: JSON) -> JSON:
        message = self._streaming(arguments)
        self._add(message, arguments, is_required=False)
        if arguments.get("blocks"):
            message.blocks = [*message.blocks, *arguments["blocks"]]
        if not message.blocks:
            message.text = "This message has no content."
        message.metadata = arguments.get("metadata")
        message.streaming = "completed"
        state = arguments.get("session_status") or "active"
        if state not in _STATES:
            raise SlackRefusal("invalid_arguments", is_violation=True)
        self.sessions[message.channel, message.root] = state
        return {"channel": message.channel, "ts": message.ts, "message": message.event()}

    def set_session(self, arguments: JSON) -> JSON:
        channel, thread = self._workspace.place(arguments.get("channel_id", "")), arguments.get("thread_ts", "")
        state, title = arguments.get("status", ""), arguments.get("title", "")
        if state not in _STATES or len(title) > 200:
            raise SlackRefusal("invalid_arguments", is_violation=True)
        if thread not in self._workspace.messages:
            raise SlackRefusal("thread_not_found")
        self.sessions[channel, thread] = state
        self.titles.setdefault((channel, thread), title)
        return {"status": state} | ({"warning": self.warning} if self.warning else {})

    def set_prompts(self, arguments: JSON) -> JSON:
        self._workspace.place(arguments.get("channel_id", ""))
        prompts = arguments.get("prompts") or []
        if not 1 <= len(prompts) <= 4 or any(not (each.get("title") and each.get("message")) for each in prompts):
            raise SlackRefusal("invalid_arguments", is_violation=True)
        self.prompts.append(arguments)
        return {}

    def stopped_by_user(self, message: Message) -> None:
        """End a stream as by Slack's Stop control."""
        message.streaming = "stopped"

    def check_update(self, message: Message) -> None:
        """Refuse an edit of a message that is still a stream."""
        self._expire()
        if message.streaming == "in_progress":
            raise SlackRefusal("streaming_state_conflict")

    def _streaming(self, arguments: JSON) -> Message:
        self._expire()
        message = self._workspace.messages.get(arguments.get("ts", ""))
        if message is None or message.channel != self._workspace.place(arguments.get("channel", "")):
            raise SlackRefusal("message_not_found")
        if message.user != BOT:
            raise SlackRefusal("message_not_owned_by_app", is_violation=True)
        if message.streaming == "stopped":
            raise SlackRefusal("stopped_by_user")
        if message.streaming != "in_progress":
            raise SlackRefusal("message_not_in_streaming_state")
        return message

    def _add(self, message: Message, arguments: JSON, *, is_required: bool) -> None:
        text = arguments.get("markdown_text")
        if text is not None and arguments.get("chunks") is not None:
            raise SlackRefusal("cannot_provide_both_markdown_text_and_chunks", is_violation=True)
        if arguments.get("chunks") is not None:
            raise SlackRefusal("streaming_mode_mismatch", is_violation=True)  # all streams here are of text
        if is_required and not text:
            raise SlackRefusal("markdown_text_required", is_violation=True)
        if not text:
            return
        if len(text) > _CALL_LIMIT:
            raise SlackRefusal("msg_too_long", is_violation=True)
        before = message.markdown
        if self._workspace.refuses_markdown and any(map(str.isalnum, text)):
            raise SlackRefusal("invalid_blocks")
        # Slack was seen to lose whitespace between two appends.
        if before and (before[-1].isspace() or text[0].isspace()):
            before, text = before.rstrip(), text.lstrip()
        if len(before) + len(text) > _TOTAL_LIMIT:
            raise SlackRefusal("msg_blocks_too_long", is_violation=True)
        message.blocks = [{"type": "markdown", "text": before + text}]
        self._workspace.note_pings(before + text)

    def _expire(self) -> None:
        for ts, began in list(self._started.items()):
            message = self._workspace.messages.get(ts)
            if message is None or message.streaming != "in_progress":
                del self._started[ts]
            elif self._now() - began > self.lifetime:
                message.streaming = "completed"


METHODS: dict[str, Callable[[SlackAgents, JSON], JSON]] = {
    "chat.startStream": SlackAgents.start,
    "chat.appendStream": SlackAgents.append,
    "chat.stopStream": SlackAgents.stop,
    "agents.sessions.setStatus": SlackAgents.set_session,
    "assistant.threads.setSuggestedPrompts": SlackAgents.set_prompts,
}
