"""Attention over keys and values laid out as the network and its cache have them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores: so much where `mask` is True that nothing else counts.

    A query that sees no key then looks at all alike, as in the published network.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, torch.finfo(dtype).min)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Scaled dot-product attention of `[rows, tokens, heads, head_dim]` tensors.

    `bias` is added to the scores, `[rows or 1, heads or 1, queries, keys]`.
    """
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias
    )
    return mixed.transpose(1, 2)
