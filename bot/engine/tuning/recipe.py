"""Hyperparameters of a training, and the published presets."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.tuning.checkpoints import read_facts
from bot.engine.tuning.data import Columns
from bot.engine.tuning.errors import BadRecipe
from bot.engine.tuning.rows import Limits
from bot.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result, beside model and data; lengths are in tokens.

    A step takes `accumulation` micro-batches of `batch_size` rows; its loss is the mean of their
    means.  The learning rate falls linearly to 0 over `max_steps`.
    """

    prefix_length: int = 128
    projection: bool = False
    learning_rate: float = 2e-2
    max_steps: int = 3000
    batch_size: int = 1
    accumulation: int = 16
    source_length: int = 64
    target_length: int = 64
    dropout: float = 0.1
    clip: float = 1.0
    seed: int = 42

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        return self.learning_rate * (1 - (step - 1) / self.max_steps)

    @property
    def limits(self) -> Limits:
        return Limits(self.source_length, self.target_length)

    def check(self, config: ChatGLMConfig) -> None:
        """Check that trained rows can be served.

        Raises:
            BadRecipe: They are longer than the model's context.
        """
        tokens = self.source_length + self.target_length
        if tokens > config.max_sequence_length:
            raise BadRecipe(
                f"--max-source-length {self.source_length} and --max-target-length {self.target_length} are {tokens} "
                f"tokens, but the model's context holds {config.max_sequence_length}: lower one"
            )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Preset:
    """The options of a published script."""

    recipe: Recipe
    columns: Columns


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # train.sh and train_chat.sh of the published code.
        "ad": Preset(Recipe(), Columns("content", "summary")),
        "chat": Preset(
            replace(Recipe(), learning_rate=1e-2, source_length=256, target_length=256),
            Columns("prompt", "response", "history"),
        ),
    }
)


def trained_with(folder: Path) -> Recipe:
    """Return the recipe of a trained prefix; the default one if another program trained it.

    Raises:
        CheckpointError: tuning.json cannot be read.
    """
    facts = read_facts(folder).get("recipe", {})
    try:
        return Recipe(**facts)
    except TypeError as exc:
        raise CheckpointError(f"{folder} was written by another version ({exc}): train the prefix again") from exc
