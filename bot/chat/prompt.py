"""Build the prompt of a question: opening, history, quotation, text."""

import bisect
from dataclasses import dataclass

from bot.chat.i18n import Translate
from bot.chat.loops import without_loop
from bot.chat.settings import ChatSettings
from bot.domain import ChatMessage, Exchange, IncomingMessage
from bot.engine.base import Engine
from bot.errors import BotError, PromptTooLong
from bot.storage.base import History

# A turn of more characters is left out without counting its tokens.
_MOST_CHARACTERS_PER_TOKEN = 64


class NothingToAsk(BotError):
    """The message has no text, and what it quoted was deleted."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """`left_out` older turns did not fit; `quoted_chars` is how much of a longer quotation did."""

    messages: tuple[ChatMessage, ...]
    left_out: int = 0
    is_told: bool = False
    quoted_chars: int | None = None

    def notices(self, translate: Translate) -> list[str]:
        """Return what the author should know about it."""
        notices = []
        if self.left_out and not self.is_told:
            sentence = translate("The oldest turns of this conversation were left out: {count}.")
            notices.append(sentence.format(count=self.left_out))
        if self.quoted_chars:
            sentence = translate("Only the first {count} characters of the quotation were read.")
            notices.append(sentence.format(count=self.quoted_chars))
        elif self.quoted_chars == 0:
            notices.append(translate("The quotation was not read: your message leaves no room for it."))
        return notices


def build_prompt(history: History, settings: ChatSettings, engine: Engine) -> Prompt:
    """Cut history and quotation to the context; history goes first.

    Raises:
        PromptTooLong: The question does not fit even alone.
        NothingToAsk: There is no question.
    """
    question = history.now.message
    if not _has_words(question):
        raise NothingToAsk
    conversation = settings.conversation
    context = engine.info.context_length
    # A small context is shared evenly, however much is reserved for the answer.
    room = context - min(conversation.answer_tokens, context // 2)
    past_turns = [past for past in history.exchanges if _has_words(past.message)]
    turns = _newest(past_turns, context * _MOST_CHARACTERS_PER_TOKEN)
    opening = [ChatMessage("system", conversation.system_prompt)] if conversation.system_prompt else []

    has_names = conversation.name_speakers and engine.info.reads_names

    def spoken(message: IncomingMessage, previous: Exchange | None, most: int) -> ChatMessage:
        return ChatMessage("user", _spoken(message, previous, most, has_name=has_names))

    def prompt(oldest: int, quoted: int) -> tuple[ChatMessage, ...]:
        messages, previous = list(opening), None
        for past in turns[oldest:]:
            assert past.answer is not None
            messages.append(spoken(past.message, previous, _most_quoted(past.message, settings)))
            messages.append(ChatMessage("assistant", without_loop(past.answer.text)))
            previous = past
        return (*messages, spoken(question, previous, quoted))

    def fits(oldest: int, quoted: int) -> bool:
        return engine.count_tokens(prompt(oldest, quoted)) <= room

    whole, alone = len(question.quoted or ""), len(turns)
    quoted = _most_quoted(question, settings)
    if quoted and not fits(alone, quoted):
        quoted = bisect.bisect_left(range(1, quoted), True, key=lambda most: not fits(alone, most))
    if not question.text.strip():
        quoted = quoted or _most_quoted(question, settings)
    needed = engine.count_tokens(prompt(alone, quoted))
    if needed >= context:
        raise PromptTooLong(needed, context)
    left_out = bisect.bisect_left(range(alone), True, key=lambda oldest: fits(oldest, quoted))
    is_shown = not _is_answer_before(question, turns[-1] if left_out < alone else None)
    return Prompt(
        prompt(left_out, quoted),
        len(past_turns) - alone + left_out,
        history.is_shortening_told,
        quoted if quoted < whole and is_shown else None,
    )


def _has_words(message: IncomingMessage) -> bool:
    return bool(message.text.strip() or (message.quoted or "").strip())


def _newest(turns: list[Exchange], most: int) -> list[Exchange]:
    """Return the last turns, together at most `most` characters."""
    for number, past in enumerate(reversed(turns)):
        most -= len(past.message.text) + len(past.answer.text if past.answer is not None else "")
        if most < 0:
            return turns[len(turns) - number :]
    return turns


def _most_quoted(message: IncomingMessage, settings: ChatSettings) -> int:
    """Return how many characters of its quotation a message may have."""
    return min(len(message.quoted or ""), max(0, settings.max_message_chars - len(message.text)))


def _spoken(message: IncomingMessage, previous: Exchange | None, most: int, *, has_name: bool) -> str:
    """Return what the model reads: the quotation, the speaker where there are several, the text."""
    if not message.text.strip():
        return (message.quoted or "")[:most]  # it is the question
    text = f"{message.author.name}: {message.text}" if has_name and not message.is_direct else message.text
    if not message.quoted or not most or _is_answer_before(message, previous):
        return text
    quoted = "\n".join(f"> {line}" for line in message.quoted[:most].splitlines())
    return f"{quoted}\n\n{text}"


def _is_answer_before(message: IncomingMessage, previous: Exchange | None) -> bool:
    """Return whether the message quotes the answer that comes right before it anyway."""
    return (
        previous is not None
        and message.quotes_bot
        and bool(message.text.strip())
        and message.quoted_id in previous.parts
    )
