"""One decoding step of the network over a cache, made of fused parts: nothing in it depends on a number's value.

So it can be recorded once and replayed.  `ChatGLM.hidden` is the definition.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from bot.engine.chatglm.model import RESIDUAL_SCALE, ChatGLM, all_angles
from bot.engine.kernels import Linear, TiedEmbedding
from bot.engine.serving.cache import KeyValueCache


class Parts(Protocol):
    """What lies between the products; `kernels.plain` says what each does."""

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
    """The numbers of a row that only fills a batch up."""
    return (0, 0, -1, *[0] * channels)


class Decoder:
    """Feeds each row one token, and returns the logits of the next, `[rows, vocab]` in the network's dtype.

    A row is an id, its slot, its token's place in the slot's cache, and the token's positions.
    """

    def __init__(self, network: ChatGLM, cache: KeyValueCache, parts: Parts) -> None:
        self._network, self._cache, self._parts = network, cache, parts
        self._angles = all_angles(network.config, network.device, network.half_angles)

    def __call__(self, numbers: Tensor) -> Tensor:
        """Run a step on int64 `[numbers of a row, rows]`."""
        ids, slots, at = numbers[:3].unbind()
        positions = numbers[3:].t().contiguous()
        parts, dtype, transformer = self._parts, self._network.dtype, self._network.transformer
        table = cast("TiedEmbedding", transformer.word_embeddings)
        product: Tensor = table(ids)
        residual: Tensor | None = None
        for layer, block in enumerate(self._network.blocks):
            keys, values = self._cache.keys[layer], self._cache.values[layer]
            residual, hidden = parts.add_norm(product, residual, RESIDUAL_SCALE, block.input_layernorm, dtype)
            heads = block.attention.query_key_value(hidden)
            query = parts.rope_and_append(heads, self._angles, positions, keys, values, slots, at)
            product = block.attention.dense(parts.attend(query, keys, values, slots, at))
            residual, hidden = parts.add_norm(product, residual, RESIDUAL_SCALE, block.post_attention_layernorm, dtype)
            product = block.mlp.dense_4h_to_h(cast("Linear", block.mlp.dense_h_to_4h).gelu(hidden))
        _, hidden = parts.add_norm(product, residual, RESIDUAL_SCALE, transformer.final_layernorm, dtype)
        return table.logits(hidden)
