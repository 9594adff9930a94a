"""Tell a model's reasoning, `<think>…</think>` before its answer, from the answer."""

from collections.abc import Iterator

from bot.domain import Delta, EngineEvent, Finished, Thought

_OPEN, _CLOSE = TAGS = "<think>", "</think>"


class Thoughts:
    r"""Separates `<think>…</think>` at the beginning of an answer from the text after it.

    Tags may be cut anywhere; later ones are part of the answer.  With `is_thinking` the prompt
    has opened the first one.

    >>> thoughts = Thoughts()
    >>> [thoughts.feed(text) for text in ("<th", "ink>2+", "2</thi", "nk>", "\n\nFour", " <think>")]
    [('', ''), ('2+', ''), ('2', ''), ('', ''), ('', 'Four'), ('', ' <think>')]
    """

    def __init__(self, *, is_thinking: bool = False) -> None:
        self._pending = ""  # what may be the beginning of a tag
        self._is_thinking = is_thinking
        self._has_begun = False  # the text of the answer

    def feed(self, text: str) -> tuple[str, str]:
        """Return the part of the text that is reasoning, and the part that belongs to the answer."""
        if self._has_begun:
            return "", text
        self._pending += text
        if not self._is_thinking:
            self._pending = self._pending.lstrip()
            if not self._pending or (len(self._pending) < len(_OPEN) and _OPEN.startswith(self._pending)):
                return "", ""
            if not self._pending.startswith(_OPEN):
                return "", self._begin(self._pending)
            self._is_thinking = True
            self._pending = self._pending.removeprefix(_OPEN)
        thought, tag, answer = self._pending.partition(_CLOSE)
        if not tag:
            kept = _cut_tag(thought)
            self._pending = thought[len(thought) - kept :]
            return thought[: len(thought) - kept], ""
        self._is_thinking = False
        self._pending = ""
        answer = answer.lstrip()
        return thought, self._begin(answer) if answer else ""

    def finish(self) -> str:
        """Return the text that was held back as a possible tag."""
        return "" if self._has_begun or self._is_thinking else self._begin(self._pending)

    @property
    def unended(self) -> str | None:
        """Return the end of the reasoning while its closing tag may follow; None outside of it."""
        return self._pending if self._is_thinking else None

    def _begin(self, text: str) -> str:
        self._has_begun, self._pending = True, ""
        return text


def without_thoughts(thoughts: Thoughts, event: EngineEvent) -> Iterator[EngineEvent]:
    """Yield the event, or what it consists of: reasoning, text, and at the end the text that was held back."""
    match event:
        case Delta(said):
            thought, text = thoughts.feed(said)
            if thought:
                yield Thought(thought)
            if text:
                yield Delta(text)
        case Finished():
            if text := thoughts.finish():
                yield Delta(text)
            yield event
        case _:
            yield event


def after_thoughts(text: str) -> str:
    r"""Return the text after the reasoning of a model that has its opening tag in the prompt; all, if there is none.

    A tag in code, or after an opening one, is part of the answer.

    >>> after_thoughts("2 and 2.\n</think>\n\nFour."), after_thoughts("Write `</think>` last."), after_thoughts("Four.")
    ('Four.', 'Write `</think>` last.', 'Four.')
    """
    thought, _, answer = text.partition(_CLOSE)
    return text if _OPEN in thought or thought.count("`") % 2 else answer.lstrip() or text


def _cut_tag(text: str) -> int:
    """Return how many characters at the end may be the beginning of the closing tag."""
    return next((size for size in range(len(_CLOSE) - 1, 0, -1) if text.endswith(_CLOSE[:size])), 0)
