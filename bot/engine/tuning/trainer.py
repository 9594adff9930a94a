"""Optimiser steps on a prefix, and a training from its first step or last checkpoint to its end."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from bot.engine.chatglm.model import ChatGLM
from bot.engine.chatglm.weights import PREFIX
from bot.engine.serving.runner import is_out_of_memory, release_memory
from bot.engine.tuning.batches import RowBatch, micro_batches, pad
from bot.engine.tuning.checkpoints import OutputFolder, TrainingState
from bot.engine.tuning.errors import Diverged, FolderInUse, OutOfMemory
from bot.engine.tuning.network import prefix_loss
from bot.engine.tuning.optimiser import AdamW
from bot.engine.tuning.prefix import PrefixDropout, PrefixEncoder
from bot.engine.tuning.recipe import Recipe
from bot.engine.tuning.rows import Row

# float16 gradients below 6e-8 are 0; the published training does not scale them.
_FLOAT16_SCALE = 1024.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """An optimiser step: its mean loss, learning rate, gradient norm before clipping, and its rows' tokens."""

    step: int
    loss: float
    rate: float
    norm: float
    tokens: int

    def as_json(self) -> dict[str, Any]:
        return {"step": self.step, "loss": self.loss, "learning_rate": self.rate, "norm": self.norm}


class Trainer:
    """Trains a prefix; the network stays as it is.

    With `recompute` activations are recomputed in the backward pass: less memory, a third more time.
    """

    def __init__(self, network: ChatGLM, prefix: PrefixEncoder, recipe: Recipe, *, recompute: bool = False) -> None:
        self.network = network.requires_grad_(False)
        self.prefix = prefix.to(network.device)
        self.recipe = recipe
        self.optimiser = AdamW(prefix.named_parameters())
        self._recompute = recompute
        self._scale = _FLOAT16_SCALE if network.dtype == torch.float16 else 1.0

    @property
    def steps(self) -> int:
        """Optimiser steps so far."""
        return self.optimiser.steps

    def gradients(self, batches: Sequence[RowBatch]) -> tuple[list[float], float]:
        """Set the gradients of the next step; return the micro-batches' losses, and the norm before clipping."""
        step = self.steps + 1
        losses: list[float] = []
        for micro, batch in enumerate(batches):
            dropout = PrefixDropout(self.recipe.dropout, self.recipe.seed, "dropout", step, micro)
            loss = prefix_loss(
                self.network, batch.to(self.network.device), self.prefix(), dropout, recompute=self._recompute
            )
            torch.autograd.backward(loss * (self._scale / self.recipe.accumulation))
            losses.append(loss.item())
        if self._scale != 1:
            for parameter in self.prefix.parameters():
                assert parameter.grad is not None
                parameter.grad /= self._scale
        norm = nn.utils.clip_grad_norm_(self.prefix.parameters(), self.recipe.clip)
        return losses, float(norm)

    def step(self, batches: Sequence[RowBatch]) -> StepResult:
        """Run one optimiser step.

        Raises:
            Diverged: Loss or gradient is NaN or infinite; the prefix is as before.
            OutOfMemory: The step does not fit; the prefix is as before.
        """
        step, rate = self.steps + 1, self.recipe.rate(self.steps + 1)
        with _explain_out_of_memory(step):
            losses, norm = self.gradients(batches)
        loss = sum(losses) / len(losses)
        if not math.isfinite(loss + norm):
            raise Diverged(
                f"the loss of step {step} is not a finite number ({loss:g}, gradient norm {norm:g}): lower --learning-rate"
            )
        self.optimiser.step(rate)
        return StepResult(step, loss, rate, norm, sum(batch.tokens for batch in batches))

    @torch.no_grad()
    def loss(self, batches: Sequence[RowBatch]) -> float:
        """Return the mean loss per micro-batch without dropout."""
        prefix, still = self.prefix(), PrefixDropout(0)
        losses = [prefix_loss(self.network, batch.to(self.network.device), prefix, still).item() for batch in batches]
        return sum(losses) / len(losses)

    def restore(self, state: TrainingState) -> None:
        """Continue after the last step of `state`.

        Raises:
            FolderInUse: It belongs to another training.
        """
        try:
            self.prefix.load_state_dict({name.removeprefix(PREFIX): part for name, part in state.prefix.items()})
            self.optimiser.restore(state.moments, state.step)
        except (KeyError, RuntimeError) as exc:
            raise FolderInUse(
                "the checkpoint holds a prefix of another shape: name another folder with --output"
            ) from exc


