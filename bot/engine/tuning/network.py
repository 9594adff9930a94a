"""The frozen network with a prefix: one forward pass, and its loss."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bot.engine.chatglm.model import ChatGLM, RotaryEmbedding
from bot.engine.kernels.attention import attention, mask_bias
from bot.engine.tuning.batches import IGNORED, RowBatch
from bot.engine.tuning.prefix import PrefixDropout


class PrefixAttention:
    """Attention over a prefix and the rows' own keys.

    `mask` is bool `[rows, tokens, tokens]`, `prefix` `[layers, 2, heads, prefix, head_dim]`.
    """

    def __init__(self, mask: Tensor, prefix: Tensor, dropout: PrefixDropout, dtype: torch.dtype) -> None:
        self._prefix, self._dropout = prefix, dropout
        self._bias = mask_bias(functional.pad(mask, (prefix.shape[3], 0), value=False)[:, None], dtype)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = query.shape[0]
        prefix = self._prefix[layer].to(key.dtype)[:, None].expand(-1, rows, -1, -1, -1)
        prefix_key, prefix_value = self._dropout(layer, prefix)
        key = torch.cat([prefix_key, key], dim=2)
        value = torch.cat([prefix_value, value], dim=2)
        if query.device.type != "cpu":
            return attention(query, key, value, self._bias)
        # On a CPU the fused attention's backward pass takes three times as long.
        scores = torch.add(self._bias, query @ key.transpose(2, 3), alpha=query.shape[-1] ** -0.5)
        return scores.softmax(-1) @ value


def prefix_loss(
    network: ChatGLM, batch: RowBatch, prefix: Tensor, dropout: PrefixDropout, *, recompute: bool = False
) -> Tensor:
    """Return the mean cross-entropy of the batch's targets, in float32.

    With `recompute` the backward pass recomputes each layer instead of keeping its activations.
    """
    attend = PrefixAttention(batch.mask, prefix, dropout, network.dtype)
    rotation = RotaryEmbedding(batch.positions, network.config.head_dim, network.half_angles)
    hidden = network.transformer.word_embeddings(batch.ids).float()
    for layer, block in enumerate(network.blocks):
        if recompute:
            hidden = checkpoint(block, hidden, layer, rotation, attend, use_reentrant=False, preserve_rng_state=False)
        else:
            hidden = block(hidden, layer, rotation, attend)
    # Logits of the targets only: over the whole vocabulary they are the largest tensor.
    wanted = batch.targets != IGNORED
    hidden = cast("Tensor", network.transformer.final_layernorm(hidden[wanted]))
    return functional.cross_entropy(network.logits(hidden).float(), batch.targets[wanted])
