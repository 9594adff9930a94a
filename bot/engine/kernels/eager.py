"""Eager decode ops: the reference for the fused kernels.

A step has one token per row.  `at` is int64 `[rows]`, the token's index in its slot; -1
marks a padding row, which writes nothing and attends to zeros.
"""

import torch
from torch import Tensor, nn


def add_norm(
    product: Tensor, residual: Tensor | None, alpha: float, norm: nn.LayerNorm, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Normalise `product + alpha * residual`, all `[rows, hidden]`, in float32.

    Returns it as float32 (the next residual) and in `dtype` (the next matmul's input).
    """
    total = product.float() if residual is None else torch.add(product, residual, alpha=alpha)
    normed: Tensor = norm(total)
    return normed, normed.to(dtype)


def rope_and_append(
    query_key_value: Tensor,
    angles: tuple[Tensor, Tensor],
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    at: Tensor,
) -> Tensor:
    """Apply RoPE, append keys and values to the cache, return queries `[rows, heads, head_dim]`.

    `query_key_value` is `[rows, heads * 3 * head_dim]`, `positions` int64 `[rows, channels]`, `angles` the
    cosine and sine per position, float32 `[positions, head_dim / channels / 2]`, and `keys` and `values`
    one layer's cache `[slots, heads, capacity, head_dim]`.
    """
    rows, channels = positions.shape
    heads, head_dim = keys.shape[1], keys.shape[3]
    cos, sin = (table[positions][:, None, None, :, None] for table in angles)
    parts = query_key_value.view(rows, heads, 3, head_dim)
    pairs = parts[:, :, :2].reshape(rows, heads, 2, channels, 2, -1)
    turned = torch.addcmul(pairs * cos, pairs.flip(-2).float(), torch.cat([-sin, sin], dim=-2))
    query, key = turned.flatten(-3).to(query_key_value.dtype).unbind(2)
    real = at >= 0
    keys[slots[real], :, at[real]] = key[real]
    values[slots[real], :, at[real]] = parts[real, :, 2]
    return query


def attend(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, at: Tensor) -> Tensor:
    """Attend from each query to its slot up to and including `at`; return `[rows, heads * head_dim]`."""
    mixed = torch.zeros_like(query)
    for row, (slot, last) in enumerate(zip(slots.tolist(), at.tolist(), strict=True)):
        if last >= 0:
            key, value = (layer[slot, :, : last + 1] for layer in (keys, values))
            scores = key.float() @ query[row, :, :, None].float() * query.shape[-1] ** -0.5
            mixed[row] = (scores.softmax(dim=1).transpose(1, 2) @ value.float())[:, 0].to(query.dtype)
    return mixed.flatten(1)
