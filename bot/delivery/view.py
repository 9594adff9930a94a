"""From the events of a reply to what each of its messages shows.  Pure Python: no asyncio.

Splitting and rendering hostile Markdown takes seconds: `prepare` does it, and may run in a thread.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from bot.chat.i18n import Translate, finish_note, thinking, waiting
from bot.delivery.markdown.format import CachedFormat, EndedFormat, Format, Rendered, fits, simpler_formats
from bot.delivery.markdown.split import Splitter, join, split
from bot.domain import (
    Action,
    Controls,
    Delta,
    Exchange,
    Finished,
    FinishReason,
    Kind,
    Notice,
    Queued,
    ReplyEvent,
    Thought,
)

PLACEHOLDER = "…"
NO_CONTROLS: Controls = frozenset()
# The buttons of a complete reply, with and without votes.
_RATED: Controls = frozenset({Action.RETRY, Action.UP, Action.DOWN})
_UNRATED: Controls = frozenset({Action.RETRY})
# The last characters of a model's thoughts that are shown.
_SHOWN_THOUGHTS = 600


@dataclass(frozen=True, slots=True)
class MessageView:
    """The content of one message; `answer` is the Markdown of the model's text in it."""

    text: Rendered
    controls: Controls = NO_CONTROLS
    answer: str = field(default="", compare=False)


