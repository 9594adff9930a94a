"""Estimate a training's memory before anything is read."""

from dataclasses import dataclass, replace
from math import prod

import psutil
import torch

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.weights import Quantization, bits_of, expected_shapes
from bot.engine.kernels.reference import group_of
from bot.engine.memory_available import available_bytes
from bot.engine.tuning.errors import OutOfMemory
from bot.engine.tuning.frozen import WEIGHTS_AT_ONCE
from bot.engine.tuning.prefix import prefix_parameters
from bot.engine.tuning.recipe import Recipe

# Bytes per prefix parameter: itself, its gradient, two moments, and a temporary of the optimiser.
_TRAINED = 4 * 5
# Bytes per token and hidden unit that a layer keeps for its backward pass, beside the dtype's own:
# norms and residuals in float32, and those of RoPE.
_FLOAT32_UNITS = 4 * 11
_DTYPE_UNITS = 12
_INNER_UNITS = 4
# Bytes per target and vocabulary entry: logits and gradients in float32, twice, and in the dtype.
_LOGITS = 16
# cuBLAS workspaces and fragmentation.
_RESERVE = 64 << 20


@dataclass(frozen=True, slots=True)
class TrainingNeed:
    """Bytes of a training on its device."""

    weights: int
    prefix: int  # with gradients and moments
    layers: int  # what all layers keep for the backward pass
    step: int  # largest temporaries: one layer's, or the logits'

    @property
    def total(self) -> int:
        return self.weights + self.prefix + self.layers + self.step + _RESERVE

    def __str__(self) -> str:
        parts = (f"{name} {_gib(getattr(self, name))}" for name in ("weights", "prefix", "layers", "step"))
        return f"{_gib(self.total)} GiB ({', '.join(parts)})"


def training_need(
    config: ChatGLMConfig,
    quantization: Quantization,
    dtype: torch.dtype,
    recipe: Recipe,
    *,
    recompute: bool,
    tokens: int = 0,
) -> TrainingNeed:
    """Compute the need of a training whose rows have `tokens` ids, by default the limits' sum."""
    width = tokens or recipe.source_length + recipe.target_length
    rows, hidden, itemsize = recipe.batch_size, config.hidden_size, dtype.itemsize
    scores = rows * config.num_attention_heads * width * (recipe.prefix_length + width)
    activations = (
        rows
        * width
        * ((_FLOAT32_UNITS + _DTYPE_UNITS * itemsize) * hidden + _INNER_UNITS * itemsize * config.inner_hidden_size)
    )
    # Prefix and keys side by side; masks of the dropout.
    activations += 3 * itemsize * scores + 8 * itemsize * rows * (recipe.prefix_length + width) * hidden
    kept = rows * width * hidden * 4 if recompute else activations
    matrices = [shape for name, shape in _float_shapes(config).items() if len(shape) == 2]
    converted = 0
    if bits_of(config, "transformer.layers.0.attention.dense.weight", quantization):
        # int8 values, then the dtype, and once more while scaling.
        converted = 3 * itemsize * min(max(map(prod, matrices)), WEIGHTS_AT_ONCE)
    targets = rows * min(recipe.target_length, width)
    parameters = prefix_parameters(config, recipe.prefix_length, projection=recipe.projection)
    expanded = prefix_parameters(config, recipe.prefix_length, projection=False)
    return TrainingNeed(
        weights=sum(_bytes(config, quantization, dtype, name, shape) for name, shape in _float_shapes(config).items()),
        prefix=_TRAINED * parameters + (8 * expanded if recipe.projection else 4 * expanded),
        layers=config.num_layers * kept,
        step=max(2 * activations if recompute else activations, targets * config.vocab_size * _LOGITS) + converted,
    )


def _float_shapes(config: ChatGLMConfig) -> dict[str, tuple[int, ...]]:
    return expected_shapes(replace(config, quantization_bit=0, quantization_embeddings=False))


def _bytes(
    config: ChatGLMConfig, quantization: Quantization, dtype: torch.dtype, name: str, shape: tuple[int, ...]
) -> int:
    if "norm" in name:
        return 4 * prod(shape)
    bits = 0 if len(shape) == 1 else bits_of(config, name, quantization)
    if bits == 0:
        return dtype.itemsize * prod(shape)
    rows, columns = shape
    if config.quantization_bit:
        return rows * columns * bits // 8 + 2 * rows
    group = group_of(columns) if bits == 4 else None
    scales = 4 * rows if group is None else 4 * rows * (columns // group)  # scales and zeros in bfloat16
    return rows * columns * bits // 8 + scales


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f}"


def check(need: TrainingNeed, device: torch.device) -> None:
    """Compare a need with the device's free memory.

    Raises:
        OutOfMemory: It does not fit.
    """
    free = available_bytes(device)
    if free is not None and need.total > free:
        raise OutOfMemory(
            f"the training needs about {need}, but {device} has only {_gib(free)} GiB free: lower --batch-size (and raise "
            "--accumulation), --prefix-length or the lengths, choose --quantization int4, or leave out --projection"
        )


def used(device: str) -> int:
    """Return the bytes that torch has reserved on a CUDA device, or that this process holds."""
    if device.startswith("cuda"):
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)
