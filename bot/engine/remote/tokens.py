"""Estimates of a prompt's tokens, corrected by what the servers count."""

import math
from collections.abc import Sequence

from bot.domain import ChatMessage, Picture
from bot.util.clock import Clock

# A refusal as too long raises the estimates at most by this factor, and for so many seconds: one odd prompt, or a
# refusal that was misread, may not shorten everyone's conversations for good.
_MOST = 4.0
_SECONDS = 600.0

# Upper bytes of UTF-16 units: of characters before U+2F00, and of the second halves of those beyond U+FFFF.
_NARROW = bytes([*range(0x2F), *range(0xDC, 0xE0)])


def estimate_tokens(text: str) -> int:
    """Estimate, rather too high, the tokens of a message: one per CJK character, else one per three.

    Each message has a few more for its role.

    >>> estimate_tokens("hello world!"), estimate_tokens("你好，👋"), estimate_tokens("naïve")
    (8, 8, 6)
    """
    # Not a character at a time: prompts of a million are counted on the event loop.
    wide = 0 if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")[1::2].translate(None, _NARROW))
    return 4 + wide + (len(text) - wide + 2) // 3


def estimate_picture(picture: Picture) -> int:
    """Estimate the tokens of a picture: one for each square of 28 pixels, as Qwen's models cut it; for others it is too high."""
    return 4 + math.ceil(picture.width / 28) * math.ceil(picture.height / 28)


class TokenEstimates:
    """Estimates, those of texts times the ratio of the last prompt that a server has counted or refused."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ratio = 1.0
        self._refused_until = -math.inf

    def of(self, messages: Sequence[ChatMessage]) -> int:
        if self._ratio > 1.0 and -math.inf < self._refused_until <= self._clock.now():
            self._ratio, self._refused_until = 1.0, -math.inf
        return max(1, round(_estimate(messages) * self._ratio)) + _of_pictures(messages)

    def counted(self, messages: Sequence[ChatMessage], tokens: int) -> None:
        """Correct the estimates by a server's own count of the texts."""
        self._ratio, self._refused_until = tokens / _estimate(messages), -math.inf

    def refused(self, messages: Sequence[ChatMessage], limit: int) -> None:
        """Correct the estimates after a prompt was refused as longer than the `limit`."""
        tokens = self.of(messages)
        if tokens < limit:
            self._ratio = min(self._ratio * max(1.3, limit / tokens), max(self._ratio, _MOST))
            self._refused_until = self._clock.now() + _SECONDS

    def answered(self, messages: Sequence[ChatMessage], tokens: int) -> None:
        """Take back, after a refusal, as much of its correction as the usage of an answer shows to be too much.

        Otherwise usage is not trusted: servers leave out what their caches hold, or what they cut off.
        """
        if self._refused_until > -math.inf:
            of_texts = tokens - _of_pictures(messages)
            self._ratio = min(self._ratio, max(1.0, of_texts / _estimate(messages)))


def _estimate(messages: Sequence[ChatMessage]) -> int:
    return max(1, sum(estimate_tokens(message.content) for message in messages))


def _of_pictures(messages: Sequence[ChatMessage]) -> int:
    return sum(estimate_picture(picture) for message in messages for picture in message.pictures)