class ReplyView:
    """The content of a reply so far: the model's text, split into messages, and the bot's own words below it.

    With `marks_stable`, the text of a message that grows says how much of it will stay.
    """

    def __init__(
        self,
        exchange: Exchange,
        format: Format,
        translate: Translate,
        *,
        asks_for_votes: bool = False,
        marks_stable: bool = False,
    ) -> None:
        self._is_chat = exchange.kind is Kind.CHAT
        self._asks_for_votes = asks_for_votes
        self._marks_stable = marks_stable and self._is_chat
        self._translate = translate
        # Those after the first one are for what the platform refuses in the one before.
        self._formats: list[Format] = [CachedFormat(each) for each in (format, *simpler_formats(format))]
        self._level = 0
        self._splitter = Splitter(self._format)
        self._notices: list[str] = []
        self._queued: Queued | None = None
        self._thought: Thought | None = None
        self._reason = FinishReason.STOP
        self._texts: list[str] | None = None
        self._rendered: dict[str, Rendered] = {}  # of `_texts`
        self._answers: list[str] = []  # the texts without notices
        self._growing: tuple[int, str] = (0, "")  # the last message of the model's text, without added marks
        # Messages whose text a filter refuses, with the text that stays there; None if it is unknown.
        self._filtered: dict[int, str | None] = {}
        self._frozen: list[str | None] | None = None
        self._most: int | None = None  # messages that the platform takes, once that is known
        self._ended: dict[tuple[int, str, str], str] = {}  # what was left of a text, so that it ends with a sentence
        self.has_begun = False
        self.is_complete = False

    @property
    def _format(self) -> Format:
        return self._formats[self._level]

    def simpler(self, level: int) -> int | None:
        """Return the level of markup to try where the platform refuses this one; None if that was the last."""
        following = max(level, self._level) + 1
        return following if following < len(self._formats) else None

    def apply(self, event: ReplyEvent) -> None:
        match event:
            case Delta(text):
                self._splitter.append(text)
            case Notice(text):
                self._notices.append(text)
            case Queued():
                self._queued, self._thought = event, None
            case Thought(text, seconds):
                before = self._thought.text if self._thought is not None else ""
                self._thought = Thought((before + text)[-_SHOWN_THOUGHTS:], seconds)
            case Finished(reason):
                self._reason = reason
                self.is_complete = True
            case _:
                assert_never(event)
        self.has_begun = True
        self._texts = None

    def filter(self, number: int, standing: str | None) -> None:
        """Leave this text of message `number`, whose whole text a filter refuses; None leaves what is there."""
        self._filtered[number] = standing
        self._texts = None

    def is_filtered(self, number: int) -> bool:
        return number in self._filtered

    def freeze(self, standing: Sequence[str | None], sentence: str) -> None:
        """End with these texts of the messages, and a sentence below; None leaves what is there."""
        texts = list(standing)
        while texts and texts[-1] == "":
            texts.pop()
        self._frozen = [PLACEHOLDER if text == "" else text for text in texts]
        self._filtered.clear()
        self._notices = [sentence]
        self._reason = FinishReason.ERROR
        self.is_complete = self.has_begun = True
        self._texts = None

    def end_after(self, messages: int) -> None:
        """Show what fits into the first `messages`, with a sentence below; there can be no further ones."""
        self._most, self._texts = messages, None

    def is_untouched(self, number: int) -> bool:
        """Return whether message `number` stays as it is, because its content is unknown."""
        if self._frozen is not None:
            return number < len(self._frozen) and self._frozen[number] is None
        return self._filtered.get(number, "") is None

    @property
    def pending(self) -> int:
        """Return the number of characters that `prepare` has to split; 0 if nothing is left to do."""
        if self._texts is not None:
            return 0
        standing = [*self._filtered.values(), *(self._frozen or ())]
        return max(1, self._splitter.pending) + sum(len(text or "") for text in standing)

    def prepare(self) -> None:
        """Split and render the reply as it is now; until the next event this takes no time again."""
        if self._texts is None:
            texts = self._compose()
            self._rendered = {text: self._rendered.get(text) or self._format.render(text) for text in texts}
            self._texts = texts

    def messages(self) -> list[str]:
        """Return the whole reply as it is now, one Markdown text per message."""
        self.prepare()
        assert self._texts is not None, "prepared"
        return self._texts

    def message(self, number: int, level: int = 0) -> MessageView:
        """Return the content of message `number`, which is one of `messages`.

        Each `level` has less markup: 0 is the platform's best, the last one is plain text.
        """
        texts = self.messages()
        controls = self._controls() if number == len(texts) - 1 else NO_CONTROLS
        answer = self._answers[number] if number < len(self._answers) else ""
        text = self._render(texts[number], level)
        if self._marks_stable and not self.is_complete and number == len(texts) - 1:
            text = replace(text, stable=self._stable_part(number, text, level))
        return MessageView(text, controls, answer)

    def placeholder(self, controls: Controls = NO_CONTROLS, level: int = 0) -> MessageView:
        text = self._render(PLACEHOLDER, level)
        return MessageView(replace(text, stable=0) if self._marks_stable else text, controls)

    def _stable_part(self, number: int, text: Rendered, level: int) -> int:
        growing, markdown = self._growing
        part = self._render(markdown, level).text if number == growing and not self._filtered else ""
        return len(part) if text.text.startswith(part) else 0

    def fits(self, number: int, level: int) -> bool:
        """Return whether message `number` also fits one message with the markup of this level."""
        texts = self.messages()
        return number >= len(texts) or fits(texts[number], self._formats[level])

    def simplify(self, level: int) -> None:
        """Show all messages with the markup of this level from now on."""
        text = join(self._splitter.chunks())
        self._level = level
        self._splitter = Splitter(self._format)
        self._splitter.append(text)
        self._texts = None
        self._rendered = {}

    def _render(self, text: str, level: int = 0) -> Rendered:
        if level > self._level:
            return self._formats[level].render(text)
        return self._rendered.get(text) or self._format.render(text)

    def _controls(self) -> Controls:
        if not self._is_chat:
            return NO_CONTROLS
        if not self.is_complete:
            return frozenset({Action.STOP})
        # Nobody votes on a sentence in place of an answer, or on one that broke off.
        is_answer = any(self._answers) and self._reason is not FinishReason.ERROR
        return _RATED if self._asks_for_votes and is_answer else _UNRATED

    def _compose(self) -> list[str]:
        translate, notices = self._translate, list(self._notices)
        if self._frozen is None:
            chunks = self._splitter.chunks()
            texts = self._visible(chunk.text for chunk in chunks)
            last = chunks[-1] if chunks and texts[-1:] == [chunks[-1].text] else None
            self._growing = (len(texts) - 1, f"{last.opening}{last.body}") if last else (0, "")
            self._leave_filtered(texts, notices)
        else:
            texts = [text or "" for text in self._frozen]
        self._answers = list(texts)
        if self.is_complete:
            if note := finish_note(self._reason, self._translate):
                notices.append(note)
            elif not texts and not notices:
                notices.append(translate("I have no answer to that. Please rephrase your question."))
        elif not texts and (self._is_chat or not notices):
            texts = [self._before_text()]
        if notices:
            below = "\n\n".join(notices)
            if texts and not self.is_untouched(len(texts) - 1) and fits(f"{texts[-1]}\n\n{below}", self._format):
                texts[-1] += f"\n\n{below}"
            else:
                texts += self._visible(chunk.text for chunk in split(below, self._format))
        if self._most is not None and len(texts) > self._most:
            texts = texts[: self._most]
            self._end(texts, notices)
        return texts

    def _end(self, texts: list[str], notices: list[str]) -> None:
        """End the last text with a sentence about what is left out."""
        last = len(texts) - 1
        if self.is_untouched(last):
            return
        translate = self._translate
        sentence = translate("The rest does not fit here. For the whole answer, ask me in a direct message.")
        below = "\n\n".join([*notices, sentence]) if self._answers else sentence
        if 2 * len(below) > self._format.limit:
            below = sentence
        key = self._level, texts[last], below
        if key not in self._ended:
            self._ended = {key: split(texts[last], EndedFormat(self._format, below))[0].text}
        if last < len(self._answers):
            self._answers[last] = self._ended[key]
        texts[last] = f"{self._ended[key]}\n\n{below}"

    def _before_text(self) -> str:
        if self._thought is not None:
            shown = thinking(self._thought, self._translate)
            return shown if fits(shown, self._format) else thinking(Thought("", self._thought.seconds), self._translate)
        return PLACEHOLDER if self._queued is None else waiting(self._queued, self._translate)

    def _leave_filtered(self, texts: list[str], notices: list[str]) -> None:
        translate = self._translate
        sentence = translate("(A filter of this server refuses the rest of this message.)")
        for number, standing in sorted(self._filtered.items()):
            if number >= len(texts):
                notices[:] = [sentence]
            elif standing is None:
                notices.append(sentence)
            elif not standing:
                texts[number] = sentence
            elif fits(f"{standing}\n\n{sentence}", self._format):
                texts[number] = f"{standing}\n\n{sentence}"
            else:
                texts[number] = standing
                notices.append(sentence)

    def _visible(self, texts: Iterable[str]) -> list[str]:
        """Leave out texts that would be empty: no platform takes an empty message."""
        return [text for text in texts if self._render(text).text.strip()]
