"""From the events of a reply to what each of its messages shows.  Pure Python: no asyncio."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from bot.chat.i18n import Translate, finish_note, waiting
from bot.delivery.markdown.format import CachedFormat, Format, PlainFormat, Rendered, fits
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
)

PLACEHOLDER = "…"
NO_CONTROLS: Controls = frozenset()


@dataclass(frozen=True, slots=True)
class MessageView:
    """The content of one message."""

    text: Rendered
    controls: Controls = NO_CONTROLS


class ReplyView:
    """The content of a reply so far: the model's text, split into messages, and the bot's own words below it."""

    def __init__(self, exchange: Exchange, format: Format, translate: Translate) -> None:
        self._is_chat = exchange.kind is Kind.CHAT
        self._translate = translate
        self._format: Format = CachedFormat(format)
        self._splitter = Splitter(self._format)
        self._notices: list[str] = []
        self._queued: Queued | None = None
        self._reason = FinishReason.STOP
        self._texts: list[str] | None = None
        self.has_begun = False
        self.is_complete = False

    @property
    def is_plain(self) -> bool:
        """Whether all messages are shown without markup."""
        return isinstance(self._format, PlainFormat)

    def apply(self, event: ReplyEvent) -> None:
        match event:
            case Delta(text):
                self._splitter.append(text)
            case Notice(text):
                self._notices.append(text)
            case Queued():
                self._queued = event
            case Finished(reason):
                self._reason = reason
                self.is_complete = True
            case _:
                assert_never(event)
        self.has_begun = True
        self._texts = None

    def messages(self) -> list[str]:
        """Return the whole reply as it is now, one Markdown text per message."""
        if self._texts is None:
            self._texts = self._compose()
        return self._texts

    def message(self, number: int, *, plain: bool = False) -> MessageView:
        """Return the content of message `number`, which is one of `messages`."""
        texts = self.messages()
        controls = self._controls() if number == len(texts) - 1 else NO_CONTROLS
        return MessageView(self._render(texts[number], plain), controls)

    def placeholder(self, controls: Controls = NO_CONTROLS, *, plain: bool = False) -> MessageView:
        return MessageView(self._render(PLACEHOLDER, plain), controls)

    def fits_plain(self, number: int) -> bool:
        """Return whether message `number` also fits one message without its markup."""
        texts = self.messages()
        return number >= len(texts) or fits(texts[number], PlainFormat(self._format))

    def use_plain(self) -> None:
        """Show all messages without markup from now on."""
        text = join(self._splitter.chunks())
        self._format = PlainFormat(self._format)
        self._splitter = Splitter(self._format)
        self._splitter.append(text)
        self._texts = None

    def _render(self, text: str, plain: bool) -> Rendered:
        return self._format.plain(text) if plain else self._format.render(text)

    def _controls(self) -> Controls:
        if not self._is_chat:
            return NO_CONTROLS
        return frozenset({Action.RETRY if self.is_complete else Action.STOP})

    def _compose(self) -> list[str]:
        texts = self._visible(chunk.text for chunk in self._splitter.chunks())
        notices = list(self._notices)
        if self.is_complete:
            if note := finish_note(self._reason, self._translate):
                notices.append(note)
            elif not texts and not notices:
                notices.append(self._translate("I have no answer to that. Please ask in other words."))
        elif not texts and (self._is_chat or not notices):
            texts = [PLACEHOLDER if self._queued is None else waiting(self._queued, self._translate)]
        if notices:
            below = "\n\n".join(notices)
            if texts and fits(f"{texts[-1]}\n\n{below}", self._format):
                texts[-1] += f"\n\n{below}"
            else:
                texts += self._visible(chunk.text for chunk in split(below, self._format))
        return texts

    def _visible(self, texts: Iterable[str]) -> list[str]:
        """Leave out texts that would be empty: no platform takes an empty message."""
        return [text for text in texts if self._format.render(text).text.strip()]
