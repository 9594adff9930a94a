"""Stop strings on top of any model's detokenizer."""

from collections.abc import Sequence

from bot.engine.serving.base import Detokenizer


class StopStrings:
    """A detokenizer that cuts the text before the first stop string to be completed.

    The end of the text is held back while it may begin a stop string.  Once `stopped`, no
    text follows.  `finish` can also set `stopped`: flushed text may complete a stop string.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = tuple(filter(None, stop))
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add an id; return the text that no later id can change, often ''."""
        if self.stopped:
            return ""
        return self._cut(self._detokenizer.push(token))

    def finish(self) -> str:
        """Return the text held back so far, cut at a stop string."""
        if self.stopped:
            return ""
        text = self._cut(self._detokenizer.finish())
        held, self._held = self._held, ""
        return text + held

    def _cut(self, text: str) -> str:
        text = self._held + text
        # The stop string that is completed first wins, independent of the token boundaries.
        found = min(
            ((start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0), default=None
        )
        if found:
            self.stopped = True
            self._held = ""
            return text[: found[1]]
        end = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[end:]
        return text[:end]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that ends `text`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
