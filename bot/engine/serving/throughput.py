"""How fast the model has been lately, for estimates of the wait."""

from __future__ import annotations

# Each step fades what was measured before: after 100 steps a third of its weight is left.
STEP_FADING = 0.99
# Each answer fades the earlier ones' lengths faster: there are fewer of them.
ANSWER_FADING = 0.9


class Speed:
    """Faded means of tokens per busy second and of the seconds an answer holds its slot."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._held = 0.0
        self._answers = 0.0

    def step(self, tokens: int, seconds: float) -> None:
        """Note a step that gave `tokens` new tokens."""
        self._tokens = self._tokens * STEP_FADING + tokens
        self._seconds = self._seconds * STEP_FADING + seconds

    def answer(self, seconds: float) -> None:
        """Note that an answer gave its slot back, having held it for `seconds`."""
        self._held = self._held * ANSWER_FADING + seconds
        self._answers = self._answers * ANSWER_FADING + 1

    @property
    def tokens_per_second(self) -> float | None:
        return self._tokens / self._seconds if self._seconds > 0 else None

    def wait(self, position: int, slots: int) -> float | None:
        """Estimate the seconds until `position` slots have become free; None where that is not known yet.

        >>> speed = Speed()
        >>> speed.answer(6.0)
        >>> speed.wait(position=2, slots=4)
        3.0
        """
        return position * self._held / self._answers / slots if self._answers and slots else None
