"""Decode steps on a CPU: all layers in one native call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bot.engine.chatglm.model import RESIDUAL_SCALE, Block, ChatGLM, all_angles
from bot.engine.kernels import Linear
from bot.engine.kernels.native.layers import Layer, Layers, supports
from bot.engine.kernels.native.matmul import NativeMatmul
from bot.engine.serving.cache import KeyValueCache


class NativeDecoder:
    """Decode one token for each of up to `most_rows` rows; return logits `[rows, vocab]`.

    Rows of one slot are adjacent, and their indices ascend by one.
    """

    def __init__(self, network: ChatGLM, cache: KeyValueCache, layers: Sequence[Layer], most: int) -> None:
        self.most_rows = min(most, *(matmul.most_rows for layer in layers for matmul in layer.matmuls))
        self._network = network
        self._layers = Layers(
            layers,
            network.transformer.final_layernorm,
            cache.keys,
            cache.values,
            all_angles(network.config, network.device, network.half_angles),
            channels=network.config.channels,
            most=self.most_rows,
            alpha=RESIDUAL_SCALE,
        )

    def __call__(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Run one step; a row is a token id, its slot, its index in the cache, and its positions."""
        numbers = torch.tensor([*zip(*rows, strict=True)])
        ids, slots, at = numbers[:3].unbind()
        hidden = self._layers(self._network.transformer.word_embeddings(ids), slots, at, numbers[3:])
        return self._network.logits(hidden)


def native_decoder(network: ChatGLM, cache: KeyValueCache, most: int) -> NativeDecoder | None:
    """Return a decoder if every matmul of the network is native, else None."""
    layers = [_layer(block) for block in network.blocks]
    if not supports(cache.keys) or any(layer is None for layer in layers):
        return None
    return NativeDecoder(network, cache, [layer for layer in layers if layer is not None], most)


def _layer(block: Block) -> Layer | None:
    attention, mlp = block.attention, block.mlp
    linear = (attention.query_key_value, attention.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h)
    products = [each.matmul for each in linear if isinstance(each, Linear) and isinstance(each.matmul, NativeMatmul)]
    if len(products) < len(linear):
        return None
    query_key_value, dense, up, down = products
    return Layer(block.input_layernorm, query_key_value, dense, block.post_attention_layernorm, up, down)
