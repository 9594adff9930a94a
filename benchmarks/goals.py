"""The rows of a suite's table: what was measured, what it should reach, and the arithmetic of ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

from benchmarks.figures import Machine
from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.weights import EMBEDDING, expected_shapes

Unit = Literal["tok/s", "ms", "s", "GB/s", "TFLOP/s", "share", "times"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure; `goal` is the least it should be, or the most where `is_limit`."""

    what: str
    figure: float
    unit: Unit
    goal: float | None = None
    is_limit: bool = False
    remark: str = ""

    @property
    def is_reached(self) -> bool | None:
        """Whether it is as good as its goal; None where it has none."""
        if self.goal is None:
            return None
        return self.figure <= self.goal if self.is_limit else self.figure >= self.goal


@dataclass(frozen=True, slots=True)
class Table:
    """What a suite has found on a machine."""

    suite: str
    date: str
    machine: Machine
    rows: tuple[Row, ...]

    @property
    def missed(self) -> int:
        return sum(row.is_reached is False for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        found["rows"] = [asdict(row) | {"is_reached": row.is_reached} for row in self.rows]
        return found | {"missed": self.missed}


def prefill_operations(config: ChatGLMConfig, tokens: int) -> int:
    """Count the multiplications and additions of one prompt: its layers' products, its attention, one word's scores."""
    matrices = {name: prod(shape) for name, shape in expected_shapes(config).items() if len(shape) == 2}
    table = matrices.pop(EMBEDDING)
    attention = 2 * config.num_layers * tokens**2 * config.hidden_size  # scores, and values mixed by them
    return 2 * (tokens * sum(matrices.values()) + attention + table)


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample that so many of all do not exceed; 0 where there is none.

    >>> percentile([5, 1, 2, 3, 4], 0.8), percentile([], 0.8)
    (4, 0.0)
    """
    if not samples:  # answers so short, or a machine so busy, that each came in one piece
        return 0.0
    ordered = sorted(samples)
    return ordered[max(0, -(-int(len(ordered) * share * 1000) // 1000) - 1)]
