"""One decode step of fused ops, without data-dependent control flow.

A CUDA graph can capture it.  `ChatGLM.hidden` is the reference implementation.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from bot.engine.chatglm.model import RESIDUAL_SCALE, ChatGLM, all_angles
from bot.engine.kernels import Linear, TiedEmbedding
from bot.engine.serving.cache import KeyValueCache


class DecodeOps(Protocol):
    """The ops between matmuls; `kernels.eager` is the reference implementation."""

    def add_norm(
        self, product: Tensor, residual: Tensor | None, alpha: float, norm: nn.LayerNorm, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]: ...

    def rope_and_append(
        self,
        query_key_value: Tensor,
        angles: tuple[Tensor, Tensor],
        positions: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        at: Tensor,
    ) -> Tensor: ...

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, at: Tensor) -> Tensor: ...


def padding(channels: int) -> tuple[int, ...]:
    """Return the row that pads a batch; its index -1 disables the cache write."""
    return (0, 0, -1, *[0] * channels)


class Decoder:
    """Decode one token per row; return logits `[rows, vocab]` in the network's dtype.

    A row is a token id, its slot, its index in the slot's cache, and its positions.
    """

    def __init__(self, network: ChatGLM, cache: KeyValueCache, ops: DecodeOps) -> None:
        self._network, self._cache, self._ops = network, cache, ops
        self._angles = all_angles(network.config, network.device, network.half_angles)

    def __call__(self, numbers: Tensor) -> Tensor:
        """Run one step on int64 `[row fields, rows]`."""
        ids, slots, at = numbers[:3].unbind()
        positions = numbers[3:].t().contiguous()
        ops, dtype, transformer = self._ops, self._network.dtype, self._network.transformer
        table = cast("TiedEmbedding", transformer.word_embeddings)
        product: Tensor = table(ids)
        residual: Tensor | None = None
        for layer, block in enumerate(self._network.blocks):
            keys, values = self._cache.keys[layer], self._cache.values[layer]
            residual, hidden = ops.add_norm(product, residual, RESIDUAL_SCALE, block.input_layernorm, dtype)
            heads = block.attention.query_key_value(hidden)
            query = ops.rope_and_append(heads, self._angles, positions, keys, values, slots, at)
            product = block.attention.dense(ops.attend(query, keys, values, slots, at))
            residual, hidden = ops.add_norm(product, residual, RESIDUAL_SCALE, block.post_attention_layernorm, dtype)
            product = block.mlp.dense_4h_to_h(cast("Linear", block.mlp.dense_h_to_4h).gelu(hidden))
        _, hidden = ops.add_norm(product, residual, RESIDUAL_SCALE, transformer.final_layernorm, dtype)
        return table.logits(hidden)
