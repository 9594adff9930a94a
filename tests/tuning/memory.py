"""The memory table of docs/TUNING.md: `python -m tests.tuning.memory`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.weights import Quantization
from bot.engine.tuning.memory import TrainingNeed, training_need
from bot.engine.tuning.recipe import Recipe

CHATGLM_6B = ChatGLMConfig(130528, 4096, 16384, 28, 32, 130004, 130005, 130000, 130001)
KINDS: tuple[Quantization, ...] = ("none", "int8", "int4")


def need(kind: Quantization, batch_size: int, *, projection: bool = False) -> TrainingNeed:
    """Return the need for prefix 128 and rows of 128 tokens."""
    recipe = Recipe(batch_size=batch_size, projection=projection)
    return training_need(CHATGLM_6B, kind, torch.bfloat16, recipe, recompute=True)


def table() -> Iterator[str]:
    yield "| base, batch size 1 / 4 / 16 | GiB |"
    yield "|---|---|"
    for kind in KINDS:
        sizes = " / ".join(f"{need(kind, size).total / 2**30:.1f}" for size in (1, 4, 16))
        yield f"| {'bfloat16' if kind == 'none' else kind} | {sizes} |"
    yield f"| int4 with `--projection`, batch size 1 | {need('int4', 1, projection=True).total / 2**30:.1f} |"


if __name__ == "__main__":
    print("\n".join(table()))  # noqa: T201  # it is a command
