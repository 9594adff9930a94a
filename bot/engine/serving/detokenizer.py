"""Stop strings: cut a text before them, also on top of any model's detokenizer."""

from collections.abc import Sequence

from bot.engine.serving.base import Detokenizer


class StopSearch:
    """Cuts a text that comes in pieces before the first stop string to be completed.

    The end of the text is held back while it may begin a stop string.  Once `stopped`, no text follows.

    >>> search = StopSearch(["END"])
    >>> [search.feed(text) for text in ("One E", "N", "d. E", "NDED", " two")], search.stopped
    (['One ', '', 'ENd. ', '', ''], True)
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(filter(None, stop))
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Add a piece; return the text that no later piece can change, often ''."""
        if self.stopped:
            return ""
        text = self._held + text
        # The stop string that is completed first wins, independent of the pieces' boundaries.
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

    def finish(self) -> str:
        """Return the text held back so far."""
        held, self._held = self._held, ""
        return held


class StopStrings:
    """A detokenizer that cuts the text before the first stop string to be completed.

    Once `stopped`, no text follows.  `finish` can also set `stopped`: flushed text may complete a stop string.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._search = StopSearch(stop)

    @property
    def stopped(self) -> bool:
        return self._search.stopped

    def push(self, token: int) -> str:
        """Add an id; return the text that no later id can change, often ''."""
        if self.stopped:
            return ""
        return self._search.feed(self._detokenizer.push(token))

    def finish(self) -> str:
        """Return the text held back so far, cut at a stop string."""
        if self.stopped:
            return ""
        return self._search.feed(self._detokenizer.finish()) + self._search.finish()


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of `stop` that ends `text`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
