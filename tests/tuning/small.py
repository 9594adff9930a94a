"""A small training on the golden model, for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bot.engine.chatglm.model import ChatGLM
from bot.engine.tuning.base import Base, open_base
from bot.engine.tuning.checkpoints import OutputFolder
from bot.engine.tuning.data import Pair
from bot.engine.tuning.prefix import new_prefix
from bot.engine.tuning.recipe import Recipe
from bot.engine.tuning.rows import Row, encode
from bot.engine.tuning.trainer import Trainer, Training

MODEL = Path(__file__).parents[1] / "data" / "golden"
RECIPE = Recipe(
    prefix_length=4, learning_rate=2e-2, max_steps=6, batch_size=2, accumulation=2, source_length=24, target_length=16
)
PAIRS = [
    Pair(question, answer)
    for question, answer in (
        ("hello world", "print('hello world')"),
        ("写一个标题", "冬天里的一把火"),
        ("1+1=?", "2"),
        ("谢谢", "不客气！"),
        ("Who are you?", "I am a small model."),
        ("晚上睡不着应该怎么办", "少喝咖啡，早点上床。"),
        ("价格是多少", "十二元"),
    )
]


@cache
def base() -> Base:
    return open_base(str(MODEL), device="cpu")


@cache
def network() -> ChatGLM:
    return base().read()


def rows() -> list[Row]:
    return encode(PAIRS, base().tokenizer, RECIPE.limits)[0]


def trainer(recipe: Recipe = RECIPE, *, recompute: bool = False) -> Trainer:
    prefix = new_prefix(base().config, recipe.prefix_length, projection=recipe.projection, seed=recipe.seed)
    return Trainer(network(), prefix, recipe, recompute=recompute)


def training(
    folder: Path,
    *,
    save_every: int = 2,
    validation: Sequence[Row] = (),
    facts: dict[str, Any] | None = None,
    **options: Any,
) -> Training:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = replace(RECIPE, **options)
    known = {"model": str(MODEL), "recipe": recipe.as_json()} if facts is None else facts
    return Training(trainer(recipe), rows(), validation, OutputFolder(folder), known, save_every)


def parameters(each: Training | Trainer) -> torch.Tensor:
    trained = each.trainer if isinstance(each, Training) else each
    return torch.cat([tensor.flatten() for tensor in trained.prefix.tensors().values()])
