"""Ends an answer where the first stop string begins, over any model's detokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from bot.engine.serving.base import Detokenizer


class StopStrings:
    """A detokenizer that cuts its text at the first stop string to be completed.

    Holds back the end of the text while it may be the beginning of a stop string, and
    nothing without stop strings.  Once `stopped`, no more text follows.

    `stopped` may also become true in `finish`: the model ended its answer, and the text
    that it had held back until then completes a stop string.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = tuple(filter(None, stop))
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take the next id; return the text that no later id can change, often ''."""
        if self.stopped:
            return ""
        return self._cut(self._detokenizer.push(token))

    def finish(self) -> str:
        """Return what was held back, cut like the rest."""
        if self.stopped:
            return ""
        text = self._cut(self._detokenizer.finish())
        held, self._held = self._held, ""
        return text + held

    def _cut(self, text: str) -> str:
        text = self._held + text
        # Which stop string is completed first must not depend on how the text was cut into tokens.
        found = min(
            ((start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0),
            default=None,
        )
        if found:
            self.stopped = True
            self._held = ""
            return text[: found[1]]
        end = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[end:]
        return text[:end]


def _overlap(text: str, stop: str) -> int:
    """Count the characters at the end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
