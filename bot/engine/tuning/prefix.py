"""The trained prefix: keys and values that every layer sees before the text."""

import torch
from torch import Tensor, nn

from bot.engine.chatglm.config import ChatGLMConfig
from bot.engine.chatglm.weights import PREFIX, prefix_heads
from bot.engine.tuning.batches import seed_of


class PrefixEncoder(nn.Module):
    """A P-Tuning v2 prefix of `length` tokens, float32, with the published parameter names.

    Without projection a table holds keys and values; with it, a two-layer network maps a smaller
    table to them.
    """

    def __init__(self, config: ChatGLMConfig, length: int, *, projection: bool) -> None:
        super().__init__()
        hidden, width = config.hidden_size, 2 * config.num_layers * config.hidden_size
        self._config = config
        self.length = length
        self.embedding = nn.Embedding(length, hidden if projection else width)
        self.trans = (
            nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, width)) if projection else None
        )

    def forward(self) -> Tensor:
        """Return keys and values, `[layers, 2, heads, prefix, head_dim]`."""
        table = self.embedding.weight
        return prefix_heads(table if self.trans is None else self.trans(table), self._config)

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters under their names in a checkpoint."""
        return {PREFIX + name: tensor.detach() for name, tensor in self.named_parameters()}


def new_prefix(config: ChatGLMConfig, length: int, *, projection: bool, seed: int) -> PrefixEncoder:
    """Draw torch's initial values, the published ones: N(0, 1), and U(±1 / sqrt(hidden)) in the projection."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PrefixEncoder(config, length, projection=projection)


def prefix_parameters(config: ChatGLMConfig, length: int, *, projection: bool) -> int:
    """Return the number of trained parameters.

    >>> from dataclasses import replace
    >>> six_billion = ChatGLMConfig(130528, 4096, 16384, 28, 32, 130004, 130005, 130000, 130001)
    >>> prefix_parameters(six_billion, 128, projection=False)
    29360128
    >>> prefix_parameters(six_billion, 128, projection=True)
    957059072
    """
    hidden, width = config.hidden_size, 2 * config.num_layers * config.hidden_size
    if not projection:
        return length * width
    return length * hidden + hidden * hidden + hidden + hidden * width + width


class PrefixDropout:
    """Dropout of the prefix in one forward pass, elementwise, with another mask for each row.

    Masks depend on the seed only, so recomputing a layer and resuming a training repeat them.
    """

    def __init__(self, rate: float, *seed: object) -> None:
        self._rate, self._seed = rate, seed

    def __call__(self, layer: int, prefix: Tensor) -> Tensor:
        """Drop elements of `[2, rows, heads, prefix, head_dim]`, and scale up the others."""
        if self._rate == 0:
            return prefix
        generator = torch.Generator(prefix.device).manual_seed(seed_of(*self._seed, layer))
        kept = torch.empty(prefix.shape, dtype=prefix.dtype, device=prefix.device)
        return prefix * kept.bernoulli_(1 - self._rate, generator=generator).div_(1 - self._rate)
