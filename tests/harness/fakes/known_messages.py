"""Messages that a database knows, without one."""

from dataclasses import dataclass, field

from bot.domain import ChannelKey


@dataclass
class FakeKnownMessages:
    """Ids of questions, and of messages that carry replies; the last question is the newest message."""

    questions: list[str] = field(default_factory=list)
    replies: set[str] = field(default_factory=set)
    channel: ChannelKey | None = None

    async def is_known(self, channel: ChannelKey, message_id: str) -> bool:
        return message_id in self.questions

    async def is_reply(self, channel: ChannelKey, message_id: str) -> bool:
        return message_id in self.replies

    async def last_message_ids(self, platform: str) -> dict[ChannelKey, str]:
        return {self.channel: self.questions[-1]} if self.channel and self.questions else {}
