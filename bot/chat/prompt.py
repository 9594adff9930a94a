"""Build the prompt of a question: opening, history, quotation, text."""

import bisect
import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from threading import Lock

from bot.chat.i18n import Translate
from bot.chat.loops import without_loop, without_quoted_loop
from bot.chat.pictures import pictures_of, show_pictures
from bot.chat.settings import ChatSettings
from bot.domain import Attachment, ChatMessage, Exchange, FurtherKind, FurtherMessage, IncomingMessage
from bot.engine.base import Engine
from bot.errors import BotError, PromptTooLong
from bot.storage.base import History
from bot.util.recent import RecentDict

# A turn of more characters is left out without counting its tokens.
_MOST_CHARACTERS_PER_TOKEN = 64

# Tokens by which a corrected estimate may be wrong.
_UNCERTAIN = 4

# Share of an answer's letters and digits from which a quotation is the whole of it.
_WHOLE = 0.9

# Turns whose tokens are remembered.
_REMEMBERED = 20_000


Turn = tuple[ChatMessage, ChatMessage]
_ASKS = ChatMessage("user", "?")
_SHORT = _ASKS, ChatMessage("assistant", "!")


class TurnCounts:
    """Tokens of turns, each counted once for a model; safe to use in several threads.

    Turns are known by a keyed digest: no text stays in memory after its deletion.
    """

    def __init__(self) -> None:
        self._counts: RecentDict[bytes, int] = RecentDict(_REMEMBERED)
        self._lock = Lock()
        self._key = secrets.token_bytes(32)

    def estimates(
        self, newest_first: Iterable[Turn], alone: tuple[ChatMessage, ...], room: int, engine: Engine
    ) -> list[int]:
        """Estimate the tokens of a prompt with none, one, two, … turns, until it is twice the room.

        `alone` is the prompt without turns: opening and question.
        """
        *opening, question = alone
        each = engine.count_tokens([*_SHORT, *_SHORT, _ASKS]) - engine.count_tokens([*_SHORT, _ASKS])
        sums = [engine.count_tokens([*opening, *_SHORT, question]) - each]
        for turn in newest_first:
            sums.append(sums[-1] + self._count(turn, engine) + each)
            if sums[-1] > 2 * room:
                break
        return sums

    def _count(self, turn: Turn, engine: Engine) -> int:
        """Return how many tokens more than a short one the turn has."""
        # A picture is written as its sides.
        key = self._digest(
            [repr(engine.info), *(each for said in turn for each in (said.content, repr(said.pictures)))]
        )
        with self._lock:
            count = self._counts.get(key)
        if count is None:
            count = engine.count_tokens([*turn, _ASKS]) - engine.count_tokens([*_SHORT, _ASKS])
            with self._lock:
                self._counts[key] = count
        return count

    def _digest(self, texts: Iterable[str]) -> bytes:
        digest = hashlib.blake2b(key=self._key, digest_size=16)
        for text in texts:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)
        return digest.digest()


class NothingToAsk(BotError):
    """The message has no text; what it quoted was deleted, or its `files` could not be read."""

    def __init__(self, files: tuple[Attachment, ...] = ()) -> None:
        super().__init__("there is no text")
        self.files = files


@dataclass(frozen=True, slots=True)
class Prompt:
    """`left_out` older turns did not fit.

    `context` is how many messages before a question may be read, None if there were none; `context_left_out` did not fit.
    `quoted_chars` is how much of a longer quotation did, `file_chars` how much of longer `files`.
    """

    messages: tuple[ChatMessage, ...]
    left_out: int = 0
    is_told: bool = False
    quoted_chars: int | None = None
    file_chars: int | None = None
    files: tuple[Attachment, ...] = ()
    tokens: int = 0
    context: int | None = None
    context_left_out: int = 0
    is_context_told: bool = False

    def notices(self, translate: Translate) -> list[str]:
        """Return what the author should know about it."""
        notices = []
        if self.context is not None and not self.is_context_told:
            sentence = translate(
                "Before a question in this channel I read up to {count} messages that were written before it. "
                "They are kept with the question, and deleted with it."
            )
            notices.append(sentence.format(count=self.context))
        if self.context_left_out:
            sentence = translate("Of the messages before your question the oldest were not read: {count}.")
            notices.append(sentence.format(count=self.context_left_out))
        if self.left_out and not self.is_told:
            sentence = translate("The oldest turns of this conversation were left out: {count}.")
            notices.append(sentence.format(count=self.left_out))
        if self.quoted_chars:
            sentence = translate("Only the first {count} characters of the quotation were read.")
            notices.append(sentence.format(count=self.quoted_chars))
        elif self.quoted_chars == 0:
            notices.append(translate("The quotation was not read: your message leaves no room for it."))
        names = ", ".join(file.name for file in self.files if file.text)
        if self.file_chars:
            sentence = translate("Only the first {count} characters of {files} were read.")
            notices.append(sentence.format(count=self.file_chars, files=names))
        elif self.file_chars == 0:
            sentence = translate("{files} was not read: your message leaves no room for it.")
            notices.append(sentence.format(files=names))
        return notices


