"""The network of ChatGLM-6B, for training and for serving."""

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.kernels.attention import attention, mask_bias

# The published constant, for 28 layers, whatever the number of layers is.
RESIDUAL_SCALE = math.sqrt(2 * 28)


class Attend(Protocol):
    """Attention of a layer, over the step's own keys or a cache."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; all tensors are `[rows, heads, tokens, head_dim]`."""
        ...


class WholeSequence:
    """Attention within one step, without a cache.

    `mask` is bool `[rows or 1, tokens, tokens]`, True where masked.  `prefix` holds keys and
    values of a P-Tuning v2 prefix, `[layers, 2, heads, prefix, head_dim]`.
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
    """Return cosine and sine of the RoPE angles, `[*positions.shape, dim / 2]`.

    The inverse frequencies are rounded to fp16, as in the published network.  `half` also
    computes the angles in fp16, as it does: off by 0.4 at position 2047, for comparisons only.
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
    frequency = (1.0 / 10000.0**exponent).half()
    kind = torch.float16 if half else torch.float32
    angles = positions[..., None].to(kind) * frequency.to(kind)
    return angles.cos(), angles.sin()


def all_angles(config: ChatGLMConfig, device: torch.device, half: bool = False) -> tuple[Tensor, Tensor]:
    """Return cosine and sine per position, float32 `[positions, head_dim / channels / 2]`."""
    # Block positions begin with 1: one more position than tokens.
    positions = torch.arange(config.max_sequence_length + 1, device=device)
    cos, sin = rotary_angles(positions, config.head_dim // config.channels, half)
    return cos.float().contiguous(), sin.float().contiguous()


class RotaryEmbedding:
    """RoPE of one step, shared by all layers.

    `positions` is int64 `[rows, tokens, channels]`.  The head is split into one part per
    channel, each with its own position and pairs (i, i + size / 2).
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
    """Input embedding and output projection that share one matrix."""

    def __init__(self, config: ChatGLMConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size, dtype=dtype))
        if not self.weight.is_meta:  # there it would import torch's compiler, for 2 s and 130,000 objects
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

    def forward(self, hidden: Tensor, layer: int, rotation: RotaryEmbedding, attend: Attend) -> Tensor:
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
    """One layer.  The residual is the normalised input, not the input."""

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

    def forward(self, hidden: Tensor, layer: int, rotation: RotaryEmbedding, attend: Attend) -> Tensor:
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
    """The network, with the published parameter names; lm_head is the embedding.

    Matmuls run in `dtype`, norms and residuals in float32.  `half_angles` reproduces the fp16
    RoPE of the published code, for comparisons.  Layers may be on several devices.
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
        """Device of inputs, embedding and logits."""
        return self.blocks[0].device

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Return logits `[rows, tokens, vocab]`.

        `ids` is int64 `[rows, tokens]`, `positions` int64 `[rows, tokens, channels]`, `mask`
        bool `[rows or 1, tokens, tokens]`, True where masked; the last two come from
        `layout_of(prompt, config)`.  `prefix` as in `WholeSequence`.
        """
        return self.logits(self.hidden(ids, positions, WholeSequence(mask, prefix)))

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Run the layers; return the final hidden states `[rows, tokens, hidden]`."""
        rotation = RotaryEmbedding(positions, self.config.head_dim, self.half_angles)
        hidden = self.transformer.word_embeddings(ids).float()
        device = hidden.device
        for layer, block in enumerate(self.blocks):
            if block.device != device:
                device = block.device
                hidden = hidden.to(device)
                rotation = RotaryEmbedding(positions.to(device), self.config.head_dim, self.half_angles)
            hidden = block(hidden, layer, rotation, attend)
        return cast("Tensor", self.transformer.final_layernorm(hidden))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits `[..., vocab]` of hidden states `[..., hidden]`."""
        table = cast("Embedding", self.transformer.word_embeddings)
        return table.logits(hidden.to(self.device))
