"""Recent throughput of the model, for estimates of the waiting time."""

# Decay per step: after 100 steps a measurement has a third of its weight.
STEP_DECAY = 0.99
# Answers are fewer than steps, so they decay faster.
ANSWER_DECAY = 0.9


class Throughput:
    """Exponentially decayed means of tokens per second and of seconds per answer."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._held = 0.0
        self._answers = 0.0

    def step(self, tokens: int, seconds: float) -> None:
        """Record a step that sampled `tokens` tokens."""
        self._tokens = self._tokens * STEP_DECAY + tokens
        self._seconds = self._seconds * STEP_DECAY + seconds

    def answer(self, seconds: float) -> None:
        """Record an answer that held its slot for `seconds`."""
        self._held = self._held * ANSWER_DECAY + seconds
        self._answers = self._answers * ANSWER_DECAY + 1

    @property
    def tokens_per_second(self) -> float | None:
        return self._tokens / self._seconds if self._seconds > 0 else None

    def wait(self, position: int, slots: int) -> float | None:
        """Estimate the seconds until `position` slots become free; None before the first answer.

        >>> throughput = Throughput()
        >>> throughput.answer(6.0)
        >>> throughput.wait(position=2, slots=4)
        3.0
        """
        return position * self._held / self._answers / slots if self._answers and slots else None
