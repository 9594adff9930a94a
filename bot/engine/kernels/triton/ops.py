"""The functions of `kernels.plain`, one kernel each, through Triton."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bot.engine.kernels.triton import kernels as step

# Neither is measured yet: tokens that a program of the attention reads at once, and how many programs there
# should be: with fewer rows and heads, sequences are split.
_TOKENS_AT_ONCE = 64
_PROGRAMS = 512
_MOST_SPLITS = 16


def suits(head_dim: int, channels: int, dtype: torch.dtype) -> bool:
    """Say whether these kernels can do a network's heads."""
    is_power = head_dim & (head_dim - 1) == 0
    return is_power and head_dim // channels >= 2 and dtype in (torch.float16, torch.bfloat16)


def add_norm(
    product: Tensor, residual: Tensor | None, alpha: float, norm: nn.LayerNorm, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As in `kernels.plain`."""
    rows, hidden = product.shape
    normed = product.new_empty(rows, hidden, dtype=torch.float32)
    cast = product.new_empty(rows, hidden, dtype=dtype)
    step.add_norm[(rows,)](
        product.contiguous(), residual, norm.weight, norm.bias, normed, cast, hidden, alpha, norm.eps,
        has_residual=residual is not None, block=_power_of_two(hidden),
    )  # fmt: skip
    return normed, cast


def rope_and_append(
    query_key_value: Tensor,
    angles: tuple[Tensor, Tensor],
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    at: Tensor,
) -> Tensor:
    """As in `kernels.plain`."""
    rows, channels = positions.shape
    _, heads, capacity, head_dim = keys.shape
    query = query_key_value.new_empty(rows, heads, head_dim)
    step.rope_and_append[(rows, heads)](
        query_key_value.contiguous(), *angles, positions, keys, values, slots, at, query, capacity,
        heads=heads, channels=channels, head_dim=head_dim,
    )  # fmt: skip
    return query


def attend(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, at: Tensor) -> Tensor:
    """As in `kernels.plain`."""
    rows, heads, head_dim = query.shape
    capacity = keys.shape[2]
    splits = splits_of(rows * heads, capacity)
    mixed = query.new_empty(rows, heads, head_dim)
    shape = (rows, heads, splits) if splits > 1 else (0,)
    best, weight = (query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    parts = query.new_empty((*shape, head_dim), dtype=torch.float32)
    step.attend[(rows, heads, splits)](
        query.contiguous(), keys, values, slots, at, mixed, parts, best, weight, capacity, head_dim**-0.5,
        heads=heads, head_dim=head_dim, splits=splits, block=_TOKENS_AT_ONCE,
    )  # fmt: skip
    if splits > 1:
        step.join_splits[(rows, heads)](
            parts, best, weight, at, mixed, heads=heads, head_dim=head_dim, splits=splits
        )  # fmt: skip
    return mixed.flatten(1)


def splits_of(programs: int, capacity: int) -> int:
    """Into how many parts each of so many sequences is cut.

    >>> splits_of(32, 2048), splits_of(8192, 2048), splits_of(32, 64)
    (16, 1, 1)
    """
    return _power_of_two(max(1, min(_MOST_SPLITS, _PROGRAMS // programs, capacity // _TOKENS_AT_ONCE)))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
