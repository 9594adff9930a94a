"""Replies in a channel that the database does not know.

After a restored backup the channel is newer than the database.  Platforms whose history can
be read describe the bot's messages there as `OwnMessage`s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from bot.chat.i18n import Translate, finish_note, translator
from bot.domain import Action, Answer, FinishReason

_LANGUAGES = ("en", "zh")
# What a message shows before its text (bot/delivery/view.py).
_PLACEHOLDER = "…"


@dataclass(frozen=True, slots=True)
class OwnMessage:
    """A message of the bot in a history; `changed_at` is the time of its last edit."""

    id: str
    text: str
    changed_at: datetime
    actions: frozenset[Action] = frozenset()


@dataclass(slots=True, eq=False)
class StandingReply:
    """The messages of one reply, in order; `edited_at` is the time of the last edit of its question.

    They are in `thread` if one was opened for the reply and its question's row does not know it.
    """

    messages: list[OwnMessage] = field(default_factory=list)
    edited_at: datetime | None = None
    thread: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(message.id for message in self.messages)

    @property
    def is_complete(self) -> bool:
        """Whether its last message offers another answer, as only a complete one does; it is edited last."""
        is_shown = all(message.text != _PLACEHOLDER for message in self.messages)
        return is_shown and Action.RETRY in self.messages[-1].actions

    @property
    def is_outdated(self) -> bool:
        """Whether its question was edited after its last change."""
        return self.edited_at is not None and self.edited_at >= max(message.changed_at for message in self.messages)

    def answers_anew(self, old: Answer) -> bool:
        """Return whether it is a complete answer to the question as it is now, and not this one."""
        shown = "".join(self.answer.text.split())
        return self.is_complete and not self.is_outdated and shown != "".join(old.text.split())

    @property
    def answer(self) -> Answer:
        """The visible text as an answer."""
        text = "\n".join(message.text for message in self.messages).strip()
        for translate in map(translator, _LANGUAGES):
            if text == late_notice(translate):
                return Answer("", text, FinishReason.ERROR)
            for reason in FinishReason:
                note = finish_note(reason, translate)
                if note and text.endswith(note):
                    return Answer(text.removesuffix(note).rstrip(), reason=reason)
        return Answer(text)


@dataclass(frozen=True, slots=True)
class Standing:
    """What channels show of owed exchanges, by exchange id: replies, and the lack of a deleted question."""

    replies: Mapping[int, StandingReply] = field(default_factory=dict)
    deleted: frozenset[int] = frozenset()


def late_notice(translate: Translate) -> str:
    """Return the sentence for a question that is too old to be answered."""
    return translate("I was offline when you sent this. Please ask again if you still need an answer.")


def is_delay_notice(text: str) -> bool:
    """Return whether it tells an author that a message waits for the database: it replies to the message too."""
    return any(
        text == translate("I can't save messages right now. Yours is queued and will be answered.")
        for translate in map(translator, _LANGUAGES)
    )
