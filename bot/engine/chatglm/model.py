"""The network of ChatGLM-6B, for training and for serving."""

from __future__ import annotations

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.kernels.attention import attention, mask_bias

# The published network scales its residuals by its 28 layers, however many it has.
RESIDUAL_SCALE = math.sqrt(2 * 28)


class Attend(Protocol):
    """How a layer's queries meet keys: those of the same step, or those of a cache."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values for each query; all are `[rows, heads, tokens, head_dim]`."""
        ...


class WholeSequence:
    """Attention within one step, without a cache.

    `mask` is bool `[rows or 1, tokens, tokens]` and True where a key is hidden.
    `prefix` holds the keys and values of a P-Tuning v2 prefix, seen by every query:
    `[layers, 2, heads, prefix, head_dim]`.
    """

    def __init__(self, mask: Tensor, prefix: Tensor | None = None) -> None:
        self._prefix = prefix
        if prefix is not None:
            mask = functional.pad(mask, (prefix.shape[3], 0), value=False)
        self._mask = mask[:, None]  # one for all heads
        self._bias: Tensor | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self._prefix is not None:
            rows = query.shape[0]
            prefix_key, prefix_value = self._prefix[layer].to(key.dtype)
            key = torch.cat([prefix_key.expand(rows, -1, -1, -1), key], dim=2)
            value = torch.cat([prefix_value.expand(rows, -1, -1, -1), value], dim=2)
        if self._bias is None or self._bias.dtype != query.dtype:
            self._bias = mask_bias(self._mask, query.dtype)
        return attention(query, key, value, self._bias)


def rotary_angles(positions: Tensor, dim: int, half: bool = False) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, `[*positions.shape, dim / 2]`.

    The inverse frequencies are fp16 numbers always, as the published network has them.
    With `half` the angles are too, which is what it does in fp16: wrong by 0.4 at
    position 2047, and good for comparisons only.
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    frequency = (1.0 / 10000.0**exponent).half()
    kind = torch.float16 if half else torch.float32
    angles = positions[..., None].to(kind) * frequency.to(kind)
    return angles.cos(), angles.sin()


