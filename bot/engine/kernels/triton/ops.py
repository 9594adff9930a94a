"""The decode ops of `kernels.eager`, one Triton kernel each."""

import torch
from torch import Tensor, nn

from bot.engine.kernels.triton import kernels

# Not measured yet: tokens per attention block, and the number of programs below which sequences are split.
_TOKENS_AT_ONCE = 64
_PROGRAMS = 512
_MOST_SPLITS = 16


def supports(head_dim: int, channels: int, dtype: torch.dtype) -> bool:
    """Return whether the kernels support a network's heads."""
    is_power = head_dim & (head_dim - 1) == 0
    return is_power and head_dim // channels >= 2 and dtype in (torch.float16, torch.bfloat16)


def add_norm(
    product: Tensor, residual: Tensor | None, alpha: float, norm: nn.LayerNorm, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `kernels.eager`."""
    rows, hidden = product.shape
    normed = product.new_empty(rows, hidden, dtype=torch.float32)
    cast = product.new_empty(rows, hidden, dtype=dtype)
    kernels.add_norm[(rows,)](
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
    """See `kernels.eager`."""
    rows, channels = positions.shape
    _, heads, capacity, head_dim = keys.shape
    query = query_key_value.new_empty(rows, heads, head_dim)
    kernels.rope_and_append[(rows, heads)](
        query_key_value.contiguous(), *angles, positions, keys, values, slots, at, query, capacity,
        heads=heads, channels=channels, head_dim=head_dim,
    )  # fmt: skip
    return query


def attend(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, at: Tensor) -> Tensor:
    """See `kernels.eager`."""
    rows, heads, head_dim = query.shape
    capacity = keys.shape[2]
    splits = splits_of(rows * heads, capacity)
    mixed = query.new_empty(rows, heads, head_dim)
    shape = (rows, heads, splits) if splits > 1 else (0,)
    best, weight = (query.new_empty(shape, dtype=torch.float32) for _ in range(2))
    parts = query.new_empty((*shape, head_dim), dtype=torch.float32)
    kernels.attend[(rows, heads, splits)](
        query.contiguous(), keys, values, slots, at, mixed, parts, best, weight, capacity, head_dim**-0.5,
        heads=heads, head_dim=head_dim, splits=splits, block=_TOKENS_AT_ONCE,
    )  # fmt: skip
    if splits > 1:
        kernels.join_splits[(rows, heads)](
            parts, best, weight, at, mixed, heads=heads, head_dim=head_dim, splits=splits
        )  # fmt: skip
    return mixed.flatten(1)


def splits_of(programs: int, capacity: int) -> int:
    """Return the number of splits per sequence.

    >>> splits_of(32, 2048), splits_of(8192, 2048), splits_of(32, 64)
    (16, 1, 1)
    """
    return _power_of_two(max(1, min(_MOST_SPLITS, _PROGRAMS // programs, capacity // _TOKENS_AT_ONCE)))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