@contextmanager
def _explain_out_of_memory(step: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as exc:
        if not is_out_of_memory(exc):
            raise
        release_memory()
        raise OutOfMemory(
            f"not enough memory for step {step}: lower --batch-size (and raise --accumulation), --max-source-length or "
            "--max-target-length, or choose --quantization int4"
        ) from exc


@dataclass(frozen=True, slots=True)
class Training:
    """A training of `rows` into `folder`; `facts` identify it, and must not change when it is resumed."""

    trainer: Trainer
    rows: Sequence[Row]
    validation: Sequence[Row]
    folder: OutputFolder
    facts: dict[str, Any]
    save_every: int = 1000

    def run(
        self,
        on_step: Callable[[StepResult], None] = lambda result: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[dict[str, Any]]:
        """Train to the last step of the recipe, or until `should_stop` after a step; return the log.

        The last step is always saved.  A training that the folder holds is continued, as if it had not
        been interrupted.

        Raises:
            FolderInUse: The folder holds another training.
            Diverged: The loss is no number; the last checkpoint stays.
            TuningError: A checkpoint cannot be written.
        """
        trainer, recipe = self.trainer, self.trainer.recipe
        log: list[dict[str, Any]] = []
        if (state := self.folder.load()) is not None:
            self._check(state)
            trainer.restore(state)
            log = list(state.facts["log"])
        saved = trainer.steps
        lengths = [len(row) for row in self.rows]
        done = trainer.steps * recipe.accumulation
        micros = micro_batches(lengths, recipe.batch_size, recipe.seed, done)
        while trainer.steps < recipe.max_steps and not should_stop():
            groups = islice(micros, recipe.accumulation)
            batches = [pad([self.rows[i] for i in group], trainer.network.config) for group in groups]
            result = trainer.step(batches)
            log.append(result.as_json())
            on_step(result)
            if trainer.steps % self.save_every == 0:
                self._save(log)
                saved = trainer.steps
        if saved != trainer.steps:
            self._save(log)
        return log

    def _save(self, log: list[dict[str, Any]]) -> None:
        trainer = self.trainer
        if self.validation:
            log[-1]["validation_loss"] = trainer.loss(self._validation_batches())
        facts = {**self.facts, "step": trainer.steps, "log": log}
        network = trainer.network.config.as_json()
        config = {
            **network,
            "pre_seq_len": trainer.recipe.prefix_length,
            "prefix_projection": trainer.recipe.projection,
        }
        self.folder.save(TrainingState(trainer.prefix.tensors(), trainer.optimiser.state(), facts), config)

    def _validation_batches(self) -> list[RowBatch]:
        ordered = sorted(self.validation, key=len)
        size = self.trainer.recipe.batch_size
        return [
            pad(ordered[first : first + size], self.trainer.network.config) for first in range(0, len(ordered), size)
        ]

    def _check(self, state: TrainingState) -> None:
        now, then = _flat(self.facts), _flat(state.facts)
        for name, ours in now.items():
            if then.get(name) != ours:
                raise FolderInUse(
                    f"{self.folder.path} holds a training with another {name} ({then.get(name)} instead of {ours}): resume "
                    "it with the options and data it began with, or name another folder with --output"
                )


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fact for name, fact in facts.items() if name != "recipe"} | dict(facts.get("recipe", {}))