def all_angles(config: ChatGLMConfig, device: torch.device, half: bool = False) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position there is, float32 `[positions, head_dim / channels / 2]`."""
    # A block's positions begin with 1: there is one more than there are tokens.
    positions = torch.arange(config.max_sequence_length + 1, device=device)
    cos, sin = rotary_angles(positions, config.head_dim // config.channels, half)
    return cos.float().contiguous(), sin.float().contiguous()


class Rotation:
    """One step's rotation of queries and keys, the same for all layers.

    `positions` is int64 `[rows, tokens, channels]`.  The head is cut into a part per
    channel, and each part has its own pairs (i, i + size / 2) and its own position.
    """

    def __init__(self, positions: Tensor, head_dim: int, half: bool = False) -> None:
        cos, sin = rotary_angles(positions, head_dim // positions.shape[-1], half)
        self._pairs = (positions.shape[-1], 2, cos.shape[-1])
        # [rows, tokens, heads, q and k, channels, members of a pair, pairs]
        self._cos = cos.float()[:, :, None, None, :, None, :]
        self._sin = torch.stack([-sin, sin], dim=-2).float()[:, :, None, None]

    def __call__(self, query_key: Tensor) -> Tensor:
        """Rotate `[rows, tokens, heads, 2, head_dim]`; computed in float32."""
        pairs = query_key.view(*query_key.shape[:-1], *self._pairs)
        rotated = torch.addcmul(pairs * self._cos, pairs.flip(-2).float(), self._sin)
        return rotated.flatten(-3).to(query_key.dtype)


class Embedding(nn.Module):
    """The table of the words: a row per id going in, a product with all rows coming out."""

    def __init__(self, config: ChatGLMConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size, dtype=dtype))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden.to(self.weight.dtype), self.weight)


class SelfAttention(nn.Module):
    def __init__(self, config: ChatGLMConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.query_key_value: nn.Module = nn.Linear(config.hidden_size, 3 * config.hidden_size, dtype=dtype)
        self.dense: nn.Module = nn.Linear(config.hidden_size, config.hidden_size, dtype=dtype)
        self._shape = (config.num_attention_heads, 3, config.head_dim)

    def forward(self, hidden: Tensor, layer: int, rotation: Rotation, attend: Attend) -> Tensor:
        heads = self.query_key_value(hidden).unflatten(-1, self._shape)  # per head: query, key, value
        query, key = rotation(heads[..., :2, :]).transpose(1, 2).unbind(-2)
        mixed = attend(layer, query, key, heads[..., 2, :].transpose(1, 2))
        return cast("Tensor", self.dense(mixed.transpose(1, 2).flatten(-2)))


class MLP(nn.Module):
    def __init__(self, config: ChatGLMConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.dense_h_to_4h: nn.Module = nn.Linear(config.hidden_size, config.inner_hidden_size, dtype=dtype)
        self.dense_4h_to_h: nn.Module = nn.Linear(config.inner_hidden_size, config.hidden_size, dtype=dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = functional.gelu(self.dense_h_to_4h(hidden), approximate="tanh")
        return cast("Tensor", self.dense_4h_to_h(inner))


class Block(nn.Module):
    """One layer.  What is added back is the normalised input, not the input."""

    def __init__(self, config: ChatGLMConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.attention = SelfAttention(config, dtype)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config, dtype)
        self._dtype = dtype

    @property
    def device(self) -> torch.device:
        return self.input_layernorm.weight.device

    def forward(self, hidden: Tensor, layer: int, rotation: Rotation, attend: Attend) -> Tensor:
        normed = self.input_layernorm(hidden)
        mixed = self.attention(normed.to(self._dtype), layer, rotation, attend)
        normed = self.post_attention_layernorm(torch.add(mixed, normed, alpha=RESIDUAL_SCALE))
        return torch.add(self.mlp(normed.to(self._dtype)), normed, alpha=RESIDUAL_SCALE)


class Transformer(nn.Module):
    def __init__(self, config: ChatGLMConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.word_embeddings: nn.Module = Embedding(config, dtype)
        self.layers = nn.ModuleList(Block(config, dtype) for _ in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)


class ChatGLM(nn.Module):
    """The network; its parameters have the published names, and lm_head is the embedding.

    Products run in `dtype`, norms and residuals in float32 always.  `half_angles`
    reproduces the fp16 rotation of the published code, for comparisons.  Layers may lie
    on several devices: what goes from one to the next moves along.
    """

    def __init__(self, config: ChatGLMConfig, dtype: torch.dtype = torch.float32, *, half_angles: bool = False) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.half_angles = half_angles
        self.transformer = Transformer(config, dtype)

    @property
    def blocks(self) -> list[Block]:
        return [cast("Block", block) for block in self.transformer.layers]

    @property
    def device(self) -> torch.device:
        """Where ids and positions are wanted, and logits come out: the embedding is there."""
        return self.blocks[0].device

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Return the logits at every token, `[rows, tokens, vocab]`.

        `ids` is int64 `[rows, tokens]`, `positions` int64 `[rows, tokens, channels]`,
        `mask` bool `[rows or 1, tokens, tokens]`, True where a key is hidden:
        `layout_of(prompt, config)` makes the last two.  `prefix` as in `WholeSequence`.
        """
        return self.logits(self.hidden(ids, positions, WholeSequence(mask, prefix)))

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Run the layers; return what the final norm makes of them, `[rows, tokens, hidden]`."""
        rotation = Rotation(positions, self.config.head_dim, self.half_angles)
        hidden = self.transformer.word_embeddings(ids).float()
        device = hidden.device
        for layer, block in enumerate(self.blocks):
            if block.device != device:
                device = block.device
                hidden = hidden.to(device)
                rotation = Rotation(positions.to(device), self.config.head_dim, self.half_angles)
            hidden = block(hidden, layer, rotation, attend)
        return cast("Tensor", self.transformer.final_layernorm(hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every word of the vocabulary; `[..., hidden]` to `[..., vocab]`."""
        table = cast("Embedding", self.transformer.word_embeddings)
        return table.logits(hidden.to(self.device))