def build_prompt(
    history: History,
    settings: ChatSettings,
    engine: Engine,
    counts: TurnCounts | None = None,
    most_pictures: int | None = None,
) -> Prompt:
    """Cut history and quotation to the context; history goes first, then pictures.

    `counts` has the tokens of turns that were counted before; `most_pictures` is fewer than the engine takes.

    Raises:
        PromptTooLong: The question does not fit even alone.
        NothingToAsk: There is no question.
    """
    history = _without_repetition(
        replace(history, now=_whole(history.now), exchanges=tuple(_whole(past) for past in history.exchanges))
    )
    most = engine.info.most_pictures if most_pictures is None else min(most_pictures, engine.info.most_pictures)
    while True:
        shown = show_pictures(history, most)
        number = len(pictures_of(shown.now.message))
        try:
            return _build(shown, settings, engine, counts or TurnCounts())
        except PromptTooLong:
            if not number:
                raise
            most = number - 1


def _build(history: History, settings: ChatSettings, engine: Engine, counts: TurnCounts) -> Prompt:
    if not _has_words(history.now.message):
        raise NothingToAsk(tuple(file for file in history.now.message.files if file.fault is not None))
    question = _bounded(history.now.message, settings)
    conversation = settings.conversation
    context = engine.info.context_length
    # A small context is shared evenly, however much is reserved for the answer.
    room = context - min(conversation.answer_tokens, context // 2)
    past_turns = [past for past in history.exchanges if _has_words(past.message)]
    turns = _newest(past_turns, context * _MOST_CHARACTERS_PER_TOKEN)
    opening = [ChatMessage("system", conversation.system_prompt)] if conversation.system_prompt else []

    has_names = conversation.name_speakers and engine.info.reads_names

    def spoken(message: IncomingMessage, previous: Exchange | None, most: int) -> ChatMessage:
        return ChatMessage("user", _spoken(message, previous, most, has_name=has_names), pictures_of(message))

    def turn(number: int, previous: Exchange | None) -> Turn:
        past = turns[number]
        assert past.answer is not None
        # Files and messages before earlier turns get a part of the context, in characters.
        bounded = _bounded(past.message, settings, context // 2)
        bounded = _with_context(bounded, _fitting_context(bounded, context // 2))
        said = spoken(bounded, previous, _length_pointed_at(bounded))
        return said, ChatMessage("assistant", without_loop(past.answer.text))

    def prompt(oldest: int, quoted: int) -> tuple[ChatMessage, ...]:
        messages, previous = list(opening), None
        for number in range(oldest, len(turns)):
            messages += turn(number, previous)
            previous = turns[number]
        return (*messages, spoken(question, previous, quoted))

    def fits(oldest: int, quoted: int) -> bool:
        return engine.count_tokens(prompt(oldest, quoted)) <= room

    alone = len(turns)
    quoted = _length_pointed_at(question)
    most_context, asked = _fitting_context(question, settings.max_message_chars), question
    question = _with_context(asked, most_context)
    if most_context and not fits(alone, quoted):

        def is_too_much(most: int) -> bool:
            nonlocal question
            question = _with_context(asked, most)
            return not fits(alone, quoted)

        most_context = bisect.bisect_left(range(1, most_context), True, key=is_too_much)
        question = _with_context(asked, most_context)
    if quoted and not fits(alone, quoted):
        quoted = bisect.bisect_left(range(1, quoted), True, key=lambda most: not fits(alone, most))
    if not question.text.strip():
        quoted = quoted or _length_pointed_at(question)
    needed = engine.count_tokens(prompt(alone, quoted))
    if needed >= context:
        raise PromptTooLong(needed, context)
    tokens = {alone: needed}

    def count(oldest: int) -> int:
        tokens[oldest] = engine.count_tokens(prompt(oldest, quoted))
        return tokens[oldest]

    newest_first = (turn(number, turns[number - 1] if number else None) for number in reversed(range(alone)))
    estimates = counts.estimates(newest_first, prompt(alone, quoted), room, engine) if turns else []
    left_out = _fit(estimates, alone, room, count)
    is_shown = not _is_answer_before(question, turns[-1] if left_out < alone else None)
    quotation = len(question.quoted or "")
    of_quotation, of_files = min(quoted, quotation), max(0, quoted - quotation)
    is_quotation_cut = of_quotation < len(history.now.message.quoted or "")
    are_files_cut = of_files < len(_contents(question)) or any(file.is_cut for file in question.files)
    return Prompt(
        prompt(left_out, quoted),
        len(past_turns) - alone + left_out,
        history.is_shortening_told,
        of_quotation if is_quotation_cut and is_shown else None,
        of_files if are_files_cut else None,
        question.files,
        tokens[left_out],
        conversation.context_messages if _has_context(asked) else None,
        len(_said_before(asked)) - most_context,
    )


def _fit(estimates: Sequence[int], turns: int, room: int, count: Callable[[int], int]) -> int:
    """Return how many of the oldest turns are left out, mostly after one exact count.

    The error of that count corrects the estimates: formats number their turns, and pieces may
    join at borders.  Without turns the prompt fits.
    """
    fitting, excessive, error = 0, len(estimates), 0  # of the newest turns
    while excessive - fitting > 1:
        kept = min(bisect.bisect_right(estimates, room + _UNCERTAIN - error), excessive) - 1
        if kept <= fitting:
            break
        found = count(turns - kept)
        error = found - estimates[kept]
        if found <= room:
            fitting = kept
        else:
            excessive = kept
    return turns - fitting


def _whole(exchange: Exchange) -> Exchange:
    message = exchange.message.whole
    return exchange if message is exchange.message else replace(exchange, message=message)


def _without_repetition(history: History) -> History:
    """Leave what was said before each question to the newest one that has it."""
    seen: set[str] = set()

    def unseen(exchange: Exchange) -> Exchange:
        said = {each.id for each in _said_before(exchange.message)}
        if not said:
            return exchange
        kept = tuple(
            each for each in exchange.message.further if each.kind is not FurtherKind.BEFORE or each.id not in seen
        )
        seen.update(said)
        return replace(exchange, message=replace(exchange.message, further=kept))

    now = unseen(history.now)
    past = [unseen(exchange) for exchange in reversed(history.exchanges)]
    return replace(history, now=now, exchanges=tuple(reversed(past)))


def _said_before(message: IncomingMessage) -> list[FurtherMessage]:
    """Return what others said before the question, oldest first, and then what it links to."""
    return sorted(message.further, key=lambda each: each.kind is FurtherKind.LINKED)


def _has_context(message: IncomingMessage) -> bool:
    return any(each.kind is FurtherKind.BEFORE for each in message.further)


def _fitting_context(message: IncomingMessage, characters: int) -> int:
    """Count the last messages before a question that fit into a number of characters."""
    for number, each in enumerate(reversed(said := _said_before(message))):
        characters -= len(each.text)
        if characters < 0:
            return number
    return len(said)


def _with_context(message: IncomingMessage, most: int) -> IncomingMessage:
    """Return a message with the last ones that were said before it."""
    said = _said_before(message)
    left_out = said[: len(said) - most]
    return replace(message, further=tuple(each for each in message.further if each not in left_out))


def _has_words(message: IncomingMessage) -> bool:
    return bool(message.text.strip() or (message.quoted or "").strip() or _contents(message) or pictures_of(message))


def _contents(message: IncomingMessage) -> str:
    """Return the text of the message's files.

    An earlier picture of the message itself that is not shown again is a line.
    """
    return "\n\n".join(
        file.titled_text if file.text else f"[{file.name}: a picture that is not shown again]"
        for file in message.files
        if file.text or (file.is_picture and not file.is_quoted and file.picture is None and file.fault is None)
    )


def _bounded(message: IncomingMessage, settings: ChatSettings, most_in_files: int | None = None) -> IncomingMessage:
    """Return the message with the part of its quotation that it may have, and of its files."""
    most_quoted = max(0, settings.max_message_chars - len(message.text))
    quoted = message.quoted if message.quoted is None else message.quoted[:most_quoted]
    files = message.files
    if most_in_files is not None and files:
        each = most_in_files // len(files)
        files = tuple(replace(file, text=file.text[:each]) for file in files)
    return replace(message, quoted=quoted, files=files)


def _length_pointed_at(message: IncomingMessage) -> int:
    """Return the characters of its quotation and its files."""
    return len(message.quoted or "") + len(_contents(message))


def _newest(turns: list[Exchange], most: int) -> list[Exchange]:
    """Return the last turns, together at most `most` characters."""
    for number, past in enumerate(reversed(turns)):
        most -= len(past.message.text) + len(past.answer.text if past.answer is not None else "")
        if most < 0:
            return turns[len(turns) - number :]
    return turns


def _spoken(message: IncomingMessage, previous: Exchange | None, most: int, *, has_name: bool) -> str:
    """Return what the model reads: files, quotation, the speaker where there are several, the text.

    Quotation and files together have at most `most` characters.
    """
    quoted = message.quoted or ""
    quoted = (without_quoted_loop(quoted) if message.quotes_bot else quoted)[:most]
    contents = _contents(message)[: most - len(quoted)]
    text = message.text
    before = "\n".join(_quoted(f"{each.author.name}: {each.text}") for each in message.further)
    if not text.strip():
        return "\n\n".join(filter(None, [before, contents, quoted]))  # they are the question
    if has_name and not message.is_direct:
        text = f"{message.author.name}: {text}"
    if _is_answer_before(message, previous):
        quoted = ""
    return "\n\n".join(filter(None, [before, contents, _quoted(quoted), text]))


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _is_answer_before(message: IncomingMessage, previous: Exchange | None) -> bool:
    """Return whether the message quotes the answer that comes right before it anyway, and no selected part of it."""
    if previous is None or previous.answer is None or message.quoted_id not in previous.parts:
        return False
    average = _letters(previous.answer.text) / len(previous.parts)
    is_whole = _letters(message.quoted or "") >= _WHOLE * average
    return message.quotes_bot and bool(message.text.strip()) and is_whole


def _letters(text: str) -> int:
    """Return the length of a text without its markup, which platforms do not quote."""
    return sum(map(str.isalnum, text))
